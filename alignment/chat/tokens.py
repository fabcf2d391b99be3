"""The tokens of a rendered conversation, moved from the bytes of the rendering to the bytes of its contents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from alignment.chat.messages import Part, PartName
from alignment.chat.template import RenderedChat
from alignment.encoding import Encoding


@dataclass(frozen=True)
class ContentLayout:
    """The contents of M messages put one after the other: the text that both sides of an alignment share.

    Attributes:
        part_starts: the byte at which each text of each message starts.
        message_ends: int64 [M], the byte at which each message ends.
    """

    part_starts: dict[tuple[int, PartName], int]
    message_ends: np.ndarray

    @classmethod
    def from_parts(cls, parts: Sequence[Part], num_messages: int) -> ContentLayout:
        """The layout of the texts of a conversation."""
        part_starts = {}
        message_bytes = np.zeros(num_messages, dtype=np.int64)
        position = 0
        for part in parts:
            part_starts[part.message, part.name] = position
            size = len(part.text.encode())
            message_bytes[part.message] += size
            position += size
        return cls(part_starts, np.cumsum(message_bytes))


@dataclass(frozen=True)
class ContentTokens:
    """The tokens of one rendering on the bytes of the contents, and fillers for bytes that it does not have: T in all.

    Attributes:
        encoding: markup tokens are special; a token of content and markup is not verbatim, nor is a filler.
        message: int32 [T], the message of each token's content, or whose end it is; -1 for markup.
        events: int32 [T], for an end-of-turn token its message; -1 for all others.
        straddles: bool [T], tokens of content and markup.
        filler: bool [T], tokens that stand for content missing in the rendering, and are in no model's input.
    """

    encoding: Encoding
    message: np.ndarray
    events: np.ndarray
    straddles: np.ndarray
    filler: np.ndarray

    @property
    def byte_lengths(self) -> np.ndarray:
        """int64 [T]: bytes of content up to each token's end, from the end of the one before it."""
        return np.diff(self.encoding.byte_ends, prepend=0)


def move_to_contents(encoding: Encoding, chat: RenderedChat, layout: ContentLayout) -> ContentTokens:
    """Locate the tokens of a rendering in the contents.

    Args:
        encoding: of ``chat.text``, as ``ByteView.encode_rendered`` gives it.
        chat: a rendering and its spans.
        layout: of the contents.
    """
    starts, stops = _token_spans(encoding)
    span_starts = np.array([span.rendered_start for span in chat.spans], dtype=np.int64)
    span_stops = np.array([span.rendered_stop for span in chat.spans], dtype=np.int64)
    shifts = np.array(
        [layout.part_starts[span.message, span.part] + span.start - span.rendered_start for span in chat.spans],
        dtype=np.int64,
    )
    span_messages = np.array([span.message for span in chat.spans], dtype=np.int32)

    first = np.searchsorted(span_stops, starts, side="right")
    last = np.searchsorted(span_starts, stops, side="left") - 1
    in_content = (first <= last) & ~encoding.special
    # The moved spans of content tokens; markup tokens have no bytes and stand where the content before them ends.
    content_starts = np.zeros(len(starts), dtype=np.int64)
    content_stops = np.zeros(len(starts), dtype=np.int64)
    first, last = first[in_content], last[in_content]
    content_starts[in_content] = np.maximum(starts[in_content], span_starts[first]) + shifts[first]
    content_stops[in_content] = np.minimum(stops[in_content], span_stops[last]) + shifts[last]
    straddles = np.zeros(len(starts), dtype=bool)
    straddles[in_content] = (
        (first != last) | (starts[in_content] < span_starts[first]) | (stops[in_content] > span_stops[last])
    )
    message = np.full(len(starts), -1, dtype=np.int32)
    message[in_content] = span_messages[last]

    events = _end_events(encoding, chat.ends)
    is_end = events >= 0
    message[is_end] = events[is_end]
    byte_ends = np.where(encoding.boundary, content_stops, content_starts)
    byte_ends[is_end] = layout.message_ends[events[is_end]]
    tokens = ContentTokens(
        Encoding(
            ids=encoding.ids,
            byte_ends=np.maximum.accumulate(byte_ends),
            special=~in_content,
            boundary=encoding.boundary,
            verbatim=encoding.verbatim & ~straddles,
            text_bytes=int(layout.message_ends[-1]),
        ),
        message=message,
        events=events,
        straddles=straddles,
        filler=np.zeros(len(starts), dtype=bool),
    )
    return _fill(tokens, _missing_stretches(content_starts[in_content], content_stops[in_content], layout), layout)


def _token_spans(encoding: Encoding) -> tuple[np.ndarray, np.ndarray]:
    """int64 [T] twice: where each token starts and stops; the tokens of one stretch all span that stretch."""
    starts = np.append(0, encoding.byte_ends)[: len(encoding.byte_ends)]
    closing = np.flatnonzero(encoding.boundary)
    stops = encoding.byte_ends[closing[np.searchsorted(closing, np.arange(len(starts)))]]
    return starts, stops


def _end_events(encoding: Encoding, ends: Sequence[int | None]) -> np.ndarray:
    """int32 [T]: the message that each end-of-turn token ends, -1 for all other tokens."""
    events = np.full(len(encoding.ids), -1, dtype=np.int32)
    for message, offset in enumerate(ends):
        if offset is not None:
            token = np.searchsorted(encoding.byte_ends, offset, side="right")
            if encoding.special[token]:
                events[token] = message
    return events


def _missing_stretches(starts: np.ndarray, stops: np.ndarray, layout: ContentLayout) -> list[tuple[int, int]]:
    """The stretches of content that no token spans, split where messages end.

    Args:
        starts, stops: int64 [K], the spans of the content tokens.
        layout: of the contents.
    """
    total = int(layout.message_ends[-1])
    covered_to = np.append(0, np.maximum.accumulate(stops))
    next_starts = np.append(starts, total)
    missing = []
    for gap in np.flatnonzero(next_starts > covered_to):
        start, stop = int(covered_to[gap]), int(next_starts[gap])
        cuts = np.unique(layout.message_ends[(layout.message_ends > start) & (layout.message_ends < stop)])
        missing += pairwise([start, *cuts.tolist(), stop])
    return missing


def _fill(tokens: ContentTokens, missing: Sequence[tuple[int, int]], layout: ContentLayout) -> ContentTokens:
    """Insert a filler for each missing stretch, before what stands at its end."""
    if not missing:
        return tokens
    stops = np.array([stop for _, stop in missing], dtype=np.int64)
    encoding = tokens.encoding
    where = np.searchsorted(encoding.byte_ends, stops, side="left")
    messages = np.searchsorted(layout.message_ends, stops, side="left")
    return ContentTokens(
        Encoding(
            ids=np.insert(encoding.ids, where, -1),
            byte_ends=np.insert(encoding.byte_ends, where, stops),
            special=np.insert(encoding.special, where, False),
            boundary=np.insert(encoding.boundary, where, True),
            verbatim=np.insert(encoding.verbatim, where, False),
            text_bytes=encoding.text_bytes,
        ),
        message=np.insert(tokens.message, where, messages),
        events=np.insert(tokens.events, where, -1),
        straddles=np.insert(tokens.straddles, where, False),
        filler=np.insert(tokens.filler, where, True),
    )
