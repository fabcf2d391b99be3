"""Documents -> windows: runs of tokens that start and end where both tokenizers have a boundary, so no chunk is cut."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignment.byte_view import ByteView
from alignment.chat import AlignedChat, ChatTokens
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
    """

    id: str
    text: str
    weight: float
    messages: Sequence[Mapping[str, Any]] | None = None
    tools: Sequence[Any] | None = None


@dataclass(frozen=True)
class Side:
    """One tokenizer's view of a window.

    Attributes:
        ids: int64 [T].
        chunk: int64 [T], -1 where a token has no chunk.
        lengths: int64 [T], bytes of text that each token stands for; 0 for special tokens.
    """

    ids: np.ndarray
    chunk: np.ndarray
    lengths: np.ndarray


@dataclass(frozen=True)
class Window:
    """A piece of a document in one or two tokenizations; without a teacher, ``teacher`` is None."""

    student: Side
    teacher: Side | None
    num_chunks: int


def read_documents(directory: Path) -> list[Document]:
    """The documents of a DocumentsArtifact, in file order."""
    with (directory / "documents.jsonl").open(encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    return [
        Document(
            record["id"], record.get("text", ""), float(record["weight"]), record.get("messages"), record.get("tools")
        )
        for record in records
    ]


def text_windows(
    teacher: ByteView, student: ByteView, encodings: tuple[Encoding, Encoding], chunks: ChunkAlignment, tokens: int
) -> list[Window]:
    """Cut one aligned text into windows of at most ``tokens`` tokens on either side.

    A chunk longer than a window ends the window before it and is left out, as is a window without a chunk to score:
    without a special token before it, a window's first token is context alone, and its chunk with it. The text after
    the last chunk belongs to no window. Leading special tokens that a tokenizer adds by itself are put before each
    window.
    """
    chunk_of = chunks.teacher_chunk, chunks.student_chunk
    starts = tuple(_chunk_starts(chunk, chunks.num_chunks) for chunk in chunk_of)
    rooms = tuple(tokens - len(view.prefix_ids) for view in (teacher, student))
    fewest = 1 if teacher.prefix_ids and student.prefix_ids else 2
    windows, first = [], 0
    while first < chunks.num_chunks:
        last = min(
            int(np.searchsorted(start, start[first] + room, side="right")) - 1
            for start, room in zip(starts, rooms, strict=True)
        )
        if last - first < fewest:
            first = max(last, first + 1)
            continue
        teacher_side, student_side = (
            _side(view, code, chunk, slice(start[first], start[last]), first)
            for view, code, chunk, start in zip((teacher, student), encodings, chunk_of, starts, strict=True)
        )
        windows.append(Window(student=student_side, teacher=teacher_side, num_chunks=last - first))
        first = last
    return windows


def chat_window(chat: AlignedChat, tokens: int) -> Window | None:
    """One conversation from its start, up to the end of the last chunk within ``tokens`` tokens on either side.

    A model that joins a conversation in the middle has not seen its markup, so a longer one is cut and not split.

    Returns:
        None if nothing in the window would be scored.
    """
    sides = ((chat.teacher, chat.chunks.teacher_chunk), (chat.student, chat.chunks.student_chunk))
    chunks = min(_whole_chunks(chunk, chat.chunks.num_chunks, tokens) for _, chunk in sides)
    teacher, student = (_first_chunks(side, chunk, chunks) for side, chunk in sides)
    if not ((teacher.chunk[1:] >= 0).any() and (student.chunk[1:] >= 0).any()):
        return None
    return Window(student=student, teacher=teacher, num_chunks=chunks)


def _whole_chunks(chunk: np.ndarray, num_chunks: int, tokens: int) -> int:
    """How many chunks end within the first ``tokens`` tokens; chunk numbers never decrease from left to right."""
    beyond = chunk[tokens:]
    return int(beyond[beyond >= 0].min(initial=num_chunks))


def _first_chunks(tokens: ChatTokens, chunk: np.ndarray, chunks: int) -> Side:
    inside = np.flatnonzero((chunk >= 0) & (chunk < chunks))
    stop = int(inside[-1]) + 1 if len(inside) else 0
    return Side(*(array[:stop].astype(np.int64) for array in (tokens.ids, chunk, tokens.lengths)))


def _chunk_starts(chunk: np.ndarray, num_chunks: int) -> np.ndarray:
    """Index of the first token of every chunk, and one past the last token of the last chunk: int64 [C + 1]."""
    tokens = np.flatnonzero(chunk >= 0)
    starts = tokens[np.searchsorted(chunk[tokens], np.arange(num_chunks))]
    return np.append(starts, tokens[-1] + 1 if len(tokens) else 0)


def _side(view: ByteView, encoding: Encoding, chunk: np.ndarray, span: slice, first_chunk: int) -> Side:
    """The tokens of ``span`` after the prefix, with chunks counted from ``first_chunk``."""
    prefix = np.asarray(view.prefix_ids, dtype=np.int64)
    lengths = np.diff(encoding.byte_ends, prepend=0)
    numbers = np.where(chunk[span] >= 0, chunk[span].astype(np.int64) - first_chunk, -1)
    return Side(
        ids=np.concatenate([prefix, encoding.ids[span].astype(np.int64)]),
        chunk=np.concatenate([np.full(len(prefix), -1), numbers]),
        lengths=np.concatenate([np.zeros(len(prefix), dtype=np.int64), lengths[span]]),
    )


def plain_windows(ids: np.ndarray, byte_lengths: np.ndarray, prefix: Sequence[int], window_tokens: int) -> list[Window]:
    """Cut the token ids of one document into windows for next-token training; each token is a chunk of its own.

    Consecutive windows share one token, the last of one being the context of the next, so that every token but the
    document's first is predicted once.

    Args:
        ids: token ids of the document.
        byte_lengths: [V] bytes of every token of the vocabulary.
        prefix: special tokens to put before each window.
        window_tokens: most tokens of a window, prefix included.
    """
    room = window_tokens - len(prefix)
    step = room if prefix else room - 1
    windows = []
    for start in range(0, len(ids), step):
        piece = ids[start : start + room].astype(np.int64)
        if len(piece) + len(prefix) < 2:
            continue
        window_ids = np.concatenate([np.asarray(prefix, dtype=np.int64), piece])
        chunk = np.concatenate([np.full(len(prefix), -1), np.arange(len(piece))])
        side = Side(window_ids, chunk, byte_lengths[window_ids].astype(np.int64))
        windows.append(Window(student=side, teacher=None, num_chunks=len(piece)))
    return windows
