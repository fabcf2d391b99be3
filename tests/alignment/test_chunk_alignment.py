"""Masks over the chunks of an alignment, against the definition chunk by chunk."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.chunk_alignment import ChunkAlignment, mask_chunks
from alignment.spans import align


@st.composite
def masked_alignments(draw: st.DrawFn) -> tuple[ChunkAlignment, np.ndarray, np.ndarray]:
    size = draw(st.integers(0, 10))
    ends = [sorted(draw(st.lists(st.integers(0, size), max_size=size + 2))) for _ in range(2)]
    masks = [np.array(draw(st.lists(st.booleans(), min_size=len(e), max_size=len(e))), dtype=bool) for e in ends]
    return align(*ends), masks[0], masks[1]


@given(masked_alignments())
def test_a_chunk_with_a_masked_token_is_dropped_whole(case: tuple[ChunkAlignment, np.ndarray, np.ndarray]) -> None:
    alignment, teacher, student = case
    sides = [(alignment.teacher_chunk.tolist(), teacher.tolist()), (alignment.student_chunk.tolist(), student.tolist())]
    masked_chunks = {chunk for chunks, mask in sides for chunk, flag in zip(chunks, mask, strict=True) if flag}
    kept = [chunk for chunk in range(alignment.num_chunks) if chunk not in masked_chunks]
    masked = mask_chunks(alignment, teacher=teacher, student=student)
    expected = [[kept.index(chunk) if chunk in kept else -1 for chunk in chunks] for chunks, _ in sides]
    assert [masked.teacher_chunk.tolist(), masked.student_chunk.tolist()] == expected
    assert masked.chunk_starts.tolist() == [alignment.chunk_starts[chunk] for chunk in kept]
    assert masked.chunk_ends.tolist() == [alignment.chunk_ends[chunk] for chunk in kept]
    covered = sum(int(alignment.chunk_ends[chunk] - alignment.chunk_starts[chunk]) for chunk in kept)
    assert masked.coverage == pytest.approx(covered / alignment.text_bytes if alignment.text_bytes else 1.0)
    assert (masked.text_bytes, masked.rejected_bytes) == (alignment.text_bytes, alignment.rejected_bytes)


def test_a_mask_edge_inside_a_chunk_drops_the_whole_chunk() -> None:
    # alm.md §7, no. 9: the prompt ends after the teacher's second token, inside the student's first.
    alignment = mask_chunks(align([1, 2, 3, 4], [3, 4]), teacher=np.array([True, True, False, False]))
    assert alignment.teacher_chunk.tolist() == [-1, -1, -1, 0]
    assert alignment.student_chunk.tolist() == [-1, 0]
    assert alignment.coverage == 0.25


def test_masking_in_two_steps_is_masking_at_once() -> None:
    alignment = align([1, 2, 3, 4, 5], [1, 3, 4, 5])
    teacher, student = np.array([True, False, False, False, False]), np.array([False, False, False, True])
    at_once = mask_chunks(alignment, teacher=teacher, student=student)
    in_steps = mask_chunks(mask_chunks(alignment, teacher=teacher), student=student)
    assert at_once.teacher_chunk.tolist() == in_steps.teacher_chunk.tolist() == [-1, 0, 0, 1, -1]
    assert at_once.student_chunk.tolist() == in_steps.student_chunk.tolist() == [-1, 0, 1, -1]


def test_masking_changes_nothing_in_place() -> None:
    alignment, mask = align([1, 2], [1, 2]), np.array([True, False])
    masked = mask_chunks(alignment, teacher=mask)
    masked.teacher_chunk[:] = 9
    assert alignment.teacher_chunk.tolist() == [0, 1]
    assert mask.tolist() == [True, False]


@pytest.mark.parametrize("mask", [[True], [[True, False]], [1, 0], [0.0, 1.0]])
def test_a_mask_that_does_not_fit_is_refused(mask: list) -> None:
    with pytest.raises(ValueError, match=r"student mask must be bool of shape \(2,\)"):
        mask_chunks(align([1, 2], [1, 2]), student=np.array(mask))
