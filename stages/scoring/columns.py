"""From a model's forward pass to the columns of a shard.

Legend: B passes of a batch, T tokens (padded), R scored tokens, K most probable tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from losses.head_arithmetic import row_blocks
from losses.predictions import LinearHead
from stages.scoring.config import ScoreConfig
from stages.scoring.store import ShardWriter
from stages.scoring.teacher_text import Pass
from stages.stage import StageError
from stages.training.data.batch import SideBatch, collate, to_device
from stages.training.data.windows import Side, Window
from stages.training.models import ScoringModel


@dataclass(frozen=True)
class Layout:
    """Which columns a shard has.

    Attributes:
        number: numpy's name of the format of log-probabilities and hidden states.
        top_k: K; None for no such columns.
        layers: whose hidden states are kept, counted from 0.
        width: D.
    """

    number: str
    top_k: int | None
    layers: tuple[int, ...]
    width: int

    @classmethod
    def of(cls, config: ScoreConfig, layers: tuple[int, ...], width: int) -> Layout:
        """The columns that the options ask for."""
        return cls(config.number_format, config.top_k, layers, width)

    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Name -> shape of an entry and numpy's name of its type."""
        columns = {"label_logp": ((), self.number), "boundary_logp": ((), self.number)}
        if self.top_k is not None:
            columns |= {
                "top_ids": ((self.top_k,), "int32"),
                "top_logp": ((self.top_k,), self.number),
                "tail_logp": ((), self.number),
                "entropy": ((), self.number),
            }
        return columns | {f"hidden_{layer}": ((self.width,), self.number) for layer in self.layers}

    @property
    def entry_bytes(self) -> int:
        """Bytes of one entry, its byte length included."""
        return 1 + sum(int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in self.shapes().values())


def open_columns(writer: ShardWriter, layout: Layout) -> dict[str, np.ndarray]:
    """The shard's columns, to be filled."""
    return {name: writer.column(name, shape, kind) for name, (shape, kind) in layout.shapes().items()}


@torch.inference_mode()
def score_passes(
    model: ScoringModel, passes: Sequence[Pass], layout: Layout, columns: Mapping[str, np.ndarray]
) -> None:
    """Run the model over ``passes`` and write what it tells into ``columns``.

    Raises:
        StageError: a score is not a number, or a hidden state is too large for the format.
    """
    batch = to_device(collate([_window(each) for each in passes]).student, model.model.device)
    signals = model.score(batch)
    rows, entries = _rows_and_entries(passes, batch)
    label = signals.label_logp.masked_fill(~batch.scored, torch.nan)
    values = {"label_logp": label.flatten()[rows], "boundary_logp": signals.boundary_logp.flatten()[rows]}
    if layout.top_k is not None:
        values |= _most_probable(signals.head.at(rows), layout.top_k)
    values |= {f"hidden_{layer}": signals.layers[layer].flatten(0, 1)[rows] for layer in layout.layers}
    _check(values, batch, rows)
    for name, value in values.items():
        stored = value.to("cpu", torch.float32 if value.is_floating_point() else value.dtype).numpy()
        columns[name][entries] = stored.astype(columns[name].dtype)
        if name.startswith("hidden_") and not np.isfinite(columns[name][entries]).all():
            raise StageError(
                f"hidden states of up to {abs(stored).max():.3g} do not fit into float16; use number_format: float32"
            )


def _window(each: Pass) -> Window:
    """A pass as the engine's window, each new token a chunk of its own: it is scored, and the boundary after it."""
    places = np.arange(len(each.ids))
    chunk = np.where(places >= each.context, places, -1)
    side = Side(ids=each.ids, chunk=chunk, lengths=np.zeros_like(each.ids))
    return Window(student=side, teacher=None, num_chunks=len(each.ids))


def _rows_and_entries(passes: Sequence[Pass], batch: SideBatch) -> tuple[Tensor, np.ndarray]:
    """Positions [R] in [B * T] of the tokens that the passes score, and their entries."""
    width = batch.ids.shape[1]
    rows = [row * width + np.arange(each.context, len(each.ids)) for row, each in enumerate(passes)]
    entries = [each.first + np.arange(len(each.ids) - each.context) for each in passes]
    return torch.from_numpy(np.concatenate(rows)).to(batch.ids.device), np.concatenate(entries)


def _most_probable(head: LinearHead, k: int) -> dict[str, Tensor]:
    """The ``k`` most probable tokens of R positions, the log-mass of all others, and the entropy."""
    blocks = []
    # The logits, the log-probabilities, their exponentials, and what sorting needs.
    for rows in row_blocks(len(head), 5 * head.vocab_size * head.dtype.itemsize, head.hidden.device):
        logp = head.log_probs(rows)
        best = logp.topk(k, dim=1)
        entropy = torch.special.entr(logp.exp()).sum(1)
        rest = logp.scatter(1, best.indices, -torch.inf).logsumexp(1)
        blocks.append((best.indices.int(), best.values, rest, entropy))
    columns = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return dict(zip(("top_ids", "top_logp", "tail_logp", "entropy"), columns, strict=True))


def _check(values: Mapping[str, Tensor], batch: SideBatch, rows: Tensor) -> None:
    scored = batch.scored.flatten()[rows]
    if not (values["label_logp"][scored].isfinite().all() and values["boundary_logp"].isfinite().all()):
        raise StageError(
            "the teacher gives log-probabilities that are not finite: its weights are damaged, or dtype: bf16 is too "
            "coarse for it; try dtype: fp32"
        )
