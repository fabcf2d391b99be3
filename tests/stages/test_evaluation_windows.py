"""Windows: the same bytes and the same context for every tokenizer."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stages.evaluation.windows import (
    Conversation,
    Document,
    Span,
    common_boundaries,
    cut,
    read_documents,
    shared_ends,
    window,
)


@st.composite
def segmentations(draw: st.DrawFn) -> list[np.ndarray]:
    """Byte ends of one to three tokenizations of one text of 1 to 60 bytes."""
    length = draw(st.integers(1, 60))
    cuts = draw(st.lists(st.sets(st.integers(1, length)), min_size=1, max_size=3))
    return [np.array(sorted(ends | {length}), dtype=np.int64) for ends in cuts]


def test_common_boundaries_are_shared_by_all_and_exclude_the_start() -> None:
    ends = [np.array([0, 2, 5, 9]), np.array([2, 4, 5, 9]), np.array([0, 2, 3, 5, 7, 9])]
    assert common_boundaries(ends).tolist() == [2, 5, 9]


def test_cut_hand_worked() -> None:
    # At most 6 bytes a window: 0..5 scored from 2; 5..9 scored from 9 has nothing to score; so 5..11 from 9.
    assert cut(np.array([2, 5, 9, 11]), 6) == [Span(0, 2, 5), Span(5, 9, 11)]


def test_cut_skips_a_stretch_without_a_boundary_and_goes_on_behind_it() -> None:
    assert cut(np.array([20, 22, 24]), 6) == [Span(20, 22, 24)]


def test_cut_of_a_text_with_one_boundary_scores_nothing() -> None:
    assert cut(np.array([4]), 6) == []
    assert cut(np.array([], dtype=np.int64), 6) == []


@given(segmentations(), st.integers(2, 70))
def test_spans_are_bounded_ordered_and_cut_only_at_common_boundaries(ends: list[np.ndarray], limit: int) -> None:
    common = set.intersection(*(set(side.tolist()) for side in ends))
    spans = cut(common_boundaries(ends), limit)
    for span in spans:
        assert span.begin < span.scored < span.end <= span.begin + limit
        assert {span.scored, span.end} <= common
        assert span.begin in common | {0}
        assert not any(span.begin < boundary < span.scored for boundary in common)
    assert all(left.end <= right.begin for left, right in pairwise(spans))


@given(segmentations(), st.integers(2, 70))
def test_every_tokenization_scores_the_same_bytes_and_its_windows_are_its_own_tokens(
    ends: list[np.ndarray], limit: int
) -> None:
    spans = cut(common_boundaries(ends), limit)
    for side in ends:
        ids = np.arange(len(side), dtype=np.int32)
        for span in spans:
            found = window(3, ids, side, span)
            assert (found.document, found.context_begin, found.begin) == (3, span.begin, span.scored)
            assert found.scored_bytes == span.end - span.scored
            expected = [token for token, end in enumerate(side.tolist()) if span.begin < end <= span.end]
            assert found.ids.tolist() == expected
            assert found.first_scored >= 1
            assert found.scored_tokens == sum(end > span.scored for end in side[expected])


def test_a_dummy_prefix_token_without_bytes_stays_in_the_first_window() -> None:
    ends = np.array([0, 3, 5])
    found = window(0, np.array([7, 8, 9], dtype=np.int32), ends, Span(0, 3, 5))
    assert found.ids.tolist() == [7, 8, 9]
    assert found.first_scored == 2


def test_shared_ends_lie_between_whole_characters() -> None:
    # "aé漢b" is 61 | c3 a9 | e6 bc a2 | 62: bytes 2, 4 and 5 lie inside characters.
    ends = [np.array([1, 2, 3, 4, 5, 6, 7]), np.array([1, 2, 3, 5, 6, 7])]
    assert common_boundaries(ends).tolist() == [1, 2, 3, 5, 6, 7]
    assert shared_ends("aé漢b", ends).tolist() == [1, 3, 6, 7]


def test_read_documents_groups_domains_and_takes_the_first_of_each(tmp_path: Path) -> None:
    lines = [("a/0", "a"), ("b/0", "b"), ("a/1", "a"), ("b/1", "b"), ("a/2", "a")]
    (tmp_path / "documents.jsonl").write_text(
        "".join(json.dumps({"id": id_, "domain": domain, "weight": 1.0, "text": id_}) + "\n" for id_, domain in lines)
    )
    documents, conversations = read_documents(tmp_path, None)
    assert [document.id for document in documents] == ["a/0", "a/1", "a/2", "b/0", "b/1"]
    assert conversations == []
    assert [document.id for document in read_documents(tmp_path, 2)[0]] == ["a/0", "a/1", "b/0", "b/1"]


def test_read_documents_keeps_conversations_apart(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    records = [
        {"id": "a/0", "domain": "a", "weight": 1.0, "text": "text"},
        {"id": "b/0", "domain": "b", "weight": 1.0, "messages": messages, "tools": [{"type": "function"}]},
        {"id": "b/1", "domain": "b", "weight": 1.0, "messages": messages},
    ]
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    documents, conversations = read_documents(tmp_path, None)
    assert documents == [Document("a/0", "a", "text")]
    assert conversations == [
        Conversation("b/0", "b", messages, [{"type": "function"}]),
        Conversation("b/1", "b", messages, None),
    ]
