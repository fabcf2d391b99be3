"""The order of the data is a function of seed and weights alone, and goes on exactly from where it was saved."""

from __future__ import annotations

import itertools
import json
import threading
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from window_world import Numbered, names, numbered, source, stream

from stages.stage import StageError
from stages.training.data.order import ReadingOrder, Streamed
from stages.training.data.stream import WindowStream


def _several(number: int) -> int:
    return number % 4  # some documents have no window at all


def test_an_epoch_reads_every_document_once_in_a_new_order():
    data = stream(numbered(20), seed=3)
    first, second = names(data.take(20)), names(data.take(20))
    assert sorted(first) == [(number, 0, 0) for number in range(20)]
    assert sorted(second) == [(number, 1, 0) for number in range(20)]
    assert [number for number, *_ in first] != [number for number, *_ in second]
    assert first == names(stream(numbered(20), seed=3).take(20))
    assert first != names(stream(numbered(20), seed=4).take(20))


def test_documents_of_one_block_are_mixed_and_those_of_different_blocks_are_not():
    data = stream(numbered(40), Numbered(lambda number: 3), seed=1, block_documents=10)
    blocks = [names(data.take(30)) for _ in range(4)]
    documents = [{number for number, *_ in block} for block in blocks]
    assert all(len(each) == 10 for each in documents)
    assert set().union(*documents) == set(range(40))
    # Not the documents one after the other, nor in the order of the file.
    assert all(len({number for number, *_ in block[:10]}) > 4 for block in blocks)
    assert documents != [set(range(start, start + 10)) for start in range(0, 40, 10)]


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(1, 30),
    block=st.integers(1, 12),
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=8),
    stop=st.integers(0, 7),
    weight=st.sampled_from([1.0, 0.5, 1.5, 3.0]),
)
def test_a_restored_stream_reads_on_exactly_from_anywhere(count, block, sizes, stop, weight):
    def fresh() -> WindowStream:
        maker = Numbered(lambda number: 1 + number % 3)
        return stream(numbered(count, weight), maker, seed=7, block_documents=block)

    uninterrupted, before = fresh(), fresh()
    try:
        expected = [names(uninterrupted.take(size)) for size in sizes]
    except StageError:
        return  # the first epoch is smaller than the first batch
    stop = min(stop, len(sizes))
    for size in sizes[:stop]:
        before.take(size)
    resumed = fresh()
    resumed.restore(json.loads(json.dumps(before.state())))
    assert [names(resumed.take(size)) for size in sizes[stop:]] == expected[stop:]
    assert resumed.account == uninterrupted.account


def test_weights_are_mean_readings_per_epoch_and_set_the_proportions():
    weights = {"often": 1.5, "once": 1.0, "rare": 0.25}
    documents = [document for name, weight in weights.items() for document in numbered(400, weight, name)]
    data = stream(documents, seed=5, block_documents=100)
    epochs = 6
    while data.epoch < epochs:
        data.take(1)
    readings = {name: drawn["documents"] / epochs for name, drawn in data.account.drawn.items()}
    # Means of 2,400 coin flips: the standard error is below 0.011 an epoch and document.
    for name, weight in weights.items():
        assert readings[name] == pytest.approx(400 * weight, abs=400 * 0.045), name
    whole = stream(numbered(10, 3.0), seed=5)
    assert Counter(number for number, *_ in names(whole.take(30))) == dict.fromkeys(range(10), 3)


def test_every_document_enters_the_account_once_however_often_it_is_read():
    documents = [*numbered(30, 2.0, "twice"), *numbered(30, 0.3, "rarely")]
    data = stream(documents, seed=2, block_documents=7)
    rarely = 0
    for epoch in range(1, 30):
        while data.epoch < epoch:
            data.take(1)
        assert data.account.documents >= 30
        rarely = data.account.documents - 30
    assert rarely == 30  # each misses 29 epochs with a probability of 3e-5
    assert data.account.sizes["bytes"] == 7 * 60
    assert data.account.drawn["twice"]["documents"] >= 60 * 28


def test_what_was_drawn_is_what_was_taken():
    documents = [*numbered(6, domain="a"), *numbered(6, domain="b")]
    data = stream(documents, Numbered(lambda number: 3), seed=4, block_documents=5)
    taken = names(data.take(23))
    for domain, numbers in (("a", range(6)), ("b", range(6, 12))):
        mine = [name for name in taken if name[0] in numbers]
        expected = {"documents": round(len(mine) / 3, 2), "windows": len(mine), "bytes": 3 * len(mine)}
        assert data.account.mixture()[domain] == expected


def test_text_shorter_than_one_batch_is_refused_with_the_numbers():
    with pytest.raises(StageError, match=r"makes only 3 windows, but one batch needs 8 \(batch_windows\)"):
        stream(numbered(3), block_documents=2).take(8)
    with pytest.raises(StageError, match=r"makes only 9 tokens, but one batch needs 100 \(batch_tokens\)"):
        stream(numbered(3)).take_tokens(100)
    late = stream(numbered(5))
    late.take(4)
    assert len(late.take(20)) == 20  # later on, epochs simply follow one another


def test_text_without_a_window_is_refused_with_what_may_be_the_cause():
    with pytest.raises(StageError, match=r"nothing to learn from in data\.train: .* train_on"):
        stream(numbered(3), Numbered(lambda number: 0)).take(1)


def test_an_epoch_that_reads_nothing_is_passed_over():
    data = stream(numbered(2, 0.2), Numbered(lambda number: 5 * number), seed=6)  # and document 0 has no window
    while data.epoch < 40:
        data.take(1)
    assert 5 < data.account.drawn["d"]["windows"] < 40 * 5 / 2


def test_looking_at_the_data_does_not_move_on():
    data = stream(numbered(12), Numbered(_several), seed=9, block_documents=3)
    data.check(10, None)
    assert data.account.documents > 0
    assert data.account.drawn == {}
    fresh = stream(numbered(12), Numbered(_several), seed=9, block_documents=3)
    assert names(data.take(10)) == names(fresh.take(10))
    assert data.account == fresh.account


def test_a_budget_of_tokens_takes_the_same_windows_as_counting_them():
    data, counted = (stream(numbered(12), Numbered(_several), seed=1, block_documents=3) for _ in range(2))
    for budget, count in ((11, 3), (12, 4), (13, 4), (1, 1)):  # every window has three tokens
        assert names(data.take_tokens(budget)) == names(counted.take(count))


class _Together:
    """Lets ranks in threads of one process give each other their outcomes."""

    def __init__(self, size: int) -> None:
        self._outcomes = [None] * size
        self._barrier = threading.Barrier(size)

    def of(self, rank: int):
        def exchange(outcome):
            self._outcomes[rank] = outcome
            self._barrier.wait()
            outcomes = list(self._outcomes)
            self._barrier.wait()
            return outcomes

        return exchange


def _shared(size: int, take, state=None, made=None, **options):
    """What every one of ``size`` ranks takes, and the state that each is in afterwards."""
    together, results = _Together(size), [None] * size

    def work(rank: int) -> None:
        maker = Numbered(_several)
        if made is not None:
            counting = maker.make
            maker = type("Counting", (), {"prepare": maker.prepare, "describe": maker.describe})()
            maker.make = lambda document, number, epoch, done: (
                made.append((rank, number, epoch)) or counting(document, number, epoch, done)
            )
        blocks = source(
            numbered(50), maker, seed=6, block_documents=9, rank=rank, world_size=size, exchange=together.of(rank),
            **options,
        )  # fmt: skip
        data = WindowStream(blocks)
        if state is not None:
            data.restore(state)
        results[rank] = ([names(data.take(count)) for count in take], data.state())

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


@pytest.mark.parametrize("size", [2, 3, 5])
def test_ranks_make_disjoint_shares_and_see_the_one_order(size):
    made: list[tuple[int, int, int]] = []
    take = [8, 16, 16, 16, 16, 16]
    ((expected, state),) = _shared(1, take)
    for windows, end in _shared(size, take, made=made):
        assert windows == expected
        assert end == state
    documents = [(number, epoch) for _, number, epoch in made]
    assert len(set(documents)) == len(documents)
    assert {rank for rank, *_ in made} == set(range(size))


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (3, 3)])
def test_training_goes_on_at_another_number_of_ranks(before, after):
    ((expected, end),) = _shared(1, [7] * 12)
    first = _shared(before, [7] * 5)
    assert all(windows == expected[:5] for windows, _ in first)
    for windows, state in _shared(after, [7] * 7, state=json.loads(json.dumps(first[0][1]))):
        assert windows == expected[5:]
        assert state == end


@settings(deadline=None, max_examples=60)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    weights=st.lists(st.sampled_from([0.3, 1.0, 1.7]), min_size=3, max_size=3),
    shuffled=st.integers(0, 20),
    block=st.integers(1, 15),
)
def test_streamed_sets_are_read_in_order_and_mixed_in_by_their_weights(counts, weights, shuffled, block):
    firsts = itertools.accumulate(counts, initial=shuffled)
    sets = [Streamed(first, count, weight) for first, count, weight in zip(firsts, counts, weights, strict=False)]
    order = ReadingOrder(np.ones(shuffled), sets, 0, block)
    epochs = 4
    blocks = [order.readings(epoch, number) for epoch in range(epochs) for number in range(order.blocks(epoch))]
    read = np.concatenate([each.numbers for each in blocks])
    new = np.concatenate([each.new for each in blocks])
    assert sorted(read[new]) == sorted(set(read.tolist()))
    for each in sets:
        mine = read[(read >= each.first) & (read < each.first + each.count)] - each.first
        assert mine.tolist() == [number % each.count for number in range(int(epochs * each.weight * each.count))]
    # An epoch's mixture is that of each of its blocks, to within a document of every set.
    for epoch in range(epochs):
        parts = [order.readings(epoch, number) for number in range(order.blocks(epoch))]
        for each in sets:
            sizes = [((p.numbers >= each.first) & (p.numbers < each.first + each.count)).sum() for p in parts]
            assert max(sizes) - min(sizes) <= 1
        assert sum(len(part.numbers) for part in parts) <= len(parts) * block


def test_blocks_are_the_same_in_any_order_of_asking():
    weights = np.array([0.4, 1.0, 2.3] * 10)
    forward, back = (ReadingOrder(weights, (), 11, 8) for _ in range(2))
    places = [(epoch, block) for epoch in range(5) for block in range(forward.blocks(epoch))]
    asked = {place: forward.readings(*place) for place in places}
    for place in reversed(places):
        again = back.readings(*place)
        assert again.numbers.tolist() == asked[place].numbers.tolist()
        assert again.new.tolist() == asked[place].new.tolist()
