"""Windows of whole texts: every byte once, the same for all tokenizers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.byte_view import ByteView
from stages.evaluation.harness.windows import rolling_spans
from stages.evaluation.windows import Span


def test_a_short_text_is_one_window_and_a_long_one_reads_half_a_window_again() -> None:
    assert rolling_spans("", [], 16) == []
    assert rolling_spans("a" * 16, [], 16) == [Span(0, 0, 16)]
    assert rolling_spans("a" * 40, [], 16) == [Span(0, 0, 16), Span(8, 16, 24), Span(16, 24, 32), Span(24, 32, 40)]


def test_words_are_not_cut_where_that_can_be_helped() -> None:
    spans = rolling_spans("alpha beta gamma delta", [], 14)
    assert spans == [Span(0, 0, 10), Span(5, 10, 16), Span(10, 16, 22)]


@pytest.fixture(scope="module")
def views(tiny_tokenizer_dirs: tuple[Path, Path]) -> list[ByteView]:
    return [ByteView.from_tokenizer(directory) for directory in tiny_tokenizer_dirs]


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="ab é東🙂\n", max_size=120), window_bytes=st.integers(16, 64))
def test_every_byte_is_scored_once_after_text_that_was_scored_before(
    views: list[ByteView], text: str, window_bytes: int
) -> None:
    spans = rolling_spans(text, views, window_bytes)
    data = text.encode()
    assert b"".join(data[span.scored : span.end] for span in spans) == data
    ends = [set(view.encode(text).byte_ends.tolist()) for view in views]
    for span in spans:
        assert span.begin <= span.scored < span.end
        data[span.begin : span.scored].decode()
        for place in (span.scored, span.end):
            assert place in (0, len(data)) or all(place in own for own in ends)
    for span in spans[1:]:
        assert span.scored > span.begin
