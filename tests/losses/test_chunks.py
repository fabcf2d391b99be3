from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from losses.chunks import (
    ChunkScores,
    chunk_adjacent,
    chunk_end_mask,
    chunk_last,
    chunk_sums,
    chunk_valid,
    first_token_index,
    last_token_index,
    merge_chunks,
    shift_labels,
    shift_scores,
)

IDS = torch.tensor([[0, 1, 1, -1, 2, 2, 2], [-1, 0, 0, 2, 3, -1, -1]])


def chunk_id_rows(draw: st.DrawFn, length: int) -> list[int]:
    """Ids that count up, skip some chunks, and leave some tokens without one."""
    ids, current = [], -1
    for _ in range(length):
        current += draw(st.sampled_from([0, 0, 1, 1, 2]))
        ids.append(draw(st.sampled_from([current, current, current, -1])))
    return ids


@st.composite
def chunk_ids(draw: st.DrawFn) -> Tensor:
    batch, length = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    return torch.tensor([chunk_id_rows(draw, length) for _ in range(batch)])


def test_the_shift_pairs_each_token_with_the_position_before_it() -> None:
    ids = torch.tensor([[5, 6, 7, 8]], dtype=torch.int32)
    scored = torch.tensor([[True, True, False, True]])
    assert shift_labels(ids, scored).tolist() == [[6, -100, 8, -100]]
    assert shift_labels(ids, scored).dtype == torch.int64
    assert shift_scores(torch.tensor([[-1.0, -2.0, -3.0, -9.0]])).tolist() == [[0, -1, -2, -3]]


def test_sums_ends_and_adjacency_of_a_worked_example() -> None:
    values = torch.tensor([[1.0, 2, 3, 100, 4, 5, 6], [100, 1, 2, 3, 4, 100, 100]])
    assert chunk_sums(values, IDS, 4).tolist() == [[1, 5, 15, 0], [3, 0, 3, 4]]
    assert first_token_index(IDS, 4).tolist() == [[0, 1, 4, -1], [1, -1, 3, 4]]
    assert last_token_index(IDS, 4).tolist() == [[0, 2, 6, -1], [2, -1, 3, 4]]
    assert chunk_last(values, IDS, 4).tolist() == [[1, 3, 6, 0], [2, 0, 3, 4]]
    assert chunk_adjacent(IDS, 4).tolist() == [[False, True, False, False], [False, False, False, True]]
    assert chunk_end_mask(IDS, 4).nonzero().tolist() == [[0, 0], [0, 2], [0, 6], [1, 2], [1, 3], [1, 4]]


def test_a_chunk_is_valid_if_all_its_tokens_are_scored_and_none_is_first() -> None:
    scored = torch.ones_like(IDS, dtype=torch.bool)
    assert chunk_valid(scored, IDS, 4).tolist() == [[False, True, True, False], [True, False, True, True]]
    scored[0, 5] = False
    assert chunk_valid(scored, IDS, 4).tolist()[0] == [False, True, False, False]


def test_hidden_states_are_gathered_at_chunk_ends() -> None:
    hidden = torch.arange(28.0).reshape(2, 7, 2)
    ends = chunk_last(hidden, IDS, 4)
    assert ends[0].tolist() == [[0, 1], [4, 5], [12, 13], [0, 0]]


@given(chunk_ids(), st.data())
@settings(max_examples=60, deadline=None)
def test_scatter_dense_and_prefix_sums_agree(ids: Tensor, data: st.DataObject) -> None:
    num_chunks = int(ids.max()) + 1 if ids.max() >= 0 else 1
    values = torch.tensor(
        [[data.draw(st.floats(-20, 0)) for _ in range(ids.shape[1])] for _ in range(len(ids))], dtype=torch.float64
    )
    dense = torch.nn.functional.one_hot(ids + 1, num_chunks + 1)[:, :, 1:].double()
    expected = (values[:, None] @ dense).squeeze(1)
    torch.testing.assert_close(chunk_sums(values, ids, num_chunks), expected)
    running = torch.cumsum(values * (ids >= 0), 1)
    last = last_token_index(ids, num_chunks)
    for row in range(len(ids)):
        ends = [int(i) for i in last[row] if i >= 0]
        totals = running[row, ends].diff(prepend=torch.zeros(1, dtype=torch.float64))
        torch.testing.assert_close(chunk_sums(values, ids, num_chunks)[row][last[row] >= 0], totals)


def test_values_outside_chunks_may_be_anything() -> None:
    values = torch.tensor([[torch.nan, -1.0, -2.0, torch.inf]], requires_grad=True)
    sums = chunk_sums(values, torch.tensor([[-1, 0, 0, -1]]), 1)
    sums.sum().backward()
    assert sums.tolist() == [[-3.0]]
    assert values.grad.tolist() == [[0, 1, 1, 0]]


@pytest.mark.skipif(torch.cuda.is_available(), reason="an index error there poisons the CUDA context")
def test_an_id_beyond_the_number_of_chunks_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="out of bounds"):
        chunk_sums(torch.zeros(1, 2), torch.tensor([[0, 1]]), 1)


def merged_by_hand(
    teacher: list[float],
    boundary: list[float],
    valid: list[bool],
    adjacent: list[bool],
    gamma: float,
    max_chunks: int | None,
) -> list[tuple[float, float, bool]]:
    """Per group: the teacher's sum, the boundary log-probability at its end, and whether it is open."""
    groups: list[tuple[float, float, bool]] = []
    total, size = 0.0, 0  # of the group being built; size 0: the next chunk starts one
    for k in range(len(teacher)):
        if not valid[k]:
            size = 0
            continue
        if size in (0, max_chunks) or not adjacent[k]:
            total, size = 0.0, 0
            groups.append((0.0, 0.0, True))
        total += teacher[k]
        closed = torch.tensor(boundary[k], dtype=torch.float64).exp().item() > gamma
        groups[-1] = (total, boundary[k], not closed)
        size = 0 if closed else size + 1
    return groups


@given(
    st.data(),
    st.integers(0, 8),
    st.sampled_from([-1.0, 0.0, 0.1, 0.5, 1.0]),
    st.sampled_from([None, None, 1, 2, 3]),
)
@settings(max_examples=200, deadline=None)
def test_merging_equals_walking_along_the_chunks(
    data: st.DataObject, num_chunks: int, gamma: float, max_chunks: int | None
) -> None:
    def draw(strategy: st.SearchStrategy) -> list:
        return data.draw(st.lists(strategy, min_size=num_chunks, max_size=num_chunks))

    teacher, boundary = draw(st.floats(-5, 0)), draw(st.sampled_from([-3.0, -1.0, -0.1, -50.0]))
    valid, adjacent = draw(st.sampled_from([True, True, True, False])), draw(st.sampled_from([True, True, True, False]))
    scores = torch.tensor([teacher], dtype=torch.float64)
    boundaries = torch.tensor([boundary], dtype=torch.float64)
    chunks = ChunkScores(scores, 2 * scores, boundaries, 3 * boundaries, torch.tensor([valid], dtype=torch.bool))

    groups, open_groups = merge_chunks(chunks, torch.tensor([adjacent], dtype=torch.bool), gamma, max_chunks)

    expected = merged_by_hand(teacher, boundary, valid, adjacent, gamma, max_chunks)
    found = groups.valid[0]
    assert int(found.sum()) == len(expected)
    assert open_groups[0][found].tolist() == [is_open for _, _, is_open in expected]
    assert not open_groups[~groups.valid].any()
    for field, oracle in (
        (groups.teacher_logp, [total for total, _, _ in expected]),
        (groups.student_logp, [2 * total for total, _, _ in expected]),
        (groups.teacher_boundary, [end for _, end, _ in expected]),
        (groups.student_boundary, [3 * end for _, end, _ in expected]),
    ):
        torch.testing.assert_close(field[0][found], torch.tensor(oracle, dtype=torch.float64))


def test_a_full_group_is_counted_from_its_first_valid_chunk() -> None:
    logp = torch.tensor([[-1.0, -2.0, -3.0, -4.0, -5.0]])
    never = torch.full_like(logp, -50.0)
    valid = torch.tensor([[False, True, True, True, True]])
    adjacent = torch.tensor([[False, True, True, True, True]])
    groups, open_groups = merge_chunks(ChunkScores(logp, logp, never, never, valid), adjacent, 0.5, max_chunks=2)
    assert groups.teacher_logp[groups.valid].tolist() == [-5, -9]
    assert open_groups[groups.valid].all()
