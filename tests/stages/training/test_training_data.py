"""Windows keep every aligned token once, cut only at common boundaries, and come in an order set by the seed alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignment.byte_view import ByteView
from stages.stage import StageError
from stages.training.data import (
    Document,
    WindowStream,
    collate,
    distillation_windows,
    generator,
    micro_batches,
    plain_windows,
)

TEXT = "The quick brown fox jumps over 12345 lazy dogs.\n    def add(x):\n        return x + 1\n" * 6


@pytest.fixture(scope="module")
def views(tiny_tokenizer_dirs):
    return tuple(ByteView.from_tokenizer(path) for path in tiny_tokenizer_dirs)


def _spelled(view: ByteView, ids) -> bytes:
    return b"".join(view.token_bytes(int(token)) for token in ids)


@pytest.mark.parametrize("window_tokens", [8, 17, 64, 10_000])
def test_windows_spell_the_document_on_both_sides(views, window_tokens):
    teacher, student = views
    windows = distillation_windows(Document("d", TEXT, 1.0), teacher, student, window_tokens)
    position = 0
    for window in windows:
        piece = _spelled(student, window.student.ids)
        assert piece == _spelled(teacher, window.teacher.ids)
        # What lies between two windows is at most one chunk, which alone would have nothing to score.
        position = TEXT.encode().index(piece, position, position + len(piece) + window_tokens) + len(piece)
    assert len(TEXT.encode()) - position <= window_tokens
    for window in windows:
        assert max(len(window.teacher.ids), len(window.student.ids)) <= window_tokens
        for chunk in range(window.num_chunks):
            left = _spelled(teacher, window.teacher.ids[window.teacher.chunk == chunk])
            right = _spelled(student, window.student.ids[window.student.chunk == chunk])
            assert left == right != b""


@given(text=st.text(max_size=200), window_tokens=st.integers(8, 40))
def test_any_text_gives_windows_whose_chunks_have_equal_bytes(views, text, window_tokens):
    teacher, student = views
    for window in distillation_windows(Document("d", text, 1.0), teacher, student, window_tokens):
        assert _spelled(teacher, window.teacher.ids) == _spelled(student, window.student.ids)
        assert len(window.student.ids) <= window_tokens
        # Every window has something to learn from, or a small batch could have nothing at all.
        assert collate([window]).student.scored.any()
        assert window.num_chunks >= 2


@given(length=st.integers(0, 60), room=st.integers(3, 12), prefix=st.sampled_from([(), (99,)]))
def test_plain_windows_predict_every_token_but_the_first_exactly_once(length, room, prefix):
    ids = np.arange(100, 100 + length, dtype=np.int32)
    predicted = []
    for window in plain_windows(ids, prefix, room):
        batch = collate([window]).student
        predicted += batch.labels[batch.labels != -100].tolist()
    expected = ids.tolist() if prefix else ids.tolist()[1:]
    assert predicted == expected


def test_padding_has_no_label_no_chunk_and_no_attention(views):
    teacher, student = views
    long, short = (distillation_windows(Document("d", t, 1.0), teacher, student, 64)[0] for t in (TEXT, "Tokens."))
    alone, padded = collate([short]).student, collate([long, short]).student
    length = alone.ids.shape[1]
    for name in ("ids", "attention", "labels", "chunk", "scored"):
        assert torch.equal(getattr(padded, name)[1, :length], getattr(alone, name)[0])
    assert padded.attention[1, length:].sum() == 0
    assert (padded.labels[1, length:] == -100).all()
    assert (padded.chunk[1, length:] == -1).all()


def test_a_document_that_a_tokenizer_rewrites_is_refused_by_name(views, tmp_path):
    from tokenizers import normalizers
    from transformers import AutoTokenizer

    lossy = AutoTokenizer.from_pretrained(views[0].name)
    lossy.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(StageError, match=r"document d/7: .*from byte 0 .*b'The quick"):
        distillation_windows(Document("d/7", TEXT, 1.0), ByteView.from_tokenizer(lossy), views[1], 64)


def _numbered(count: int, weight: float = 1.0) -> list[Document]:
    return [Document(str(number), f"{number:03d}", weight) for number in range(count)]


def _one_window(document: Document, number: int, epoch: int):
    return plain_windows(np.array([number, epoch, 7], dtype=np.int32), (), 8)


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


@pytest.mark.parametrize(("world_size", "micro"), [(1, 12), (1, 3), (2, 6), (2, 2), (4, 1)])
def test_ranks_and_micro_batches_share_out_every_window_once(views, world_size, micro):
    teacher, student = views
    windows = distillation_windows(Document("d", TEXT * 3, 1.0), teacher, student, 40)[:12]
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
