"""The words that questions are about, and which of them training never sees."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from random import Random
from string import ascii_lowercase


@dataclass(frozen=True)
class Lexicon:
    """English words in lower case, none twice.

    Attributes:
        known: words that training items and tests may use.
        held_out: words that only tests use; about a quarter.
        digest: sha256 of the word list.
    """

    known: tuple[str, ...]
    held_out: tuple[str, ...]
    digest: str


@cache
def lexicon() -> Lexicon:
    """The list shipped as ``words.txt`` (made by ``recipes/data/build_words.py``).

    Words are held out by their hash. Where several words have a letter twice, some are known and some held out, so that
    rare letters can be asked for in both.
    """
    data = files(__package__).joinpath("words.txt").read_bytes()
    words = data.decode("ascii").split()
    held_out = {word for word in words if _hash(word)[0] < 64}
    for letter in ascii_lowercase:
        twice = sorted((word for word in words if word.count(letter) > 1), key=_hash)
        if len(twice) > 1 and not held_out.intersection(twice):
            held_out.add(twice[0])
        if len(twice) > 1 and held_out.issuperset(twice):
            held_out.remove(twice[-1])
    return Lexicon(
        tuple(word for word in words if word not in held_out),
        tuple(word for word in words if word in held_out),
        hashlib.sha256(data).hexdigest(),
    )


def consonants(rng: Random) -> str:
    """A string of 3 to 9 different consonants: nothing that a model has seen as a word."""
    return "".join(rng.sample("bcdfghjklmnpqrstvwxyz", rng.randint(3, 9)))


def _hash(word: str) -> bytes:
    return hashlib.sha256(word.encode()).digest()
