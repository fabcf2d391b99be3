"""Windows -> batches: what a training step reads, as a function of (seed, epoch) alone.

Order and mixture never depend on the rank, the number of processes or the micro-batch size.

Legend: B windows, T tokens (padded), C chunks (padded).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from losses.chunks import shift_labels
from stages.stage import StageError
from stages.training.windows import Document, Side, Window


@dataclass(frozen=True)
class SideBatch:
    """Padded token arrays of one side.

    Attributes:
        ids: int64 [B, T]; padding holds id 0.
        attention: int64 [B, T]; 1 on tokens, 0 on padding.
        labels: int64 [B, T]; the token to predict from position t, that is ``ids[:, t + 1]``; -100 where there is none.
        chunk: int64 [B, T]; the token's chunk, -1 for padding and for tokens of no chunk.
        scored: bool [B, T]; True where the token's own log-probability exists (never at index 0).
        lengths: int64 [B, T]; bytes of text that the token stands for, 0 for special tokens and padding.
    """

    ids: Tensor
    attention: Tensor
    labels: Tensor
    chunk: Tensor
    scored: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class Batch:
    """One micro-batch of windows, both sides aligned by chunk number."""

    student: SideBatch
    teacher: SideBatch | None
    num_chunks: int


def generator(seed: int, *stream: int) -> np.random.Generator:
    """A counter-based random generator that depends on ``seed`` and the numbers of ``stream`` only."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *stream])))


def collate(windows: Sequence[Window]) -> Batch:
    """Pad windows into one micro-batch."""
    teachers = [window.teacher for window in windows if window.teacher is not None]
    return Batch(
        student=_pad([window.student for window in windows]),
        teacher=_pad(teachers) if teachers else None,
        num_chunks=max(window.num_chunks for window in windows),
    )


def _pad(sides: Sequence[Side]) -> SideBatch:
    length = max(len(side.ids) for side in sides)
    ids = torch.zeros(len(sides), length, dtype=torch.int64)
    attention, chunk, lengths = torch.zeros_like(ids), torch.full_like(ids, -1), torch.zeros_like(ids)
    for row, side in enumerate(sides):
        ids[row, : len(side.ids)] = torch.from_numpy(side.ids)
        attention[row, : len(side.ids)] = 1
        chunk[row, : len(side.ids)] = torch.from_numpy(side.chunk)
        lengths[row, : len(side.ids)] = torch.from_numpy(side.lengths)
    scored = chunk >= 0
    scored[:, 0] = False
    return SideBatch(ids, attention, shift_labels(ids, scored), chunk, scored, lengths)


class WindowStream:
    """An endless stream of windows whose position is two numbers, so that a resumed run reads on exactly.

    Args:
        documents: the training documents.
        windows_of: (document, its number, epoch) -> its windows.
        seed: seeds the order.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        windows_of: Callable[[Document, int, int], list[Window]],
        seed: int,
    ) -> None:
        self._documents = documents
        self._windows_of = windows_of
        self._seed = seed
        self._loaded_epoch = -1
        self._epoch_windows: list[Window] = []
        self.epoch = 0
        self.cursor = 0

    def windows_in_epoch(self, epoch: int) -> list[Window]:
        """All windows of ``epoch`` in the order in which they are read."""
        if epoch != self._loaded_epoch:
            draw = generator(self._seed, epoch)
            windows: list[Window] = []
            for number, document in enumerate(self._documents):
                # A weight of 1.5 reads a document once in every epoch and once more in about half of them.
                repeats = int(document.weight) + int(draw.random() < document.weight % 1)
                if repeats:
                    windows += self._windows_of(document, number, epoch) * repeats
            self._epoch_windows = [windows[index] for index in draw.permutation(len(windows))]
            self._loaded_epoch = epoch
        return self._epoch_windows

    def take(self, count: int) -> list[Window]:
        """The next ``count`` windows.

        Raises:
            StageError: one whole epoch holds fewer windows than a batch.
        """
        available = len(self.windows_in_epoch(self.epoch))
        if not available:
            raise StageError(
                "there is nothing to learn from in data.train: no text that both tokenizers spell alike; of "
                "conversations, only the messages that train_on names are learned"
            )
        if available < count:
            raise StageError(
                f"the training text makes only {available} windows, but one batch needs {count} (batch_windows): "
                "add text, or lower batch_windows or window_tokens"
            )
        taken: list[Window] = []
        while len(taken) < count:
            windows = self.windows_in_epoch(self.epoch)
            more = windows[self.cursor : self.cursor + count - len(taken)]
            taken += more
            self.cursor += len(more)
            if self.cursor >= len(windows):
                self.epoch, self.cursor = self.epoch + 1, 0
        return taken

    def state(self) -> dict[str, int]:
        """Position of the next window."""
        return {"epoch": self.epoch, "cursor": self.cursor}

    def restore(self, state: dict[str, int]) -> None:
        """Continue from a position that ``state`` gave."""
        self.epoch, self.cursor = state["epoch"], state["cursor"]


def micro_batches(windows: Sequence[Window], micro: int, rank: int, world_size: int) -> Iterator[Batch]:
    """This rank's share of one global batch, in micro-batches of ``micro`` windows.

    Windows are sorted by length first: their order inside a step changes nothing but the padding.
    """
    mine = sorted(windows, key=lambda window: -len(window.student.ids))[rank::world_size]
    for start in range(0, len(mine), micro):
        yield collate(mine[start : start + micro])
