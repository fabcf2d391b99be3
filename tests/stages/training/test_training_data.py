"""Windows are padded without a trace and come in an order that the seed alone sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stages.stage import StageError
from stages.training.aligner import DocumentAligner
from stages.training.batch import collate
from stages.training.layout import micro_batches
from stages.training.random import generator
from stages.training.stream import WindowStream
from stages.training.windows import Document, Window, plain_windows

TEXT = "The quick brown fox jumps over 12345 lazy dogs.\n    def add(x):\n        return x + 1\n" * 6


@pytest.fixture(scope="module")
def windows_of(tiny_tokenizer_dirs):
    def cut(text: str, window_tokens: int) -> list[Window]:
        return DocumentAligner(*tiny_tokenizer_dirs, window_tokens)(Document("d", text, 1.0), 0, 0)

    return cut


def test_padding_has_no_label_no_chunk_and_no_attention(windows_of):
    long, short = (windows_of(text, 64)[0] for text in (TEXT, "Tokens."))
    alone, padded = collate([short]).student, collate([long, short]).student
    length = alone.ids.shape[1]
    for name in ("ids", "attention", "labels", "chunk", "scored"):
        assert torch.equal(getattr(padded, name)[1, :length], getattr(alone, name)[0])
    assert padded.attention[1, length:].sum() == 0
    assert (padded.labels[1, length:] == -100).all()
    assert (padded.chunk[1, length:] == -1).all()


def _numbered(count: int, weight: float = 1.0) -> list[Document]:
    return [Document(str(number), f"{number:03d}", weight) for number in range(count)]


def _one_window(document: Document, number: int, epoch: int):
    return plain_windows(np.array([number, epoch, 7], dtype=np.int32), np.ones(10_000, np.int32), (), 8)


def _first_ids(windows) -> list[int]:
    return [int(window.student.ids[0]) for window in windows]


def test_an_epoch_reads_every_document_once_in_a_new_order():
    stream = WindowStream(_numbered(20), _one_window, seed=3)
    first, second = _first_ids(stream.take(20)), _first_ids(stream.take(20))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert first == _first_ids(WindowStream(_numbered(20), _one_window, seed=3).take(20))
    assert first != _first_ids(WindowStream(_numbered(20), _one_window, seed=4).take(20))


def test_a_restored_stream_reads_on_exactly_across_an_epoch_end():
    uninterrupted = WindowStream(_numbered(7), _one_window, seed=1)
    expected = [_first_ids(uninterrupted.take(3)) for _ in range(6)]
    stream = WindowStream(_numbered(7), _one_window, seed=1)
    for _ in range(3):
        stream.take(3)
    resumed = WindowStream(_numbered(7), _one_window, seed=1)
    resumed.restore(stream.state())
    assert [_first_ids(resumed.take(3)) for _ in range(3)] == expected[3:]


def test_weights_are_mean_readings_per_epoch():
    stream = WindowStream(_numbered(400, weight=1.5), _one_window, seed=5)
    readings = len(stream.windows_in_epoch(0))
    assert 560 <= readings <= 640  # 400 * 1.5, four standard deviations of 400 coin flips
    assert len(WindowStream(_numbered(10, weight=3.0), _one_window, seed=5).windows_in_epoch(0)) == 30


def test_text_shorter_than_one_batch_is_refused_with_the_numbers():
    with pytest.raises(StageError, match=r"makes only 3 windows, but one batch needs 8"):
        WindowStream(_numbered(3), _one_window, seed=0).take(8)


def test_text_without_a_window_is_refused_with_what_may_be_the_cause():
    with pytest.raises(StageError, match=r"nothing to learn from in data\.train: .* train_on"):
        WindowStream(_numbered(3), lambda document, number, epoch: [], seed=0).take(1)


@pytest.mark.parametrize(("world_size", "micro"), [(1, 12), (1, 3), (2, 6), (2, 2), (4, 1)])
def test_ranks_and_micro_batches_share_out_every_window_once(windows_of, world_size, micro):
    windows = windows_of(TEXT * 3, 40)[:12]
    seen = []
    for rank in range(world_size):
        for batch in micro_batches(windows, micro, rank, world_size):
            assert len(batch.student.ids) == micro
            seen += [
                row[mask.bool()].tolist() for row, mask in zip(batch.student.ids, batch.student.attention, strict=False)
            ]
    assert sorted(seen) == sorted(window.student.ids.tolist() for window in windows)


def test_random_streams_differ_by_every_number_of_their_name():
    draws = {tuple(generator(*name).integers(0, 2**32, 4)) for name in [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 0)]}
    assert len(draws) == 4
