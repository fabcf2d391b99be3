"""Reads a model's answers: right or wrong, tied, or not to be had."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.evaluation.suites.questions import Question, Suite

TIE = 1e-6
"""Relative difference of costs below which options are tied: the noise of float32 between batches, and far below what
models tell apart."""

ACCURACY, ACCURACY_BYTES, EXACT_MATCH = "accuracy", "accuracy_bytes", "exact_match"


@dataclass(frozen=True)
class Mark:
    """One answer.

    Attributes:
        credit: 1 if it is right; an equal share where several options are the best and the right one is among them, so
            that a model without preference scores chance; else 0.
        answer: as it is shown.
        tied: several options are the best.
        problem: why there is no answer. It counts as wrong.
    """

    credit: float
    answer: str
    tied: bool = False
    problem: str | None = None


def choose(question: Question, nats: Sequence[float | None], problems: Sequence[str | None], *, per_byte: bool) -> Mark:
    """The option with the fewest nats, or with the fewest per UTF-8 byte."""
    found = [(problem, option) for problem, option in zip(problems, question.options, strict=True) if problem]
    if found:
        problem, option = found[0]
        return Mark(0.0, "", problem=f"{problem}: {option.strip()!r}")
    sizes = [len(option.encode()) if per_byte else 1 for option in question.options]
    costs = [cost / size for cost, size in zip(nats, sizes, strict=True)]
    least = min(costs)
    best = [place for place, cost in enumerate(costs) if math.isclose(cost, least, rel_tol=TIE)]
    answer = " = ".join(question.options[place].strip() for place in best)
    return Mark(1 / len(best) if question.gold in best else 0.0, answer, tied=len(best) > 1)


def read(suite: Suite, question: Question, text: str | None) -> Mark:
    """What the model wrote; right if it reads like the right answer."""
    if text is None:
        return Mark(0.0, "", problem="no_answer: the prompt is too long for the model, or not to be spelled by it")
    return Mark(float(suite.read(question, text) == suite.read(question, question.answer)), text.strip())


def measures(suite: Suite) -> tuple[str, ...]:
    """What is measured: accuracy per byte only where the options of a question differ in bytes."""
    lengths = any(len({len(option.encode()) for option in question.options}) > 1 for question in suite.questions)
    choice = "choice" in suite.forms
    wanted = {ACCURACY: choice, ACCURACY_BYTES: choice and lengths, EXACT_MATCH: "generation" in suite.forms}
    return tuple(measure for measure, is_wanted in wanted.items() if is_wanted)


def marks(suite: Suite, answers: Mapping[str, Any]) -> dict[str, list[Mark]]:
    """Measure -> one mark a question, of what ``asking.ask`` gave."""
    found: dict[str, list[Mark]] = {}
    for measure in measures(suite):
        if measure == EXACT_MATCH:
            pairs = zip(suite.questions, answers["written"], strict=True)
            found[measure] = [read(suite, question, text) for question, text in pairs]
        else:
            asked = zip(suite.questions, answers["nats"], answers["problems"], strict=True)
            found[measure] = [choose(*one, per_byte=measure == ACCURACY_BYTES) for one in asked]
    return found


def right_answer_nats(suite: Suite, answers: Mapping[str, Any]) -> list[float | None]:
    """-log p(right answer | prompt) of every question; None where the model's tokens do not give it."""
    places = [question.gold if "choice" in suite.forms else 0 for question in suite.questions]
    return [nats[place] for nats, place in zip(answers["nats"], places, strict=True)]


def baselines(suite: Suite) -> dict[str, float]:
    """Accuracy of choosing without reading the question: at random (``chance``), always the ``first`` option, the
    ``shortest`` or the ``longest`` in bytes, at random where several are."""
    found = {"chance": suite.chance, "first": 0.0, "shortest": 0.0, "longest": 0.0}
    for question in suite.questions:
        sizes = [len(option.encode()) for option in question.options]
        found["first"] += (question.gold == 0) / len(suite.questions)
        for name, size in (("shortest", min(sizes)), ("longest", max(sizes))):
            if sizes[question.gold] == size:
                found[name] += 1 / sizes.count(size) / len(suite.questions)
    return found
