"""Sums of two numbers, by length, carries and how digits are grouped (stochastok.md §8, evaluation.md §8)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import product
from random import Random
from typing import NamedTuple

from stages.evaluation.suites.options import AdditionOptions
from stages.evaluation.suites.questions import (
    Question,
    Split,
    Suite,
    Turn,
    draws,
    first_line,
    in_split,
    placed,
    settings_of,
    spread,
)

OPTIONS = 4
CARRIES = ("0", "1", "2", "3 or more")
ABOUT = (
    "Sums of two numbers after 'a+b='. Written answers count if their digits are the sum's, read up to the end of the "
    "line, separators aside; chosen ones are compared with three near misses of the same length. Every number of "
    "carries, from none to one in each column that both numbers have, is equally frequent. Strata: trained_lengths "
    "has other sums than the training items, of the same lengths; unseen_lengths has lengths that none of them has."
)


class Cell(NamedTuple):
    """A kind of sum."""

    stratum: str
    lengths: tuple[int, int]
    grouping: str
    order: str


def cells_of(options: AdditionOptions, split: Split) -> Sequence[Cell]:
    """The kinds of sum."""
    stratum = "trained_lengths" if split == "test" else "training"
    lengths = [(stratum, pair) for pair in product(options.digits, repeat=2) if pair != (1, 1)]
    if split == "test":
        lengths += [("unseen_lengths", (length, length)) for length in options.unseen_digits]
    return [
        Cell(*kind, grouping, order) for kind, grouping, order in product(lengths, options.grouping, options.answers)
    ]


def make(options: AdditionOptions, split: Split) -> Suite:
    """The suite's questions: the strata of a test, or training items.

    Raises:
        StageError: fewer questions than there are kinds of sum.
    """
    cells = cells_of(options, split)
    turns = spread(cells, options.items, "addition")
    examples = {cell: _examples(cell, options) for cell in cells}
    return Suite(
        name="addition",
        title="Addition",
        about=ABOUT,
        version=options.VERSION,
        settings=settings_of(options, split),
        questions=[_question(turn, split, options, examples[turn.cell]) for turn in turns],
        groups={
            "carries": CARRIES,
            "digits": list(dict.fromkeys(_named(cell.lengths) for cell in cells)),
            "stratum": ("trained_lengths", "unseen_lengths"),
            "grouping": options.grouping,
            "order": options.answers,
        },
        forms=options.forms,
        ending="\n",
        read=partial(read_sum, options.separator),
    )


def read_sum(separator: str, question: Question, text: str) -> str:
    """The first line of a written answer without separators and the white space around it."""
    return first_line(question, text).replace(separator, "")


def grouped(digits: str, grouping: str, separator: str) -> str:
    """Digits in groups of three, as ``AdditionOptions.grouping`` says: 1234 is 123,4 from the left and 1,234 from the
    right."""
    if grouping == "none":
        return digits
    first = len(digits) % 3 if grouping == "right" else 0
    groups = [digits[:first], *(digits[start : start + 3] for start in range(first, len(digits), 3))]
    return separator.join(group for group in groups if group)


def count_carries(left: int, right: int) -> int:
    """How many columns of the written sum carry into the next."""
    carries = carry = 0
    while left or right:
        carry = int(left % 10 + right % 10 + carry > 9)
        carries += carry
        left, right = left // 10, right // 10
    return carries


def addends(lengths: tuple[int, int], rng: Random) -> tuple[int, int]:
    """Two numbers of so many digits, any count of carries in the columns that both have being equally likely.

    No carry runs on beyond these columns, as in 99 + 1.
    """
    shared = min(lengths)
    carrying = set(rng.sample(range(shared), rng.randint(0, shared)))
    numbers, carry = [0, 0], 0
    for column in range(max(lengths)):
        choices = [range(column == length - 1 and length > 1, 10 if column < length else 1) for length in lengths]
        pair = rng.choice(_digit_pairs(*choices, carry, column in carrying))
        carry = int(column in carrying)
        numbers = [number + digit * 10**column for number, digit in zip(numbers, pair, strict=True)]
    return numbers[0], numbers[1]


@cache
def _digit_pairs(left: range, right: range, carry: int, carries: bool) -> Sequence[tuple[int, int]]:
    """Digits of one column that carry into the next, or do not."""
    return [pair for pair in product(left, right) if (sum(pair) + carry > 9) == carries]


def _question(turn: Turn[Cell], split: Split, options: AdditionOptions, examples: str) -> Question:
    cell = turn.cell
    rng = draws("addition", options.seed, split, turn.number)
    left, right = _sum_of(split, cell.lengths, rng)
    write = _writer(cell, options)
    answer = write(left + right, answer=True)
    return Question(
        id=f"{split}/{turn.number}",
        groups={
            "stratum": cell.stratum,
            "carries": CARRIES[min(count_carries(left, right), 3)],
            "digits": _named(cell.lengths),
            "grouping": cell.grouping,
            "order": cell.order,
        },
        prompt=f"{examples}{write(left)}+{write(right)}=",
        answer=answer,
        options=placed(answer, [write(miss, answer=True) for miss in near_misses(left, right, rng)], turn.place),
    )


def _named(lengths: tuple[int, int]) -> str:
    return "+".join(map(str, lengths))


def _sum_of(split: Split, lengths: tuple[int, int], rng: Random) -> tuple[int, int]:
    """Addends whose sum, in either order, is asked in ``split`` alone."""
    while True:
        left, right = addends(lengths, rng)
        if in_split(split, str(left), str(right)):
            return left, right


def _writer(cell: Cell, options: AdditionOptions) -> Callable[..., str]:
    width = max(cell.lengths) + 1 if options.zero_pad else 0

    def write(number: int, *, answer: bool = False) -> str:
        digits = str(number).zfill(width)
        digits = digits[::-1] if answer and cell.order == "reversed" else digits
        return grouped(digits, cell.grouping, options.separator)

    return write


def _examples(cell: Cell, options: AdditionOptions) -> str:
    """Solved sums of a cell's kind, the same before each of its questions."""
    write = _writer(cell, options)
    rng = draws("addition", options.seed, "examples", cell.lengths)
    pairs = [_sum_of("train", cell.lengths, rng) for _ in range(options.shots)]
    return "".join(f"{write(a)}+{write(b)}={write(a + b, answer=True)}\n" for a, b in pairs)


def near_misses(left: int, right: int, rng: Random) -> list[int]:
    """Three wrong sums of as many digits as the right one: a carry lost or made up, a digit off, two digits swapped."""
    right_sum = left + right
    length = len(str(right_sum))
    misses: list[int] = []
    while len(misses) < OPTIONS - 1:
        miss = rng.choice((_one_column_off, _another_digit, _swapped))(right_sum, rng)
        if miss > 0 and len(str(miss)) == length and miss not in (right_sum, *misses):
            misses.append(miss)
    return misses


def _one_column_off(number: int, rng: Random) -> int:
    return number + rng.choice((-1, 1)) * 10 ** rng.randrange(len(str(number)))


def _another_digit(number: int, rng: Random) -> int:
    return _with(number, rng.randrange(len(str(number))), str(rng.randrange(10)))


def _swapped(number: int, rng: Random) -> int:
    digits = str(number)
    place = rng.randrange(len(digits))
    other = (place + 1) % len(digits)
    return _with(_with(number, place, digits[other]), other, digits[place])


def _with(number: int, place: int, digit: str) -> int:
    digits: Sequence[str] = list(str(number))
    return int("".join(digit if index == place else old for index, old in enumerate(digits)))
