"""Windows are padded without a trace and shared out whole."""

from __future__ import annotations

import pytest
import torch

from stages.training.data.aligner import DocumentAligner
from stages.training.data.batch import collate
from stages.training.data.layout import micro_batches
from stages.training.data.windows import Document, Window
from stages.training.random import generator

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
