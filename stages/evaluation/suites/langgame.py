"""LangGame: which of four words fits (StochasTok, arXiv 2506.01687; stochastok.md §7).

Other than the published generator: every letter of the alphabet that words allow is asked for equally often, the answer
stands at every place equally often, and tests hold out words, templates and lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from random import Random
from string import ascii_lowercase
from typing import NamedTuple

from stages.evaluation.suites.langgame_templates import phrase
from stages.evaluation.suites.options import LangGameOptions
from stages.evaluation.suites.questions import (
    Question,
    Split,
    Suite,
    Turn,
    draws,
    in_split,
    placed,
    settings_of,
    spread,
)
from stages.evaluation.suites.words import lexicon

OPTIONS = 4
LETTER_TYPES = ("most_letter", "contains", "starts_with", "ends_with")
TYPES = (*LETTER_TYPES, "longest", "shortest")
STRATA = ("in_distribution", "held_out_words", "held_out_templates", "unseen_lengths")
CELLS = tuple(
    (stratum, kind) for stratum in STRATA for kind in TYPES if (stratum, kind) != ("unseen_lengths", "most_letter")
)
ABOUT = (
    "Which of four words has most of a letter, contains, starts with or ends with some letters, is the longest or the "
    "shortest. Chosen among the four as continuations ' word' after 'Answer:'. Strata: in_distribution is made as "
    "training items are, of other sets of words; held_out_words and held_out_templates use words and phrasings that no "
    "training item has; unseen_lengths asks for more than half of the letters of a word, for longest words of 10 "
    "letters and more, and for shortest ones beside words of 9 and more."
)


class Draft(NamedTuple):
    """What is asked: the end of the question, its answer, and what the other words must fulfil."""

    tail: str
    answer: str
    is_wrong: Callable[[str], bool]


def cells_of(options: LangGameOptions, split: Split) -> Sequence[tuple[str, str]]:
    """The kinds of question: stratum and type."""
    return CELLS if split == "test" else [("training", kind) for kind in TYPES]


def make(options: LangGameOptions, split: Split) -> Suite:
    """The suite's questions: the strata of a test, or training items.

    Raises:
        StageError: fewer questions than there are strata and types.
    """
    turns = spread(cells_of(options, split), options.items, "langgame")
    return Suite(
        name="langgame",
        title="LangGame",
        about=ABOUT,
        version=options.VERSION,
        settings=settings_of(options, split, words=lexicon().digest),
        questions=[_question(turn, split, options.seed) for turn in turns],
        groups={"stratum": STRATA, "type": TYPES},
        forms=("choice",),
    )


def _question(turn: Turn[tuple[str, str]], split: Split, seed: int) -> Question:
    stratum, kind = turn.cell
    rng = draws("langgame", seed, split, turn.number)
    letter = _letter(kind, stratum, seed, turn.round)
    words = _words(stratum)
    while True:
        draft = _draft(kind, words, letter, unseen=stratum == "unseen_lengths", rng=rng)
        options = _others(draft, words, rng)
        # Held-out words are in no training item anyhow.
        if stratum == "held_out_words" or in_split(split, draft.answer, *options):
            break
    options = placed(draft.answer, options, turn.place)
    return Question(
        id=f"{split}/{turn.number}",
        groups={"stratum": stratum, "type": kind, "letter": letter},
        prompt=phrase(draft.tail, options, rng, held_out=stratum == "held_out_templates"),
        answer=f" {draft.answer}",
        options=tuple(f" {option}" for option in options),
    )


def _words(stratum: str) -> tuple[str, ...]:
    return lexicon().held_out if stratum == "held_out_words" else lexicon().known


def _letter(kind: str, stratum: str, seed: int, round_: int) -> str:
    """The letter that a question is about: all that words allow, one after the other, in an order of the seed's."""
    if kind not in LETTER_TYPES:
        return ""
    letters = _letters(kind, _words(stratum), seed)
    return letters[round_ % len(letters)]


@cache
def _letters(kind: str, words: tuple[str, ...], seed: int) -> Sequence[str]:
    letters = [letter for letter in ascii_lowercase if _about(words, kind, letter)]
    draws("langgame", seed, "letters", kind).shuffle(letters)
    return letters


@cache
def _about(words: tuple[str, ...], kind: str, letter: str) -> tuple[str, ...]:
    """The words that can be the answer to a question of a type about a letter; they have three letters at least."""
    fits: dict[str, Callable[[str], bool]] = {
        "most_letter": lambda word: word.count(letter) > 1,
        "contains": lambda word: letter in word,
        "starts_with": lambda word: word.startswith(letter),
        "ends_with": lambda word: word.endswith(letter),
    }
    return tuple(word for word in words if len(word) > 2 and fits[kind](word))


@cache
def _of_length(words: tuple[str, ...], lengths: range) -> tuple[str, ...]:
    return tuple(word for word in words if len(word) in lengths)


def _draft(kind: str, words: tuple[str, ...], letter: str, *, unseen: bool, rng: Random) -> Draft:
    """A question of a type about a letter; ``unseen``: with lengths that training items do not have."""
    if kind == "longest":
        answer = rng.choice(_of_length(words, range(10, 99) if unseen else range(7, 10)))
        return Draft("is the longest?", answer, lambda word: len(word) <= 4)
    if kind == "shortest":
        answer = rng.choice(_of_length(words, range(2, 4)))
        others = range(9, 99) if unseen else range(6, 9)
        return Draft("is the shortest?", answer, lambda word: len(word) in others)
    answer = rng.choice(_about(words, kind, letter))
    if kind == "most_letter":
        return Draft(f"has the most letter '{letter}'s?", answer, lambda word: word.count(letter) < 2)
    half = len(answer) // 2
    size = rng.randint(half + 1, len(answer) - 1) if unseen else rng.randint(1, min(3, half))
    if kind == "starts_with":
        start = answer[:size]
        return Draft(f"starts with '{start}'?", answer, lambda word: not word.startswith(start))
    if kind == "ends_with":
        end = answer[-size:]
        return Draft(f"ends with '{end}'?", answer, lambda word: not word.endswith(end))
    place = rng.choice([index for index, character in enumerate(answer) if character == letter])
    first = rng.randint(max(0, place - size + 1), min(place, len(answer) - size))
    part = answer[first : first + size]
    return Draft(f"contains '{part}'?", answer, lambda word: part not in word)


def _others(draft: Draft, words: Sequence[str], rng: Random) -> list[str]:
    """Three different words that are no answer."""
    others: list[str] = []
    while len(others) < OPTIONS - 1:
        word = rng.choice(words)
        if draft.is_wrong(word) and word not in others:
            others.append(word)
    return others
