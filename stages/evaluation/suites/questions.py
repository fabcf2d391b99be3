"""What a suite is: questions in text, with digests of what they are made from and of what they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from stages.evaluation.suites.options import Form, SuiteOptions
from stages.stage import StageError

Split = Literal["test", "train"]
"""What a model is asked, and what it may be trained on. They share no question."""

Cell = TypeVar("Cell")


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        id: unique within its suite.
        groups: what its answer counts in, such as the task: name -> value.
        prompt: what the model reads.
        answer: what comes directly after the prompt, its leading space included; training text has the same bytes.
        options: what is offered instead, the answer among them; empty if there is nothing to choose from.
    """

    id: str
    groups: Mapping[str, str]
    prompt: str
    answer: str
    options: tuple[str, ...] = ()

    @property
    def gold(self) -> int:
        """Where the answer stands among the options."""
        return self.options.index(self.answer)


def first_line(question: Question, text: str) -> str:
    """The plainest way to read an answer: its first line without the white space around it."""
    return text.strip().split("\n", 1)[0].strip()


@dataclass(frozen=True)
class Suite:
    """Questions of one kind.

    Attributes:
        name: as recipes call it.
        about: what is asked and how, for the report.
        version: raised when the same options make other questions.
        settings: all that the questions are made from, beside the version.
        groups: by what results are shown, the most telling first: name of a group -> its values in order.
        forms: how the questions are put.
        ending: what ends a written answer, in training text as well; empty if answers are only chosen.
        repeats: questions are versions of one another, and some may be the same.
        read: question, written text -> what is compared with the right answer read in the same way.
    """

    name: str
    title: str
    about: str
    version: int
    settings: Mapping[str, Any]
    questions: Sequence[Question]
    groups: Mapping[str, Sequence[str]]
    forms: tuple[Form, ...]
    ending: str = ""
    repeats: bool = False
    read: Callable[[Question, str], str] = field(default=first_line, repr=False)

    @property
    def settings_digest(self) -> str:
        """sha256 of name, version and settings."""
        return _digest([[self.name, self.version, dict(self.settings)]])

    @property
    def questions_digest(self) -> str:
        """sha256 of all questions."""
        return _digest([q.id, dict(q.groups), q.prompt, q.answer, q.options] for q in self.questions)

    @property
    def distinct_questions(self) -> int:
        """How many questions are not there before."""
        return len({(question.prompt, question.answer) for question in self.questions})

    @property
    def chance(self) -> float:
        """Expected accuracy of a guess among the options."""
        return sum(1 / len(question.options) for question in self.questions) / len(self.questions)


def settings_of(options: SuiteOptions, split: Split, **facts: str) -> dict[str, Any]:
    """``Suite.settings`` of questions that are made from ``options`` and ``facts``, such as a word list's digest."""
    return {**options.model_dump(mode="json", exclude_none=True), "split": split, **facts}


def draws(*path: object) -> Random:
    """Random numbers that are a function of ``path`` alone: suite, seed, split, number of the question."""
    return Random("/".join(map(str, path)))


def in_split(split: Split, *content: str) -> bool:
    """Whether what a question is about, in any order, belongs to ``split``: an eighth of everything is for tests."""
    digest = hashlib.sha256("\n".join(sorted(content)).encode()).digest()
    return (digest[0] % 8 == 0) == (split == "test")


class Turn(NamedTuple, Generic[Cell]):
    """One question to be made.

    Attributes:
        number: of the question.
        cell: which kind of question.
        round: how many of this kind come before it.
        place: modulo the number of options, where the answer stands.
    """

    number: int
    cell: Cell
    round: int
    place: int


def shortage(suite: str, items: int, kinds: int) -> str | None:
    """Why ``items`` questions are too few for so many kinds of them; None if they are not."""
    if items >= kinds:
        return None
    return (
        f"{suite}.items: {items} questions are fewer than the {kinds} kinds of question that the options ask for; "
        f"give {kinds} or more"
    )


def spread(cells: Sequence[Cell], items: int, suite: str) -> Iterator[Turn[Cell]]:
    """``items`` questions, one of every cell in turn.

    ``place`` grows by one from cell to cell and from round to round, so that every place has the same share of the
    answers, within each cell and over all, but for a remainder.

    Raises:
        StageError: some cells would stay empty.
    """
    if problem := shortage(suite, items, len(cells)):
        raise StageError(f"suites.{problem}")
    for number in range(items):
        round_, cell = divmod(number, len(cells))
        yield Turn(number, cells[cell], round_, round_ + cell)


def placed(answer: str, others: Sequence[str], place: int) -> tuple[str, ...]:
    """``answer`` and then ``others``, rotated so that the answer stands at ``place`` modulo their number."""
    options = [answer, *others]
    shift = place % len(options)
    return tuple(options[len(options) - shift :] + options[: len(options) - shift])


def _digest(records: Any) -> str:
    lines = (json.dumps(record, ensure_ascii=False, sort_keys=True, separators=(",", ":")) for record in records)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
