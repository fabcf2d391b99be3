"""A teacher that is known by its scores alone: they are read from a store instead of computed.

Legend: B rows, T tokens (padded), K most probable tokens, D width of the hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer

from alignment.byte_view import ByteView
from alignment.chat import special_roles_and_turns
from losses.chunks import chunk_end_mask
from losses.predictions import TopKPredictions
from stages.scoring.manifest import TOKENIZER, Manifest
from stages.scoring.store import ScoreStore
from stages.stage import StageError
from stages.training.data.batch import Batch, SideBatch
from stages.training.models import Reads, Signals
from stages.training.objectives import ModelFacts, Term


@dataclass(frozen=True)
class CachedTeacher:
    """Reads the scores of every micro-batch from a store.

    Attributes:
        store: the scores.
        reads: what the objectives take beside the most probable tokens.
        top_k: K, how many of these they see; 0 for none.
    """

    store: ScoreStore
    reads: Reads
    top_k: int

    @classmethod
    def of(cls, store: ScoreStore, terms: Sequence[Term], top_k: int) -> Self:
        """The teacher of some terms of a loss.

        Raises:
            StageError: an objective reads a layer whose hidden states are not in the store.
        """
        manifest = store.manifest
        reads = Reads()
        for term in terms:
            wanted = term.objective.teacher_reads
            held = [layer for layer in wanted.layers if _layer(manifest, layer) in manifest.hidden_layers]
            if missing := [layer for layer in wanted.layers if layer not in held]:
                raise StageError(
                    f"{term.name} reads the teacher's hidden states of layer {missing[0]}, but the scores hold those "
                    f"of {', '.join(map(str, manifest.hidden_layers)) or 'none'}: add it to hidden_states of the stage "
                    "that scores"
                )
            reads |= wanted
        return cls(store, reads, top_k)

    @property
    def network(self) -> None:
        """No model runs."""
        return None

    def score(self, batch: Batch) -> Signals:
        """What the store holds about the teacher's side of a micro-batch."""
        side = batch.teacher
        label = boundary = None
        if self.reads.label or self.reads.boundary:
            label = self._column("label_logp", side).masked_fill(~side.scored, 0.0)
        if self.reads.boundary:
            ends = chunk_end_mask(side.chunk, batch.num_chunks)
            boundary = self._column("boundary_logp", side).masked_fill(~ends, torch.nan)
        manifest = self.store.manifest
        return Signals(
            label_logp=label,
            boundary_logp=boundary,
            hidden=None,
            layers={layer: self._column(f"hidden_{_layer(manifest, layer)}", side) for layer in self.reads.layers},
            head=None,
            predictions=self._predictions(side) if self.top_k else None,
        )

    def _column(self, name: str, side: SideBatch) -> Tensor:
        """float32 [B, T, ...]; 0 on padding."""
        values = _read(self.store, name, side, np.float32(0))
        return torch.from_numpy(values.astype(np.float32, copy=False)).to(side.ids.device, non_blocking=True)

    def _predictions(self, side: SideBatch) -> TopKPredictions:
        ids = _read(self.store, "top_ids", side, np.arange(self.store.manifest.top_k))
        logp = _read(self.store, "top_logp", side, -np.inf)
        ids, logp = ids[..., : self.top_k].astype(np.int64), logp[..., : self.top_k].astype(np.float32)
        device = side.ids.device
        return TopKPredictions(
            torch.from_numpy(ids).to(device, non_blocking=True).flatten(0, 1),
            torch.from_numpy(logp).to(device, non_blocking=True).flatten(0, 1),
            self.store.manifest.vocab_size,
        )


def cached_facts(store: ScoreStore) -> ModelFacts | None:
    """What objectives may know of a teacher without its weights; None where its tokenizer is not at hand."""
    manifest = store.manifest
    if manifest.tokenizer is None:
        return None
    directory = store.directory / TOKENIZER
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return ModelFacts(
        directory=directory,
        view=ByteView.from_tokenizer(tokenizer),
        roles=special_roles_and_turns(tokenizer),
        width=manifest.teacher.width,
        layers=manifest.teacher.layers,
        output_weight=None,
    )


def _layer(manifest: Manifest, layer: int) -> int:
    """A layer's number, counted from 0, the embedding."""
    return layer % manifest.teacher.layers


def _read(store: ScoreStore, column: str, side: SideBatch, filler: np.ndarray | float) -> np.ndarray:
    """[B, T, ...]: a column at the entries of a batch; ``filler`` where there is none."""
    entries = np.full(tuple(side.ids.shape), -1, dtype=np.int64) if side.entries is None else side.entries
    there = entries >= 0
    found = store.read(column, entries[there])
    values = np.empty((*entries.shape, *found.shape[1:]), dtype=found.dtype)
    values[~there], values[there] = filler, found
    return values
