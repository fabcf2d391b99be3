"""Token by token from a causal language model: a batch of prompts, each drawn by random numbers of its own.

Legend: B prompts, N new tokens, V ids of the tokenizer (the model may have more logits).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from alignment.byte_view import ByteView
from alignment.token_table import TokenKind
from stages.stage import StageError


@dataclass(frozen=True)
class Sampling:
    """From which tokens the next one is drawn.

    Attributes:
        temperature: divides the logits; 0 takes the most probable token.
        top_p: draw from the fewest tokens that hold this mass at least.
        top_k: draw from so many of the most probable tokens; None for all.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None


@torch.no_grad()
def continue_rows(
    model: nn.Module,
    view: ByteView,
    rows: Sequence[Sequence[int]],
    draws: np.ndarray,
    sampling: Sampling,
    *,
    name: str,
    observers: Sequence[LogitsProcessor] = (),
    stopping: StoppingCriteriaList | None = None,
    synced: bool = False,
) -> list[list[int]]:
    """Continue every row until a special token or for N tokens.

    What a row gets depends on the model, its own ids and its own draws: its neighbours add nothing but the rounding of
    padded matrix products.

    Args:
        model: a Hugging Face causal language model in evaluation mode; its own settings for generation are put aside
            meanwhile.
        view: its tokenizer.
        rows: token ids of the B prompts, none of them empty.
        draws: float64 [B, N] in [0, 1), one for every token to write; a temperature of 0 needs their number only.
        sampling: from which tokens.
        name: what messages call the model.
        observers: see the logits before a token is chosen, and return them unchanged.
        stopping: may end the writing of all rows.
        synced: go on until every process is done, as one that holds a part of the parameters must, also with an error.

    Returns:
        The new ids of each row, with the special token that ended it, if one did.

    Raises:
        StageError: the logits are not finite.
    """
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    attention = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    device = model.device
    real = torch.from_numpy(view.kinds != TokenKind.MISSING).to(device)
    drawn = None if sampling.temperature == 0 else torch.from_numpy(draws).to(device)
    chosen = ChosenToken(real, width, drawn, sampling, name, at_once=not synced)
    special = np.flatnonzero(view.kinds == TokenKind.SPECIAL).tolist()
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=draws.shape[1], eos_token_id=special or None, pad_token_id=0, use_cache=True
    )
    with _generation_config(model, settings):
        written = model.generate(
            ids.to(device),
            attention_mask=attention.to(device),
            logits_processor=LogitsProcessorList([*observers, chosen]),
            stopping_criteria=stopping,
            synced_gpus=synced,
        )
    if chosen.problem is not None:
        raise chosen.problem
    return [_until_end(row, view) for row in written[:, width:].tolist()]


@contextmanager
def _generation_config(model: nn.Module, settings: GenerationConfig) -> Iterator[None]:
    """``settings`` in place of the model's own, which would be mixed into them, and which are published with it."""
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own


def _until_end(row: Sequence[int], view: ByteView) -> list[int]:
    """The ids up to and with the first special token: what follows is padding."""
    for index, token in enumerate(row):
        if view.kinds[token] == TokenKind.SPECIAL:
            return list(row[: index + 1])
    return list(row)


class Stopping(StoppingCriteria):
    """Ends the writing of all rows when the stage is asked to stop.

    Attributes:
        stopped: whether it did.
    """

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop
        self.stopped = False

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        self.stopped = self.stopped or self._should_stop()
        return torch.full((len(input_ids),), self.stopped, device=input_ids.device)


class ChosenToken(LogitsProcessor):
    """Leaves one token at the position to write, so that greedy search takes it: the one that a row's draw falls on.

    Args:
        real: bool [V], ids that the tokenizer has; no other one is ever chosen.
        prompt_tokens: length of the padded prompts.
        draws: float64 [B, N] in [0, 1), one for every token to write; None leaves the most probable one.
        sampling: from which tokens.
        name: what messages call the model.
        at_once: logits that are not finite are an error where they appear; else they are only noted, and writing goes
            on with any token.

    Attributes:
        problem: what was noted.
    """

    def __init__(
        self,
        real: Tensor,
        prompt_tokens: int,
        draws: Tensor | None,
        sampling: Sampling,
        name: str = "the model",
        at_once: bool = True,
    ) -> None:
        self.problem: StageError | None = None
        self._real = real
        self._prompt_tokens = prompt_tokens
        self._draws = draws
        self._sampling = sampling
        self._name = name
        self._at_once = at_once

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits [B, V or more] with all but the allowed ones at -inf.

        Raises:
            StageError: a logit is NaN or infinite, as of a model with damaged weights.
        """
        if not scores[:, : len(self._real)].isfinite().all():
            self.problem = StageError(f"{self._name}'s logits are not finite: its weights are damaged")
            if self._at_once:
                raise self.problem
            scores = torch.zeros_like(scores)
        real = nn.functional.pad(self._real, (0, scores.shape[1] - len(self._real)))
        scores = scores.masked_fill(~real, -torch.inf)
        if self._draws is None:
            return scores
        probabilities = (scores.double() / self._sampling.temperature).softmax(-1)
        if self._sampling.top_k is not None:
            probabilities = _most_probable(probabilities, self._sampling.top_k)
        if self._sampling.top_p < 1:
            probabilities = _nucleus(probabilities, self._sampling.top_p)
        # In the order of ids, which rounding cannot change as it can that of nearly equal probabilities.
        cumulative = probabilities.cumsum(-1)
        draw = self._draws[:, input_ids.shape[1] - self._prompt_tokens, None]
        chosen = torch.searchsorted(cumulative, draw * cumulative[:, -1:], right=True)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


def _most_probable(probabilities: Tensor, count: int) -> Tensor:
    """``probabilities [B, V]`` with 0 outside the ``count`` largest, as shares of what is left."""
    if count >= probabilities.shape[1]:
        return probabilities
    values, ids = probabilities.topk(count, dim=-1)
    return torch.zeros_like(probabilities).scatter(1, ids, values / values.sum(-1, keepdim=True))


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """``probabilities [B, V]`` with 0 outside the fewest tokens that hold ``top_p`` at least."""
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    kept = ordered.cumsum(-1) - ordered < top_p
    return probabilities * torch.zeros_like(kept).scatter(1, order, kept)
