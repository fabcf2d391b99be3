"""An ideal token model where a Hugging Face one is expected, for exact answers in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from ideal_models import TokenChain

from stages.evaluation.exact_bytes.next_tokens import Answer, Group


class Rows(NamedTuple):
    """Log-probabilities [N, V]."""

    logp: torch.Tensor

    def log_probs(self, rows: slice) -> torch.Tensor:
        """A block of rows."""
        return self.logp[rows]


class IdealTokens:
    """A distribution of token sequences, with a share of its mass leaked to sequences that are never written.

    Args:
        leak: probability that the next token is any of the vocabulary, all alike.
    """

    def __init__(self, chain: TokenChain, *, leak: float = 0.0) -> None:
        self._chain = chain
        self._leak = leak

    def room(self, tokens: int) -> bool:
        """There is always room."""
        return True

    def behind(self, ids: Sequence[int]) -> IdealTokens:
        """What stands before a text changes nothing."""
        return self

    def log_probs(self, sequence: tuple[int, ...]) -> list[float]:
        """After one sequence."""
        size = self._chain.vocab_size
        known = (
            np.exp(self._chain.log_probs(sequence)) if self._chain.probability(sequence) else np.full(size, 1 / size)
        )
        with np.errstate(divide="ignore"):
            return np.log((1 - self._leak) * known + self._leak / size).tolist()

    def answer(self, groups: Sequence[Group], *, remember: bool = False) -> Iterator[Answer]:
        """See ``NextTokens``."""
        for main, sequences in groups:
            steps = [self.log_probs(main[:place])[token] for place, token in enumerate(main)]
            rows = [self.log_probs(tuple(sequence)) for sequence in sequences]
            yield Answer(np.cumsum([0.0, *steps]), Rows(torch.tensor(rows, dtype=torch.float64)))
