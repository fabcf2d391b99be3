"""The tasks of the CUTE-like suite: a question about a word or a sentence, its answer, and plausible wrong ones.

Letters and words go through the same edits. No edit leaves its word or sentence as it is, and none is about a unit that
is there in two spellings ("The" and "the").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from string import ascii_lowercase
from typing import NamedTuple

from rapidfuzz.distance import Indel

from stages.evaluation.suites.edits import (
    Units,
    delete,
    insert_after,
    insert_before,
    near_edit,
    substitute,
    swap,
)

YES, NO = "Yes", "No"
ALIKE, UNLIKE = 0.7, 0.3
"""Similarity in spelling above which two words are alike and below which they are not, as in CUTE."""


class Draft(NamedTuple):
    """A question without its options' order.

    Attributes:
        query: the question.
        answer: the right answer.
        wrong: what is offered beside it.
    """

    query: str
    answer: str
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class Material:
    """What questions are about.

    Attributes:
        units: draws the letters of a word, or the words of a sentence.
        join: from units back to text.
        noun: what a unit is called.
        alphabet: units to insert, or to ask for in vain.
    """

    units: Callable[[Random], Units]
    join: Callable[[Units], str]
    noun: str
    alphabet: Sequence[str]


def spell(material: Material, rng: Random) -> Draft:
    """``the`` -> ``t h e``."""
    units = _drawn(material, rng, 3)
    wrong = _others([], units, material, rng)
    return Draft(f'Spell out "{material.join(units)}".', spelled(units), tuple(map(spelled, wrong)))


def spell_inverse(material: Material, rng: Random) -> Draft:
    """``t h e`` -> ``the``."""
    units = _drawn(material, rng, 3)
    wrong = _others([], units, material, rng)
    return Draft(f'Write the word that is spelled "{spelled(units)}".', "".join(units), tuple(map("".join, wrong)))


def spelled(units: Units) -> str:
    """Letters with spaces between them."""
    return " ".join(units)


def contains(material: Material, rng: Random, *, holds: bool) -> Draft:
    """Whether a unit is in a text; ``holds``: what is to be the answer."""
    units = _drawn(material, rng, 3)
    known = {unit.lower() for unit in units}
    asked = rng.choice(units) if holds else rng.choice([unit for unit in material.alphabet if unit not in known])
    answer, wrong = (YES, NO) if holds else (NO, YES)
    return Draft(f'Is the {material.noun} "{asked}" in "{material.join(units)}"?', answer, (wrong,))


def orth(words: tuple[str, ...], rng: Random) -> Draft:
    """Which of two words is spelled more like a third."""
    while True:
        word, unlike = rng.choice(words), rng.choice(words)
        alike = _alike(word, words)
        if len(word) > 2 and alike and similarity(word, unlike) < UNLIKE:
            return orth_of(word, rng.choice(alike), unlike, rng)


@cache
def _alike(word: str, words: tuple[str, ...]) -> Sequence[str]:
    return [other for other in words if other != word and similarity(word, other) > ALIKE]


def orth_of(word: str, first: str, second: str, rng: Random) -> Draft:
    """Which of two given words is spelled more like ``word``; the two are named in random order."""
    answer, wrong = sorted((first, second), key=lambda other: -similarity(word, other))
    named = rng.sample((answer, wrong), 2)
    return Draft(f'Which is spelled more like "{word}": "{named[0]}" or "{named[1]}"?', answer, (wrong,))


def similarity(left: str, right: str) -> float:
    """Levenshtein ratio in [0, 1]: 1 - (insertions + deletions) / (sum of the lengths)."""
    return Indel.normalized_similarity(left, right)


def insertion(units: Units, new: str, mark: str, material: Material, rng: Random) -> Draft:
    """``new`` after every ``mark``; offered beside it: before it, and after another unit."""
    query = f'Add the {material.noun} "{new}" after every "{mark}" in "{material.join(units)}".'
    wrong = [insert_before(units, new, mark), insert_after(units, new, _another(units, (mark,), rng)), units]
    return _edit(query, insert_after(units, new, mark), wrong, material, rng)


def deletion(units: Units, mark: str, material: Material, rng: Random) -> Draft:
    """Without every ``mark``; offered beside it: without another unit."""
    query = f'Delete every {material.noun} "{mark}" in "{material.join(units)}".'
    wrong = [delete(units, _another(units, (mark,), rng)), units]
    return _edit(query, delete(units, mark), wrong, material, rng)


def substitution(units: Units, new: str, mark: str, material: Material, rng: Random) -> Draft:
    """``new`` for every ``mark``; offered beside it: for another unit, or added instead."""
    query = f'Replace every {material.noun} "{mark}" by "{new}" in "{material.join(units)}".'
    wrong = [substitute(units, new, _another(units, (mark,), rng)), insert_after(units, new, mark), units]
    return _edit(query, substitute(units, new, mark), wrong, material, rng)


def swapping(units: Units, first: str, second: str, material: Material, rng: Random) -> Draft:
    """Two units in each other's places; offered beside it: one of them with a third."""
    query = f'Swap the {material.noun}s "{first}" and "{second}" in "{material.join(units)}".'
    third = _another(units, (first, second), rng)
    wrong = [swap(units, first, third), swap(units, second, third), units]
    return _edit(query, swap(units, first, second), wrong, material, rng)


def random_insertion(material: Material, rng: Random) -> Draft:
    """``insertion`` of a random unit after a random one."""
    units = _drawn(material, rng, 3)
    mark = rng.choice(units)
    return insertion(units, _other_than(mark, material, rng), mark, material, rng)


def random_deletion(material: Material, rng: Random) -> Draft:
    """``deletion`` of a random unit."""
    units = _drawn(material, rng, 3)
    return deletion(units, rng.choice(units), material, rng)


def random_substitution(material: Material, rng: Random) -> Draft:
    """``substitution`` of a random unit."""
    units = _drawn(material, rng, 3)
    mark = rng.choice(units)
    return substitution(units, _other_than(mark, material, rng), mark, material, rng)


def random_swap(material: Material, rng: Random) -> Draft:
    """``swapping`` of two random units that occur once each."""
    while True:
        units = _drawn(material, rng, 3)
        once = [unit for unit in units if units.count(unit) == 1]
        if len(once) > 1:
            first, second = rng.sample(once, 2)
            return swapping(units, first, second, material, rng)


def _drawn(material: Material, rng: Random, different: int) -> Units:
    """Units of which ``different`` at least are different, and none is there in two spellings."""
    while True:
        units = material.units(rng)
        if len(set(units)) >= different and len(set(units)) == len({unit.lower() for unit in units}):
            return units


def _another(units: Units, marks: tuple[str, ...], rng: Random) -> str:
    return rng.choice([unit for unit in units if unit not in marks])


def _other_than(mark: str, material: Material, rng: Random) -> str:
    return rng.choice([unit for unit in material.alphabet if unit != mark.lower()])


def _edit(query: str, right: Units, wrong: Sequence[Units], material: Material, rng: Random) -> Draft:
    others = _others(wrong, right, material, rng)
    return Draft(query, material.join(right), tuple(map(material.join, others)))


def _others(wrong: Sequence[Units], right: Units, material: Material, rng: Random, count: int = 3) -> list[Units]:
    """``count`` different wrong answers: of the plausible ones as many as there are, then small slips."""
    others = [units for units in dict.fromkeys(wrong) if units not in (right, ())]
    rng.shuffle(others)
    others = others[:count]
    while len(others) < count:
        slip = near_edit(right, material.alphabet, rng)
        if slip not in (right, (), *others):
            others.append(slip)
    return others


def sentence(units: Units) -> str:
    """Words as a sentence, with a full stop."""
    return f"{' '.join(units)}."


def letters_of(words: Callable[[Random], str]) -> Material:
    """The letters of words."""
    return Material(lambda rng: tuple(words(rng)), "".join, "letter", ascii_lowercase)


EDITS: Mapping[str, Callable[[Material, Random], Draft]] = {
    "ins": random_insertion,
    "del": random_deletion,
    "sub": random_substitution,
    "swap": random_swap,
}
