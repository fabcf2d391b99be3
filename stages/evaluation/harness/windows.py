"""Whole texts in windows of bytes, the same for models of every tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alignment.byte_view import ByteView
from stages.evaluation.windows import Span, shared_ends


def rolling_spans(text: str, views: Sequence[ByteView], window_bytes: int) -> list[Span]:
    """Cut ``text`` so that every byte is scored exactly once, after at least some of what stands before it.

    A text of at most ``window_bytes`` is one span without context. Of a longer one, each span but the first begins
    with up to ``window_bytes // 2`` bytes that were scored before. Cuts lie where tokens of all ``views`` end, at the
    end of a word where there is one, because what follows is tokenized anew. Where there is no such place the span is
    longer.

    Args:
        views: tokenizers of all models that are compared; without any, every character may be cut off.
        window_bytes: most bytes of a span, context included.

    Returns:
        Spans in bytes, in order; none for an empty text.
    """
    size = len(text.encode())
    if size <= window_bytes:
        return [Span(0, 0, size)] if size else []
    places = _Places(text, views)
    spans = []
    begin = scored = 0
    while scored < size:
        end = size if begin + window_bytes >= size else places.last_up_to(begin + window_bytes, after=scored)
        spans.append(Span(begin, scored, end))
        begin, scored = places.first_from(end - window_bytes // 2, before=end), end
    return spans


class _Places:
    """Where a text may be cut, in bytes; its end is one of them."""

    def __init__(self, text: str, views: Sequence[ByteView]) -> None:
        encodings = [view.encode(text, exact=False) for view in views]
        size = len(text.encode())
        ends = [encoding.byte_ends[encoding.boundary] for encoding in encodings] or [np.arange(1, size + 1)]
        self._any = np.union1d(shared_ends(text, ends), [size])
        self._word_ends = np.intersect1d(self._any, _word_ends(text))

    def last_up_to(self, limit: int, *, after: int) -> int:
        """The last word end in the second half of (after, limit], else the last place in it, else the next behind."""
        for places, least in ((self._word_ends, (after + limit) // 2), (self._any, after)):
            count = int(np.searchsorted(places, limit, side="right"))
            if count and places[count - 1] > max(after, least):
                return int(places[count - 1])
        return int(self._any[np.searchsorted(self._any, after, side="right")])

    def first_from(self, least: int, *, before: int) -> int:
        """The first place in [least, before), else the last one before that, else the text's beginning."""
        for places in (self._word_ends, self._any):
            index = int(np.searchsorted(places, least))
            if index < len(places) and places[index] < before:
                return int(places[index])
        index = int(np.searchsorted(self._any, before))
        return int(self._any[index - 1]) if index else 0


def _word_ends(text: str) -> np.ndarray:
    """int64: byte offsets before white space that follows something else."""
    space = np.array([character.isspace() for character in text])
    offsets = np.cumsum([0, *(len(character.encode()) for character in text)])
    return offsets[1:-1][space[1:] & ~space[:-1]]
