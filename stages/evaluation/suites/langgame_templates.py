"""How LangGame's questions are phrased; a part of the phrasings is kept for tests."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

NOUNS = (("word", "words"), ("option", "options"), ("choice", "choices"), ("option word", "option words"))
HELD_OUT_NOUNS = (("string", "strings"), ("option string", "option strings"))
ARTICLES = ("the", "the possible", "the available")


def phrase(tail: str, options: Sequence[str], rng: Random, *, held_out: bool) -> str:
    """The prompt, up to ``Answer:``. The continuation that is scored is one of ``options`` after a space, as they stand
    in the prompt.

    Args:
        tail: the end of the question, such as ``is the longest?``.
        held_out: phrase it as no training item is phrased: other nouns, and another clause for the options.
    """
    nouns = HELD_OUT_NOUNS if held_out else NOUNS
    question = f"{_head(nouns, rng)} {tail}"
    clause = f"{_clause(nouns, rng, held_out)} [{','.join(f' {option}' for option in options)}]."
    first, second = (question, clause) if rng.random() < 0.5 else (clause, question)
    return f"{first} {second} Answer:"


def _head(nouns: Sequence[tuple[str, str]], rng: Random) -> str:
    singular, plural = rng.choice(nouns)
    asking = rng.choice(("Which", "What"))
    heads = [f"{asking} {singular}", f"Which of {rng.choice(ARTICLES)} {plural}"]
    if nouns is NOUNS:
        heads.append(asking)
    return rng.choice(heads)


def _clause(nouns: Sequence[tuple[str, str]], rng: Random, held_out: bool) -> str:
    article, (_, plural) = rng.choice(ARTICLES), rng.choice(nouns)
    if held_out:
        return f"These are {article} {plural}:"
    return f"{article.capitalize()} {plural}{rng.choice((':', ' are:'))}"
