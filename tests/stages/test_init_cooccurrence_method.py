"""The method tokalign: rows copied from the old tokens that keep the same company."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from init_world import make_task, make_transplant

from alignment.byte_view import ByteView
from stages.initialisation.methods.cooccurrence import TokAlign
from stages.initializers.cooccurrence import TokAlignOptions
from stages.stage import StageError, StageInterrupted

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "Tokens are byte strings; two tokenizations of one text meet.",
    "def add(left, right):\n    return left + right",
    "Ein Häuschen steht im Wald.",
] * 3


@pytest.fixture(scope="module")
def views(tiny_tokenizer_dirs):
    return tuple(ByteView.from_tokenizer(directory) for directory in tiny_tokenizer_dirs)


def _fitted(task, **options):
    method = TokAlign(TokAlignOptions(method="tokalign", **{"dimensions": 20, "min_count": 2} | options), task)
    method.fit()
    return method


def test_every_row_is_a_copy_of_one_old_row(views):
    task = make_task(make_transplant(views=views, texts=TEXTS), dtype=torch.bfloat16)
    ids = torch.arange(views[1].vocab_size)
    block = _fitted(task).rows(ids)
    seen = np.bincount(
        np.concatenate([view.ids for view in views[1].encode_batch(TEXTS)]), minlength=views[1].vocab_size
    )
    np.testing.assert_array_equal(block.made.numpy(), seen >= 2)
    values = block.values(task.rows)
    for token in block.made.nonzero().flatten().tolist():
        assert torch.equal(values[token], task.rows[block.rows.indices[token, 0]].float())
    assert block.diagnostics["similarity"][block.made].isfinite().all()


def test_equal_tokenizers_find_every_token_of_the_text(views):
    view = views[0]
    task = make_task(make_transplant(views=(view, view), texts=TEXTS))
    block = _fitted(task, dimensions=300).rows(torch.arange(view.vocab_size))
    made = block.made.nonzero().flatten()
    found = block.rows.indices[made, 0]
    # Tokens that only ever stand side by side, in one text, have the same company.
    assert (found == made).float().mean() > 0.9
    assert block.diagnostics["similarity"][made].min() > 0.999


def test_rows_depend_neither_on_the_block_nor_on_an_earlier_run(tmp_path, views):
    task = make_task(make_transplant(views=views, texts=TEXTS, cache=tmp_path))
    ids = torch.arange(views[1].vocab_size)
    method = _fitted(task)
    whole = method.rows(ids)
    assert torch.equal(torch.cat([method.rows(block).rows.indices for block in ids.split(19)]), whole.rows.indices)
    assert len(list(tmp_path.iterdir())) == 2
    assert torch.equal(_fitted(task).rows(ids).rows.indices, whole.rows.indices)
    plain = _fitted(make_task(make_transplant(views=views, texts=TEXTS)))
    assert torch.equal(plain.rows(ids).rows.indices, whole.rows.indices)
    _fitted(make_task(make_transplant(views=views, texts=TEXTS[1:], cache=tmp_path)))
    assert len(list(tmp_path.iterdir())) == 4


def test_it_wants_text():
    with pytest.raises(StageError, match=r"tokalign learns from text.*data\.train"):
        TokAlign(TokAlignOptions(method="tokalign"), make_task())


def test_a_text_without_frequent_shared_tokens_is_refused(views):
    task = make_task(make_transplant(views=views, texts=["a"]))
    with pytest.raises(StageError, match=r"none of the \d+ shared tokens at least 2 times"):
        _fitted(task)


def test_it_stops_when_asked(views):
    transplant = replace(make_transplant(views=views, texts=TEXTS), should_stop=lambda: True)
    with pytest.raises(StageInterrupted):
        _fitted(make_task(transplant))
