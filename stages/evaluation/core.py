"""What every evaluation asks of a model: nats for a text after a context, and text after a prompt.

Everything here is in text, bytes and nats, never in tokens, so that models of different tokenizers, byte models and
ensembles answer the same questions (evaluation.md §16). Who answers is a ``Scorer``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, get_args

Problem = Literal["empty", "crosses_boundary", "too_long", "not_representable", "no_start"]
"""Why a request has no number: nothing to score; a token spans context and continuation, so that no token's
log-probability is the continuation's; more tokens than the model has positions; text that the tokenizer changes; no
context, and no token of the tokenizer's that could begin a text."""

Ability = Literal["score_texts", "score_continuations", "generate"]
"""What a section asks of a model and a failed check of the preflight denies it: nats of whole held-out documents; nats
of a continuation after a context; text after a prompt."""

ABILITIES: frozenset[Ability] = frozenset(get_args(Ability))

Watch = Callable[[float], None]
"""Told the share of the work done, in [0, 1]; may raise StageInterrupted."""


class Request(NamedTuple):
    """Score ``continuation`` after ``context``, which may be empty."""

    context: str
    continuation: str


@dataclass(frozen=True)
class TextScore:
    """What a model makes of one request.

    Attributes:
        nats: -log p(continuation | context); NaN if there is a ``problem``.
        bytes: UTF-8 bytes of the continuation.
        tokens: tokens scored; 0 if there is a ``problem``.
        greedy: the continuation is what greedy decoding writes.
        problem: why there is no number.
    """

    nats: float
    bytes: int
    tokens: int
    greedy: bool
    problem: Problem | None = None

    @property
    def bits_per_byte(self) -> float:
        """NaN if there is a ``problem``."""
        return self.nats / (math.log(2) * self.bytes) if self.problem is None else math.nan


class Scorer(Protocol):
    """A model that can be evaluated: of tokens, of bytes, or several models as one."""

    name: str

    def score(self, requests: Sequence[Request], watch: Watch = ...) -> list[TextScore]:
        """One score a request, in order. A request that cannot be answered has a ``problem``; none is left out."""

    def generate(
        self, prompts: Sequence[str], *, max_bytes: int, stop: Sequence[str] = (), watch: Watch = ...
    ) -> list[str | None]:
        """Greedy continuations: at most ``max_bytes`` UTF-8 bytes each, whole characters, cut before the first string
        of ``stop`` or at the model's end of text. None where the prompt leaves no room in the model's context, or its
        tokenizer cannot spell it: to be counted, never taken for an empty answer."""


def ignore(share: float) -> None:
    """A ``Watch`` that does nothing."""
