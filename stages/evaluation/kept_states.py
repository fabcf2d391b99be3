"""What is kept of computed sequences, so that others can go on from it: hidden states, keys and values.

Legend: B sequences of a pass, T tokens of a sequence, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

Ids = tuple[int, ...]

_PROBE_TOLERANCE = 0.02  # of the largest hidden state; bf16 has 8 bits
_PROBE_PADS = 3  # tokens that nothing may look at, as in a pass over sequences of several lengths
_PROBE_NEW = 4


class Known(Protocol):
    """A sequence that others can go on from.

    Attributes:
        ids: its tokens.
        layers: keys and values [heads, T, width] of every layer; None where nothing is kept.
    """

    @property
    def ids(self) -> Ids: ...

    @property
    def layers(self) -> list[tuple[Tensor, Tensor]] | None: ...


class Kept(NamedTuple):
    """A sequence that was computed.

    Attributes:
        ids: its tokens, the start of the text among them.
        hidden: [T, D], final hidden states.
        layers: keys and values [heads, T, width] of every layer; None where the model keeps no such thing.
        cumulative: float64 [T + 1 - start], see ``Answer``.
    """

    ids: Ids
    hidden: Tensor
    layers: list[tuple[Tensor, Tensor]] | None
    cumulative: np.ndarray


class Row(NamedTuple):
    """A sequence to compute: ``shared`` tokens of ``base`` are known, ``suffix`` is not."""

    base: Known
    shared: int
    suffix: Ids

    def __len__(self) -> int:
        return self.shared + len(self.suffix)


class Computed(NamedTuple):
    """Hidden states of a row's suffix, and keys and values of all of it."""

    hidden: Tensor
    layers: list[tuple[Tensor, Tensor]] | None


def forward(model: nn.Module, rows: Sequence[Row], *, keep: bool) -> list[Computed]:
    """One pass of the model's body. Known tokens are padded on the left, new ones on the right, so that places are true
    distances.

    Args:
        keep: keys and values too, which rows that go on from a base need; see ``keeps_states``.
    """
    device = model.device
    known = max(row.shared for row in rows)
    suffixes = nn.utils.rnn.pad_sequence([torch.tensor(row.suffix) for row in rows], batch_first=True).to(device)
    width = suffixes.shape[1]
    shared = torch.tensor([row.shared for row in rows], device=device)
    cache = DynamicCache() if keep else None
    options = {"use_cache": False} if cache is None else {"past_key_values": cache, "use_cache": True}
    if known:
        for layer in range(len(next(row.base.layers for row in rows if row.shared))):
            cache.update(*(left_padded(rows, known, layer, side) for side in (0, 1)), layer)
        places = torch.arange(known + width, device=device)
        options["attention_mask"] = (places >= known - shared[:, None]).long()
        options["position_ids"] = shared[:, None] + torch.arange(width, device=device)
    hidden = model.base_model(input_ids=suffixes, **options).last_hidden_state
    return [
        Computed(
            hidden[index, : len(row.suffix)],
            None if cache is None else cut(cache, index, known - row.shared, known + len(row.suffix)),
        )
        for index, row in enumerate(rows)
    ]


def left_padded(rows: Sequence[Row], known: int, layer: int, side: int) -> Tensor:
    """Keys (side 0) or values (1) of the tokens that the rows share with their bases, [B, heads, known, width]."""
    any_layers = next(row.base.layers for row in rows if row.shared)
    padded = []
    for row in rows:
        states = (row.base.layers if row.shared else any_layers)[layer][side][:, : row.shared]
        padded.append(nn.functional.pad(states, (0, 0, known - row.shared, 0)))
    return torch.stack(padded)


def cut(cache: DynamicCache, index: int, start: int, end: int) -> list[tuple[Tensor, Tensor]]:
    """Keys and values [heads, T, width] of every layer at places ``start`` to ``end`` of one sequence of a pass."""
    return [(layer.keys[index, :, start:end], layer.values[index, :, start:end]) for layer in cache.layers]


def shared_start(first: Ids, second: Ids) -> int:
    """How many tokens two sequences begin with alike."""
    return next(
        (place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


@torch.inference_mode()
def keeps_states(model: nn.Module, probe: Sequence[int]) -> bool:
    """Whether a model goes on rightly from kept keys and values, which not every architecture has."""
    ids = torch.tensor([list(probe)], device=model.device)
    whole = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0, -_PROBE_NEW:]
    cache = DynamicCache()
    try:
        model.base_model(input_ids=ids[:, :-_PROBE_NEW], past_key_values=cache, use_cache=True)
        if not cache.layers or not all(type(layer) is DynamicLayer for layer in cache.layers):
            return False
        padded = DynamicCache()
        for number, layer in enumerate(cache.layers):
            keys, values = (nn.functional.pad(states, (0, 0, _PROBE_PADS, 0)) for states in (layer.keys, layer.values))
            padded.update(keys, values, number)
        mask = torch.ones(1, _PROBE_PADS + ids.shape[1], dtype=torch.long, device=model.device)
        mask[:, :_PROBE_PADS] = 0
        positions = torch.arange(ids.shape[1] - _PROBE_NEW, ids.shape[1], device=model.device)[None]
        again = model.base_model(
            input_ids=ids[:, -_PROBE_NEW:],
            past_key_values=padded,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
        ).last_hidden_state[0]
    except (TypeError, ValueError, AttributeError, RuntimeError, IndexError):
        return False
    return bool((again - whole).abs().max() <= _PROBE_TOLERANCE * whole.abs().max())
