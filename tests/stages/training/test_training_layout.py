"""Windows of a step in rows, micro-batches and processes: each once, within the budget, and alike for every process."""

from __future__ import annotations

from itertools import chain

import torch
from hypothesis import given
from hypothesis import strategies as st
from made_windows import window

from stages.training.data.batch import SideBatch, collate, collate_packed
from stages.training.data.layout import empty_like, micro_batches, pack

ROW = 24
SIZES = st.lists(st.tuples(st.integers(1, ROW), st.integers(1, ROW)), min_size=1, max_size=40)
GROUPS = st.lists(st.tuples(st.integers(1, ROW), st.integers(1, ROW), st.integers(0, 2)), min_size=1, max_size=24)


def numbers(batch: SideBatch) -> list[int]:
    """The windows of a batch, by the first token of each; fillers begin with id 0."""
    firsts = batch.ids[(batch.positions == 0) & (batch.attention > 0)]
    return [int(first) // 100 for first in firsts if first]


@given(SIZES)
def test_rows_hold_every_window_once_within_the_budget(sizes):
    windows = [window(number, *size) for number, size in enumerate(sizes)]
    rows = pack(windows, ROW)
    assert sorted(id(each) for each in chain(*rows)) == sorted(map(id, windows))
    for row in rows:
        assert sum(len(each.student.ids) for each in row) <= ROW
        assert sum(len(each.teacher.ids) for each in row) <= ROW
    assert [[id(each) for each in row] for row in pack(windows, ROW)] == [[id(each) for each in row] for row in rows]


@given(SIZES)
def test_rows_are_no_more_than_next_fit_makes_and_no_fewer_than_the_tokens_need(sizes):
    windows = [window(number, *size) for number, size in enumerate(sizes)]
    open_rows, room = 0, (0, 0)
    for student, teacher in sorted(sizes, key=max, reverse=True):
        if student > room[0] or teacher > room[1]:
            open_rows, room = open_rows + 1, (ROW, ROW)
        room = (room[0] - student, room[1] - teacher)
    needed = max(-(-sum(size[index] for size in sizes) // ROW) for index in (0, 1))
    assert needed <= len(pack(windows, ROW)) <= open_rows


def test_first_fit_decreasing_by_hand():
    rows = pack([window(number, tokens, None) for number, tokens in enumerate([3, 6, 5, 4, 2])], 10)
    assert [[len(each.student.ids) for each in row] for row in rows] == [[6, 4], [5, 3, 2]]


@given(GROUPS, st.integers(1, 4), st.one_of(st.none(), st.integers(1, 5)), st.sampled_from([None, ROW]))
def test_processes_share_out_every_window_once_and_agree_on_the_teachers(sizes, world_size, micro, row_tokens):
    windows = [window(number, *size) for number, size in enumerate(sizes)]
    shares = [list(micro_batches(windows, micro, rank, world_size, row_tokens)) for rank in range(world_size)]
    assert len({tuple(batch.teacher_number for batch in share) for share in shares}) == 1
    for share in shares:
        for batch in share:
            assert all(windows[number].teacher_number == batch.teacher_number for number in numbers(batch.student))
            assert numbers(batch.student) == numbers(batch.teacher)
            assert micro is None or len(batch.student.ids) <= micro
            assert batch.num_chunks > int(batch.student.chunk.max())
    found = [number for share in shares for batch in share for number in numbers(batch.student)]
    assert sorted(found) == list(range(len(windows)))


@given(SIZES, st.integers(2, 4), st.sampled_from([None, ROW]))
def test_processes_differ_by_one_row_of_tokens_at_most(sizes, world_size, row_tokens):
    windows = [window(number, *size) for number, size in enumerate(sizes)]
    tokens = [
        sum(int(batch.student.attention.sum()) for batch in micro_batches(windows, None, rank, world_size, row_tokens))
        for rank in range(world_size)
    ]
    assert max(tokens) - min(tokens) <= ROW


@given(SIZES)
def test_a_packed_row_says_of_every_window_what_its_own_row_says(sizes):
    windows = [window(number, *size) for number, size in enumerate(sizes)]
    rows = pack(windows, ROW)
    packed, alone = collate_packed(rows), collate(list(chain(*rows)))
    for ours, theirs in ((packed.student, alone.student), (packed.teacher, alone.teacher)):
        assert ours.num_windows == theirs.num_windows == len(windows)
        for number in range(len(windows)):
            here, there = ours.window == number, theirs.window == number
            assert (here.sum(1) > 0).sum() == 1
            for name in ("ids", "scored", "lengths", "positions"):
                assert torch.equal(getattr(ours, name)[here], getattr(theirs, name)[there]), name
            # A window's last position predicts nothing, however the row goes on.
            assert torch.equal(ours.labels[here], theirs.labels[there])
    _assert_chunks_stay_within_windows(packed.student)
    _assert_chunks_stay_within_windows(packed.teacher)


def _assert_chunks_stay_within_windows(side: SideBatch) -> None:
    for chunk, of_window in zip(side.chunk, side.window, strict=True):
        windows_of = {}
        for number, found in zip(chunk.tolist(), of_window.tolist(), strict=True):
            if number >= 0:
                windows_of.setdefault(number, set()).add(found)
        assert all(len(found) == 1 for found in windows_of.values())
        assert sorted(windows_of) == list(windows_of)


def test_what_fills_up_rows_is_read_and_teaches_nothing():
    batch = collate([empty_like(window(0, 5, 7, teacher_number=2))])
    assert batch.teacher_number == 2
    for each in (batch.student, batch.teacher):
        assert each.attention.tolist() == [[1]]  # a row in which nothing is read would divide 0 by 0 in attention
        assert not each.scored.any()
        assert (each.labels == -100).all()
        assert (each.chunk == -1).all()
    assert collate([empty_like(window(0, 5, None))]).teacher is None
