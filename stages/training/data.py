"""Documents -> windows -> batches: what a training step reads, as a function of (seed, epoch) alone.

A *window* is a run of one document's tokens that starts and ends at byte boundaries both tokenizers have, so that no
chunk is cut. Order and mixture never depend on the rank, the number of processes or the micro-batch size.

Legend: B windows, T tokens (padded), C chunks (padded).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alignment.byte_view import ByteView, Encoding, InexactEncoding
from alignment.spans import align
from losses.chunks import shift_labels
from stages.stage import StageError


@dataclass(frozen=True)
class Document:
    """One text of the training data, with the weight of the set it comes from."""

    id: str
    text: str
    weight: float


@dataclass(frozen=True)
class Side:
    """One tokenizer's view of a window: ``ids`` int64 [T] and ``chunk`` int64 [T], -1 where a token has no chunk."""

    ids: np.ndarray
    chunk: np.ndarray


@dataclass(frozen=True)
class Window:
    """A piece of a document in one or two tokenizations; without a teacher, ``teacher`` is None."""

    student: Side
    teacher: Side | None
    num_chunks: int


@dataclass(frozen=True)
class SideBatch:
    """Padded token arrays of one side.

    Attributes:
        ids: int64 [B, T]; padding holds id 0.
        attention: int64 [B, T]; 1 on tokens, 0 on padding.
        labels: int64 [B, T]; the token to predict from position t, that is ``ids[:, t + 1]``; -100 where there is none.
        chunk: int64 [B, T]; the token's chunk, -1 for padding and for tokens of no chunk.
        scored: bool [B, T]; True where the token's own log-probability exists (never at index 0).
    """

    ids: Tensor
    attention: Tensor
    labels: Tensor
    chunk: Tensor
    scored: Tensor


@dataclass(frozen=True)
class Batch:
    """One micro-batch of windows, both sides aligned by chunk number."""

    student: SideBatch
    teacher: SideBatch | None
    num_chunks: int


def read_documents(directory: Path) -> list[Document]:
    """The documents of a DocumentsArtifact, in file order."""
    with (directory / "documents.jsonl").open(encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    return [Document(record["id"], record["text"], float(record["weight"])) for record in records]


def encode(view: ByteView, document: Document) -> Encoding:
    """``document`` in ``view``'s tokens.

    Raises:
        StageError: the tokenizer does not reproduce the document's bytes, so nothing in it could be aligned.
    """
    try:
        return view.encode(document.text)
    except InexactEncoding as error:
        raise StageError(f"document {document.id}: {error}") from None


def generator(seed: int, *stream: int) -> np.random.Generator:
    """A counter-based random generator that depends on ``seed`` and the numbers of ``stream`` only."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *stream])))


def distillation_windows(document: Document, teacher: ByteView, student: ByteView, window_tokens: int) -> list[Window]:
    """Cut one document into aligned windows of at most ``window_tokens`` tokens on either side.

    A chunk longer than a window ends the window before it and is left out, as is a window without a chunk to score:
    without a special token before it, a window's first token is context alone, and its chunk with it. The text after
    the last common boundary belongs to no window. Leading special tokens that a tokenizer adds by itself are put
    before each window.
    """
    teacher_code, student_code = encode(teacher, document), encode(student, document)
    chunks = align(
        teacher_code.byte_ends,
        student_code.byte_ends,
        teacher_special=teacher_code.special,
        student_special=student_code.special,
    )
    teacher_starts = _chunk_starts(chunks.teacher_chunk, chunks.num_chunks)
    student_starts = _chunk_starts(chunks.student_chunk, chunks.num_chunks)
    teacher_room = window_tokens - len(teacher.prefix_ids)
    student_room = window_tokens - len(student.prefix_ids)
    fewest = 1 if teacher.prefix_ids and student.prefix_ids else 2
    windows, first = [], 0
    while first < chunks.num_chunks:
        last = min(
            int(np.searchsorted(teacher_starts, teacher_starts[first] + teacher_room, side="right")) - 1,
            int(np.searchsorted(student_starts, student_starts[first] + student_room, side="right")) - 1,
        )
        if last - first < fewest:
            first = max(last, first + 1)
            continue
        windows.append(
            Window(
                student=_side(student, student_code.ids, chunks.student_chunk, student_starts, first, last),
                teacher=_side(teacher, teacher_code.ids, chunks.teacher_chunk, teacher_starts, first, last),
                num_chunks=last - first,
            )
        )
        first = last
    return windows


def _chunk_starts(chunk: np.ndarray, num_chunks: int) -> np.ndarray:
    """Index of the first token of every chunk, and one past the last token of the last chunk: int64 [C + 1]."""
    tokens = np.flatnonzero(chunk >= 0)
    starts = tokens[np.searchsorted(chunk[tokens], np.arange(num_chunks))]
    return np.append(starts, tokens[-1] + 1 if len(tokens) else 0)


def _side(view: ByteView, ids: np.ndarray, chunk: np.ndarray, starts: np.ndarray, first: int, last: int) -> Side:
    prefix = np.asarray(view.prefix_ids, dtype=np.int64)
    span = slice(starts[first], starts[last])
    return Side(
        ids=np.concatenate([prefix, ids[span].astype(np.int64)]),
        chunk=np.concatenate([np.full(len(prefix), -1), chunk[span].astype(np.int64) - first]),
    )


def plain_windows(ids: np.ndarray, prefix: Sequence[int], window_tokens: int) -> list[Window]:
    """Cut the token ids of one document into windows for next-token training; each token is a chunk of its own.

    Consecutive windows share one token, the last of one being the context of the next, so that every token but the
    document's first is predicted once.
    """
    room = window_tokens - len(prefix)
    step = room if prefix else room - 1
    windows = []
    for start in range(0, len(ids), step):
        piece = ids[start : start + room].astype(np.int64)
        if len(piece) + len(prefix) < 2:
            continue
        chunk = np.concatenate([np.full(len(prefix), -1), np.arange(len(piece))])
        side = Side(ids=np.concatenate([np.asarray(prefix, dtype=np.int64), piece]), chunk=chunk)
        windows.append(Window(student=side, teacher=None, num_chunks=len(piece)))
    return windows


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
    attention, chunk = torch.zeros_like(ids), torch.full_like(ids, -1)
    for row, side in enumerate(sides):
        ids[row, : len(side.ids)] = torch.from_numpy(side.ids)
        attention[row, : len(side.ids)] = 1
        chunk[row, : len(side.ids)] = torch.from_numpy(side.chunk)
    scored = chunk >= 0
    scored[:, 0] = False
    return SideBatch(ids, attention, shift_labels(ids, scored), chunk, scored)


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
