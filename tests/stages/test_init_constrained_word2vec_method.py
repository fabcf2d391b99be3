"""The method cw2v: rows trained on text inside the hull of the old ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from init_world import make_task, make_transplant

from alignment.byte_view import ByteView
from stages.initialisation.methods.constrained_word2vec import CW2V
from stages.initializers.constrained_word2vec import CW2VOptions
from stages.stage import StageError, StageInterrupted

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "Tokens are byte strings; two tokenizations of one text meet.",
    "def add(left, right):\n    return left + right",
    "Ein Häuschen steht im Wald.",
]


@pytest.fixture(scope="module")
def views(tiny_tokenizer_dirs):
    return tuple(ByteView.from_tokenizer(directory) for directory in tiny_tokenizer_dirs)


def _fitted(task, **options):
    small = {"rank": 4, "batch_pairs": 100, "max_steps": 20, "epochs": 20, "learning_rate": 0.05}
    method = CW2V(CW2VOptions(method="cw2v", **small | options), task)
    method.fit()
    return method


def test_new_tokens_of_the_text_get_rows_inside_the_hull(views):
    lines = []
    transplant = replace(make_transplant(views=views, texts=TEXTS), progress=lines.append)
    task = make_task(transplant, rows=torch.eye(views[0].vocab_size, 8).bfloat16())
    block = _fitted(task).rows(torch.arange(views[1].vocab_size))
    alignment = task.alignment
    seen = np.unique(np.concatenate([encoding.ids for encoding in views[1].encode_batch(TEXTS)]))
    expected = alignment.copied.copy()
    expected[seen] = True
    np.testing.assert_array_equal(block.made.numpy(), expected)
    made = block.values(task.rows)[block.made]
    assert (made >= 0).all()
    assert (made.sum(dim=1) <= 1 + 1e-5).all()
    assert "step 1 of 20, loss" in lines[0]
    assert "step 20 of 20, loss" in lines[-1]


def test_copied_tokens_keep_their_rows(views):
    task = make_task(make_transplant(views=views, texts=TEXTS))
    copied = np.flatnonzero(task.alignment.copied)
    sources = task.alignment.pieces[task.alignment.offsets[copied]]
    block = _fitted(task, max_steps=2).rows(torch.from_numpy(copied))
    assert torch.equal(block.rows, task.rows[torch.from_numpy(sources).long()])


def test_rows_depend_neither_on_the_block_nor_on_an_earlier_run(tmp_path, views):
    ids = torch.arange(views[1].vocab_size)
    task = make_task(make_transplant(views=views, texts=TEXTS, cache=tmp_path))
    method = _fitted(task)
    whole = method.rows(ids).rows
    assert torch.equal(torch.cat([method.rows(block).rows for block in ids.split(19)]), whole)
    assert torch.equal(_fitted(task).rows(ids).rows, whole)
    assert len(list(tmp_path.iterdir())) == 1
    assert torch.equal(_fitted(make_task(make_transplant(views=views, texts=TEXTS))).rows(ids).rows, whole)
    other = make_task(make_transplant(views=views, texts=TEXTS, seed=18, cache=tmp_path))
    assert not torch.equal(_fitted(other).rows(ids).rows, whole)
    assert len(list(tmp_path.iterdir())) == 2


def test_it_wants_text():
    with pytest.raises(StageError, match=r"cw2v learns from text.*data\.train"):
        CW2V(CW2VOptions(method="cw2v"), make_task())


def test_it_stops_when_asked_and_keeps_nothing(tmp_path, views):
    calls = iter([False, False, True])
    transplant = make_transplant(views=views, texts=TEXTS, cache=tmp_path)
    task = make_task(replace(transplant, should_stop=lambda: next(calls)))
    with pytest.raises(StageInterrupted):
        _fitted(task)
    assert not list(tmp_path.iterdir())
