"""Byte-level distillation through byte heads on the student."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from alignment.byte_view import ByteView
from alignment.prefix_tree import byte_tree
from alignment.table_cache import cached_arrays
from losses.byte_level import (
    BYTES,
    StudentBytes,
    TextBytes,
    byte_level_loss,
    next_byte_targets,
    teacher_contexts,
    text_bytes,
)
from losses.coverings import SymbolTree
from losses.output import LossOutput, ratio
from stages.objectives.byte_level import ByteLevelOptions
from stages.training.data.batch import Batch
from stages.training.models import Reads, Signals
from stages.training.objectives.base import Pair
from stages.training.objectives.projection import project

_INITIAL_STD = 0.02


class ByteLevel:
    """Byte heads at the final hidden states that predict the student's tokens, one byte of a token a unit."""

    teacher_reads = Reads(label=True)
    student_reads = Reads()

    def __init__(self, options: ByteLevelOptions, pair: Pair) -> None:
        self._options = options
        self.auxiliary = _byte_heads(pair.student.width, options.heads, pair.seed)
        teacher = pair.teacher.view
        arrays = cached_arrays(pair.cache, "bytes-1", teacher.fingerprint, lambda: byte_tree(teacher).arrays())
        self._tree = SymbolTree(**{name: torch.from_numpy(array) for name, array in arrays.items()})
        self._teacher_lengths = torch.from_numpy(teacher.byte_lengths.astype(np.int64))
        self._spelling = _spelling(pair.student.view)

    def statistics(self, batch: Batch, teacher: Signals | None) -> Tensor:
        self._move(batch.student.ids.device)
        _, units = self._units(batch)
        return torch.tensor([len(units)], dtype=torch.float64, device=units.device)

    def loss(self, batch: Batch, teacher: Signals | None, student: Signals, statistics: Tensor) -> LossOutput:
        self._move(batch.student.ids.device)
        text, units = self._units(batch)
        contexts = teacher_contexts(
            batch.teacher, batch.student, batch.num_chunks, teacher.label_logp, self._teacher_lengths
        )
        logits = self._logits(student.hidden, text.token[units], text.place[units])
        loss = byte_level_loss(
            logits,
            text.byte[units],
            next_byte_targets(teacher.predictions, self._tree, contexts, text.byte, units, logits.dtype),
            cross_entropy_weight=self._options.cross_entropy_weight,
            kl_weight=self._options.kl_weight,
        )
        known = (text.byte < BYTES).sum()
        return loss._replace(metrics=loss.metrics | {"head_coverage": ratio(loss.count, known)})

    def _units(self, batch: Batch) -> tuple[TextBytes, Tensor]:
        """The text's bytes, and which of them have a head."""
        text = text_bytes(batch.teacher, batch.student, batch.num_chunks, self._spelling)
        has_head = (text.byte < BYTES) & (text.place < self._options.heads)
        return text, has_head.nonzero().squeeze(1)

    def _logits(self, hidden: Tensor, token: Tensor, place: Tensor) -> Tensor:
        """Logits [N, 256] of the heads of N bytes, from hidden states [B, T, D]."""
        tokens, index = token.unique_consecutive(return_inverse=True)
        logits = project(hidden.flatten(0, 1).index_select(0, tokens - 1), self.auxiliary)
        chosen = logits.view(-1, BYTES).index_select(0, index * self._options.heads + place)
        return chosen.to(torch.promote_types(chosen.dtype, torch.float32))

    def _move(self, device: torch.device) -> None:
        self._tree = self._tree.to(device)
        self._teacher_lengths = self._teacher_lengths.to(device)
        self._spelling = StudentBytes(*(array.to(device) for array in self._spelling))


def _byte_heads(width: int, heads: int, seed: int) -> nn.Linear:
    """All heads as one matrix: one product, and one module for ZeRO-3 to gather."""
    linear = nn.utils.skip_init(nn.Linear, width, heads * BYTES)
    nn.init.normal_(linear.weight, std=_INITIAL_STD, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(linear.bias)
    return linear


def _spelling(view: ByteView) -> StudentBytes:
    spelled = [view.token_bytes(token) or b"" for token in range(view.vocab_size)]
    data = np.frombuffer(b"".join(spelled), np.uint8).astype(np.int64)
    return StudentBytes(torch.tensor(np.cumsum([0, *map(len, spelled)])), torch.from_numpy(data))
