"""Special tokens that mean the same on both sides, matched into chunks of their own (alm.md §1.2, §9.1 A and F)."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from alignment.chunk_alignment import ChunkAlignment
from alignment.encoding import Encoding


class _Event(NamedTuple):
    """A run of special tokens with one event number."""

    number: int
    position: int  # byte offset
    tokens: slice


def insert_events(
    alignment: ChunkAlignment,
    teacher: Encoding,
    student: Encoding,
    teacher_events: np.ndarray,
    student_events: np.ndarray,
) -> ChunkAlignment:
    """Add a chunk for every event that both sides have at the same byte position.

    Consecutive special tokens with the same number are one event: a role may take several tokens on one side. Events
    of one number at one position are matched in order. Matches that cross each other are all dropped, as is an event
    inside a stretch of tokens without known boundaries, so that chunks stay in order on both sides. Unmatched events
    belong to no chunk. Event chunks have no bytes: they count in ``num_chunks``, not in ``coverage``.

    Args:
        alignment: of the text of n teacher and m student tokens.
        teacher: the n tokens.
        student: the m tokens.
        teacher_events: int [n], the event of each token, -1 for none.
        student_events: int [m], in the same numbers.

    Raises:
        ValueError: events are not integers, have another shape than the tokens, or stand at a token with text.
    """
    matches = _match(_events("teacher", teacher, teacher_events), _events("student", student, student_events))
    if not matches:
        return alignment
    positions = np.array([teacher_event.position for teacher_event, _ in matches], dtype=np.int64)
    # Text that ends at an event's position comes before it, text that starts there comes after.
    text_ids = np.arange(alignment.num_chunks) + np.searchsorted(positions, alignment.chunk_ends, side="left")
    event_ids = np.arange(len(matches)) + np.searchsorted(alignment.chunk_ends, positions, side="right")
    renumbered = np.append(text_ids, -1).astype(np.int32)
    teacher_chunk, student_chunk = renumbered[alignment.teacher_chunk], renumbered[alignment.student_chunk]
    for chunk, (teacher_event, student_event) in zip(event_ids.tolist(), matches, strict=True):
        teacher_chunk[teacher_event.tokens] = chunk
        student_chunk[student_event.tokens] = chunk
    return replace(
        alignment,
        teacher_chunk=teacher_chunk,
        student_chunk=student_chunk,
        chunk_starts=_interleave(text_ids, alignment.chunk_starts, event_ids, positions),
        chunk_ends=_interleave(text_ids, alignment.chunk_ends, event_ids, positions),
    )


def _events(side: str, encoding: Encoding, events: np.ndarray) -> list[_Event]:
    """The events of one side from left to right, without those inside a stretch."""
    events = np.asarray(events)
    if events.shape != encoding.ids.shape or not (np.issubdtype(events.dtype, np.integer) or events.size == 0):
        raise ValueError(
            f"{side}_events must be integers of shape {encoding.ids.shape}, one a token; "
            f"got {events.dtype} of shape {events.shape}"
        )
    marked = events >= 0
    if (marked & ~encoding.special).any():
        token = int(np.argmax(marked & ~encoding.special))
        raise ValueError(
            f"{side} token {token} has event {events[token]} but stands for text: only special tokens can be events"
        )
    tokens = np.flatnonzero(marked)
    continues = (np.diff(tokens) == 1) & (np.diff(events[tokens]) == 0)
    firsts = tokens[np.append(True, ~continues)[: len(tokens)]]
    lasts = tokens[np.append(~continues, True)[: len(tokens)]]
    inside = _inside_stretch(encoding)
    return [
        _Event(int(events[first]), int(encoding.byte_ends[first]), slice(first, last + 1))
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True)
        if not inside[first]
    ]


def _inside_stretch(encoding: Encoding) -> np.ndarray:
    """bool [T]: whether the last token of text up to here is inside a stretch without known boundaries."""
    text_tokens = np.where(encoding.special, -1, np.arange(len(encoding.ids)))
    last_text_token = np.maximum.accumulate(text_tokens)
    return (last_text_token >= 0) & ~encoding.boundary[last_text_token]


def _match(teacher: list[_Event], student: list[_Event]) -> list[tuple[_Event, _Event]]:
    """Pairs of the same number and position, from left to right on both sides."""
    unmatched: defaultdict[tuple[int, int], deque[int]] = defaultdict(deque)
    for index, event in enumerate(student):
        unmatched[event.number, event.position].append(index)
    pairs: list[tuple[_Event, int]] = []
    for event in teacher:
        if same := unmatched[event.number, event.position]:
            pairs.append((event, same.popleft()))
    indices = np.array([index for _, index in pairs], dtype=np.int64)
    highest_before = np.maximum.accumulate(np.append(-1, indices))[:-1]
    lowest_after = np.minimum.accumulate(np.append(indices, len(student))[::-1])[::-1][1:]
    uncrossed = (highest_before < indices) & (indices < lowest_after)
    return [(event, student[index]) for (event, index), kept in zip(pairs, uncrossed.tolist(), strict=True) if kept]


def _interleave(
    text_ids: np.ndarray, text_values: np.ndarray, event_ids: np.ndarray, event_values: np.ndarray
) -> np.ndarray:
    """int64 [C]: values of all chunks by their ids."""
    values = np.empty(len(text_ids) + len(event_ids), dtype=np.int64)
    values[text_ids] = text_values
    values[event_ids] = event_values
    return values
