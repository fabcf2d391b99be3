"""Documents -> windows: runs of tokens that start and end where both tokenizers have a boundary, so no chunk is cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from alignment.byte_view import ByteView
from alignment.chat import AlignedChat
from alignment.chunk_alignment import ChunkAlignment
from alignment.encoding import Encoding


@dataclass(frozen=True)
class Document:
    """One document of the training data: a text, or a conversation.

    Attributes:
        id: its name in messages.
        text: the text; empty for a conversation.
        weight: of the set it comes from.
        messages: the messages of a conversation, with roles and contents; None for a text.
        tools: the tools that the conversation's template is given.
        domain: the set it comes from.
        context_bytes: how much of the text, from its start, is a prompt: read, but not learned.
        route: which of several teachers teach it (``TeacherEntry.teaches``).
    """

    id: str
    text: str
    weight: float
    messages: Sequence[Mapping[str, Any]] | None = None
    tools: Sequence[Any] | None = None
    domain: str = ""
    context_bytes: int = 0
    route: str = ""


@dataclass(frozen=True)
class Side:
    """One tokenizer's view of a window.

    Attributes:
        ids: int64 [T].
        chunk: int64 [T], -1 where a token has no chunk.
        lengths: int64 [T], bytes of text that each token stands for; 0 for special tokens.
        first_entry: where the teacher's scores of the first token lie in a score store, those of the others after it;
            None where a model scores them.
    """

    ids: np.ndarray
    chunk: np.ndarray
    lengths: np.ndarray
    first_entry: int | None = None


@dataclass(frozen=True)
class Window:
    """A piece of a document in one or two tokenizations.

    Attributes:
        student, teacher: the two sides; ``teacher`` is None where nothing needs one.
        num_chunks: of its chunks, which are numbered from 0.
        teacher_number: which of the stage's teachers its teacher's side is for.
    """

    student: Side
    teacher: Side | None
    num_chunks: int
    teacher_number: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of its longer side: what budgets of tokens count."""
        return max(len(self.student.ids), 0 if self.teacher is None else len(self.teacher.ids))


def text_windows(
    teacher: ByteView,
    student: ByteView,
    encodings: tuple[Encoding, Encoding],
    chunks: ChunkAlignment,
    tokens: int,
    context_bytes: int = 0,
    first_entry: int | None = None,
) -> list[Window]:
    """Cut one aligned text into windows of at most ``tokens`` tokens on either side.

    A chunk longer than a window ends the window before it and is left out, as is a window without a chunk to score:
    without a special token before it, a window's first token is context alone, and its chunk with it. The text after
    the last chunk belongs to no window. Leading special tokens that a tokenizer adds by itself are put before each
    window.

    Args:
        chunks: of the whole text.
        context_bytes: where the text begins that is to be learned; no chunk that begins before is scored. The first
            window begins with as much of what comes before as fits into half of it.
        first_entry: where the teacher's scores of the text begin in a store, special tokens before it included. In a
            later window, what the store holds for these is that of the tokens before it, which predict its first token.
    """
    chunk_of = chunks.teacher_chunk, chunks.student_chunk
    starts = tuple(_chunk_starts(chunk, chunks.num_chunks) for chunk in chunk_of)
    rooms = tuple(tokens - len(view.prefix_ids) for view in (teacher, student))
    fewest = 1 if teacher.prefix_ids and student.prefix_ids else 2
    learned = _first_learned(chunks, context_bytes)
    windows, first = [], _first_of_context(learned, starts, rooms)
    while first < chunks.num_chunks:
        last = min(
            int(np.searchsorted(start, start[first] + room, side="right")) - 1
            for start, room in zip(starts, rooms, strict=True)
        )
        scored = max(first, learned)
        if last - scored < (fewest if first >= learned else 1):
            first = max(last, first + 1)
            continue
        teacher_side, student_side = (
            _side(view, code, chunk, slice(start[first], start[last]), scored)
            for view, code, chunk, start in zip((teacher, student), encodings, chunk_of, starts, strict=True)
        )
        if first_entry is not None:
            teacher_side = replace(teacher_side, first_entry=first_entry + int(starts[0][first]))
        windows.append(Window(student=student_side, teacher=teacher_side, num_chunks=last - scored))
        first = last
    return windows


def scored_bytes(chunks: ChunkAlignment, context_bytes: int) -> int:
    """Bytes inside chunks of which none is before ``context_bytes``."""
    learned = slice(_first_learned(chunks, context_bytes), None)
    return int(chunks.chunk_ends[learned].sum() - chunks.chunk_starts[learned].sum())


def _first_learned(chunks: ChunkAlignment, context_bytes: int) -> int:
    return int(np.searchsorted(chunks.chunk_starts, context_bytes))


def _first_of_context(learned: int, starts: Sequence[np.ndarray], rooms: Sequence[int]) -> int:
    """The first chunk from which on at most half of a window's room lies before chunk ``learned``."""
    return max(
        int(np.searchsorted(start, start[learned] - room // 2)) for start, room in zip(starts, rooms, strict=True)
    )


def chat_window(chat: AlignedChat, tokens: int) -> Window | None:
    """One conversation from its start, up to the end of the last chunk within ``tokens`` tokens on either side.

    A model that joins a conversation in the middle has not seen its markup, so a longer one is cut and not split.

    Returns:
        None if nothing in the window would be scored.
    """
    chunks = chat.chunks
    pairs = ((chat.teacher, chunks.teacher_chunk), (chat.student, chunks.student_chunk))
    teacher, student = (
        Side(*(array.astype(np.int64) for array in (side.ids, chunk, side.lengths))) for side, chunk in pairs
    )
    return first_window(teacher, student, chunks.num_chunks, tokens)


def first_window(teacher: Side, student: Side, num_chunks: int, tokens: int) -> Window | None:
    """Both sides from their start, up to the end of the last chunk within ``tokens`` tokens on either side.

    Returns:
        None if nothing in the window would be scored.
    """
    chunks = min(_whole_chunks(side.chunk, num_chunks, tokens) for side in (teacher, student))
    teacher, student = (_first_chunks(side, chunks) for side in (teacher, student))
    if not ((teacher.chunk[1:] >= 0).any() and (student.chunk[1:] >= 0).any()):
        return None
    return Window(student=student, teacher=teacher, num_chunks=chunks)


def _whole_chunks(chunk: np.ndarray, num_chunks: int, tokens: int) -> int:
    """How many chunks end within the first ``tokens`` tokens; chunk numbers never decrease from left to right."""
    beyond = chunk[tokens:]
    return int(beyond[beyond >= 0].min(initial=num_chunks))


def _first_chunks(side: Side, chunks: int) -> Side:
    inside = np.flatnonzero((side.chunk >= 0) & (side.chunk < chunks))
    stop = int(inside[-1]) + 1 if len(inside) else 0
    return Side(side.ids[:stop], side.chunk[:stop], side.lengths[:stop])


def _chunk_starts(chunk: np.ndarray, num_chunks: int) -> np.ndarray:
    """Index of the first token of every chunk, and one past the last token of the last chunk: int64 [C + 1]."""
    tokens = np.flatnonzero(chunk >= 0)
    starts = tokens[np.searchsorted(chunk[tokens], np.arange(num_chunks))]
    return np.append(starts, tokens[-1] + 1 if len(tokens) else 0)


def _side(view: ByteView, encoding: Encoding, chunk: np.ndarray, span: slice, first_chunk: int) -> Side:
    """The tokens of ``span`` after the prefix, with chunks counted from ``first_chunk``, the first one to score."""
    prefix = np.asarray(view.prefix_ids, dtype=np.int64)
    lengths = np.diff(encoding.byte_ends, prepend=0)
    numbers = np.maximum(chunk[span].astype(np.int64) - first_chunk, -1)
    return Side(
        ids=np.concatenate([prefix, encoding.ids[span].astype(np.int64)]),
        chunk=np.concatenate([np.full(len(prefix), -1), numbers]),
        lengths=np.concatenate([np.zeros(len(prefix), dtype=np.int64), lengths[span]]),
    )


def plain_windows(
    ids: np.ndarray, byte_lengths: np.ndarray, prefix: Sequence[int], window_tokens: int, context_bytes: int = 0
) -> list[Window]:
    """Cut the token ids of one document into windows for next-token training; each token is a chunk of its own.

    Consecutive windows share one token, the last of one being the context of the next, so that every token but the
    document's first is predicted once.

    Args:
        ids: token ids of the document.
        byte_lengths: [V] bytes of every token of the vocabulary.
        prefix: special tokens to put before each window.
        window_tokens: most tokens of a window, prefix included.
        context_bytes: tokens that begin before this byte of the document are context only.
    """
    room = window_tokens - len(prefix)
    step = room if prefix else room - 1
    lengths = byte_lengths[ids].astype(np.int64)
    context = int(np.searchsorted(np.cumsum(lengths) - lengths, context_bytes))
    windows = []
    for start in range(0, len(ids), step):
        piece = ids[start : start + room].astype(np.int64)
        window_ids = np.concatenate([np.asarray(prefix, dtype=np.int64), piece])
        numbers = np.maximum(np.arange(len(piece)) - max(context - start, 0), -1)
        chunk = np.concatenate([np.full(len(prefix), -1), numbers])
        if (chunk[1:] < 0).all():
            continue
        side = Side(window_ids, chunk, byte_lengths[window_ids].astype(np.int64))
        windows.append(Window(student=side, teacher=None, num_chunks=int(chunk[-1]) + 1))
    return windows
