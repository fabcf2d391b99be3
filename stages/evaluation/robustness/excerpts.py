"""Excerpts of held-out documents: whole words, spread over the domains, a function of the seed and the documents."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from stages.evaluation.windows import Document
from stages.generation.prompts import cut_prompt


@dataclass(frozen=True)
class Excerpt:
    """A piece of a document."""

    id: str
    domain: str
    text: str


def draws(*path: object) -> Random:
    """Random numbers that are a function of ``path`` alone: purpose, seed, document."""
    return Random("/".join(map(str, path)))


def in_turn(documents: Sequence[Document]) -> list[Document]:
    """All documents, one of every domain in turn."""
    domains: dict[str, list[Document]] = {}
    for document in documents:
        domains.setdefault(document.domain, []).append(document)
    rounds = itertools.zip_longest(*domains.values())
    return [document for of_round in rounds for document in of_round if document is not None]


def choose_excerpts(documents: Sequence[Document], count: int, size: int, *, purpose: str, seed: int) -> list[Excerpt]:
    """Up to ``count`` different excerpts of at most ``size`` UTF-8 bytes, the first of every document before a second
    one of any."""
    found: dict[str, Excerpt] = {}
    ordered = in_turn(documents)
    for round_ in range(-(-count // max(1, len(ordered)))):
        for document in ordered:
            if len(found) == count:
                break
            rng = draws(purpose, seed, document.id, round_)
            text = cut_prompt(_from_a_word(document.text, size, rng), size)
            found.setdefault(text, Excerpt(f"{document.id}/{round_}", document.domain, text))
    return [excerpt for excerpt in found.values() if excerpt.text.strip()]


def _from_a_word(text: str, size: int, rng: Random) -> str:
    """The text from a word that is drawn from those with ``size`` characters after them; all of a short text."""
    if len(text) <= size:
        return text
    start = rng.randrange(len(text) - size)
    # Where no word begins within reach, as in Chinese, any character will do.
    space = next((place for place in range(start, min(start + 40, len(text) - size)) if text[place].isspace()), None)
    return text[start:] if space is None else text[space:].lstrip()
