"""Scorers whose answers are known, and the strata of a suite."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from stages.evaluation.core import Problem, Request, TextScore, Watch, ignore


class Answering:
    """Says for each request what ``nats`` makes of it, or the problem, and writes what ``write`` makes of a prompt."""

    name = "answering"

    def __init__(
        self,
        nats: Callable[[Request], float | Problem],
        write: Callable[[str], str | None] = lambda prompt: "",
    ) -> None:
        self._nats = nats
        self._write = write
        self.asked: list[Request] = []
        self.limits: list[tuple[int, tuple[str, ...]]] = []

    def score(self, requests: Sequence[Request], watch: Watch = ignore) -> list[TextScore]:
        self.asked += requests
        found = [self._nats(request) for request in requests]
        watch(1.0)
        return [
            TextScore(math.nan, len(request.continuation.encode()), 0, False, value)
            if isinstance(value, str)
            else TextScore(value, len(request.continuation.encode()), 1, False)
            for request, value in zip(requests, found, strict=True)
        ]

    def generate(
        self, prompts: Sequence[str], *, max_bytes: int, stop: Sequence[str] = (), watch: Watch = ignore
    ) -> list[str | None]:
        self.limits.append((max_bytes, tuple(stop)))
        watch(1.0)
        return [self._write(prompt) for prompt in prompts]


def uniform(request: Request) -> float:
    """No preference at all."""
    return 7.0


def uniform_over_bytes(request: Request) -> float:
    """A uniform byte model: 8 bits a byte."""
    return 8 * math.log(2) * len(request.continuation.encode())
