"""Puts a suite's questions to a model. What comes back is plain data, kept between attempts."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from stages.evaluation.core import Request, Scorer, TextScore, Watch, ignore
from stages.evaluation.suites.questions import Question, Suite

ROOM_BYTES = 8
"""What a model may write beyond the longest right answer of a batch. More cannot make an answer right."""
BATCH_STEP_BYTES = 16
"""Questions are written in batches of like length: right answers of up to 16, 32, … bytes."""


def ask(suite: Suite, scorer: Scorer, watch: Watch = ignore) -> dict[str, Any]:
    """A model's answers to all questions.

    Returns:
        ``questions``: the digest of what was asked; ``nats`` and ``problems``: of each question a list, one entry for
        each option, or for the right answer alone where nothing is chosen; nats are None where there is a problem;
        ``written``: what the model wrote after each prompt, None where it could not, or None for all if nothing is
        written.
    """
    writes = "generation" in suite.forms
    share = 0.5 if writes else 1.0
    offered = [continuations(suite, question) for question in suite.questions]
    requests = [
        Request(question.prompt, text)
        for question, texts in zip(suite.questions, offered, strict=True)
        for text in texts
    ]
    scores = iter(scorer.score(requests, lambda done: watch(share * done)))
    groups = [list(itertools.islice(scores, len(texts))) for texts in offered]
    return {
        "questions": suite.questions_digest,
        "nats": [[_nats(score) for score in group] for group in groups],
        "problems": [[score.problem for score in group] for group in groups],
        "written": _write(suite, scorer, lambda done: watch(share + (1 - share) * done)) if writes else None,
    }


def continuations(suite: Suite, question: Question) -> tuple[str, ...]:
    """What is scored after the question's prompt."""
    return question.options if "choice" in suite.forms else (question.answer,)


def _nats(score: TextScore) -> float | None:
    return score.nats if score.problem is None else None


def _write(suite: Suite, scorer: Scorer, watch: Watch) -> list[str | None]:
    """What the model writes after each prompt, up to the suite's ending."""
    batches: dict[int, list[int]] = defaultdict(list)
    for number, question in enumerate(suite.questions):
        size = len(question.answer.encode())
        batches[-(-size // BATCH_STEP_BYTES) * BATCH_STEP_BYTES].append(number)
    written: list[str | None] = [None] * len(suite.questions)
    done = 0
    for size, numbers in sorted(batches.items()):
        texts = scorer.generate(
            _prompts(suite.questions, numbers),
            max_bytes=size + ROOM_BYTES,
            stop=(suite.ending,),
            watch=_part(watch, done, len(numbers), len(suite.questions)),
        )
        for number, text in zip(numbers, texts, strict=True):
            written[number] = text
        done += len(numbers)
    return written


def _prompts(questions: Sequence[Question], numbers: Sequence[int]) -> list[str]:
    return [questions[number].prompt for number in numbers]


def _part(watch: Watch, done: int, count: int, total: int) -> Watch:
    """Progress of ``count`` of ``total`` questions after ``done`` of them, told as a share of all."""
    return lambda share: watch((done + share * count) / total)
