"""Alignment of many encodings at once, and of long ones."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from spelled_sides import Side, side_encoding, two_sides

from alignment.chunk_alignment import ChunkAlignment
from alignment.spans import align_batch, align_encodings


@given(st.lists(two_sides(), max_size=4) | st.lists(two_sides(exact=True), max_size=4))
def test_a_batch_is_its_texts_one_by_one(pairs: list[tuple[Side, Side]]) -> None:
    teachers, students = [pair[0].encoding for pair in pairs], [pair[1].encoding for pair in pairs]
    batch = align_batch(teachers, students)
    assert len(batch) == len(pairs)
    for together, teacher, student in zip(batch, teachers, students, strict=True):
        alone = align_encodings(teacher, student)
        for field in fields(ChunkAlignment):
            np.testing.assert_array_equal(getattr(together, field.name), getattr(alone, field.name))


def test_a_long_batch_is_cut_into_parts_without_a_trace() -> None:
    # More tokens than are aligned at once, and one document that is longer than that alone.
    sizes = [1, 70_000, 0, 5, 40_000, 3]
    teachers = [side_encoding(np.arange(1, size + 1)) for size in sizes]
    students = [side_encoding(np.arange(2, size + 1, 2)) for size in sizes]
    for size, alignment in zip(sizes, align_batch(teachers, students), strict=True):
        assert alignment.num_chunks == size // 2
        expected = np.arange(size) // 2
        expected[size // 2 * 2 :] = -1
        np.testing.assert_array_equal(alignment.teacher_chunk, expected)
        np.testing.assert_array_equal(alignment.student_chunk, np.arange(size // 2))


def test_text_after_the_last_token_counts_as_text() -> None:
    # "ab  " where both tokenizers drop the white space at the end.
    encoding = replace(side_encoding(np.array([1, 2])), text_bytes=4)
    assert not encoding.exact
    alignment = align_encodings(encoding, encoding)
    assert (alignment.num_chunks, alignment.text_bytes, alignment.coverage) == (2, 4, 0.5)
    with pytest.raises(ValueError, match="document 1: teacher token 1 ends at byte 2, beyond the end of the text"):
        align_batch([encoding, replace(encoding, text_bytes=1)], [encoding, encoding])


def test_repetitive_text_is_no_harder_than_other_text() -> None:
    # Half a million equal tokens: anything quadratic would not come back.
    size = 1 << 19
    alignment = align_encodings(
        side_encoding(np.arange(3, 3 * size + 1, 3)), side_encoding(np.arange(2, 3 * size + 1, 2))
    )
    assert alignment.num_chunks == size // 2
    assert alignment.coverage == 1.0


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        ([[1, 2]], [[1, 2], [1]], "1 teacher encodings but 2 student encodings"),
        ([[1, 2], [3, 2]], [[1], [3]], "document 1: teacher_ends .* token 1 ends at 2"),
        ([[1], [], [1]], [[1], [], [-1]], "document 2: student_ends .* token 0 ends at -1"),
    ],
)
def test_a_batch_says_which_document_is_wrong(teacher: list[list[int]], student: list[list[int]], message: str) -> None:
    teachers = [side_encoding(np.array(ends)) for ends in teacher]
    students = [side_encoding(np.array(ends)) for ends in student]
    with pytest.raises(ValueError, match=message):
        align_batch(teachers, students)
