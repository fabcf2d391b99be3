"""The method tokenadapt and the text encoder that it asks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from init_world import make_task, make_transplant
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from stages.initialisation.methods.tokenadapt import TokenAdapt
from stages.initialisation.text_encoder import TextEncoder
from stages.initializers.tokenadapt import TokenAdaptOptions
from stages.stage import StageError, StageInterrupted

SOURCE = [b"e", b"l", "東".encode(), b"hel", b"lo", b"hello ", b"\xe6", b"\x9d", b"\xb1", b" ", b" HELLO", None]
TARGET = [b"hello", "e東".encode(), b"\xe6\x9d", b"xyz", b"hel", b"  ", None]
HELLO, MIXED, PART, UNKNOWN, COPY, BLANK, SPECIAL = range(7)


@pytest.fixture(scope="module")
def encoder_dir(tiny_tokenizer_dirs, tmp_path_factory):
    """A random two-layer BERT of width 16 on a tiny byte-level tokenizer."""
    directory = tmp_path_factory.mktemp("encoder")
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dirs[0])
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(directory)
    return directory


def _task(**options):
    return make_task(make_transplant(SOURCE, TARGET, **options))


def _fitted(encoder_dir, task=None, **options):
    method = TokenAdapt(
        TokenAdaptOptions(method="tokenadapt", encoder=str(encoder_dir), **options), _task() if task is None else task
    )
    method.fit()
    return method


def _embedding(directory, text):
    """The mean hidden state of one text alone, in float64, of norm 1."""
    tokenizer, model = AutoTokenizer.from_pretrained(directory), AutoModel.from_pretrained(directory)
    states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].detach().double()
    mean = states.mean(dim=0)
    return mean / mean.norm()


def test_embeddings_do_not_depend_on_the_batch(encoder_dir):
    texts = ["hello", "a much longer text about tokens", "x", "", "def add(left, right)"]
    encoder = TextEncoder(encoder_dir)
    done = []
    found = encoder.encode(texts, 2, done.append)
    assert done == [2, 4, 5]
    np.testing.assert_allclose(encoder.encode(texts, 100), found, atol=1e-5)
    for text, embedding in zip(texts, found, strict=True):
        expected = _embedding(encoder_dir, text).numpy() if text else np.zeros(16)
        np.testing.assert_allclose(embedding, expected, atol=1e-5)


def test_a_row_is_that_of_the_formula_in_float64(encoder_dir):
    task = _task()
    row = _fitted(encoder_dir, task).rows(torch.tensor([HELLO])).values(task.rows)[0]
    texts = ["e", "l", "東", "hel", "lo", "hello ", " HELLO"]
    old = dict(zip(texts, (0, 1, 2, 3, 4, 5, 10), strict=True))
    similarity = {text: float(_embedding(encoder_dir, text) @ _embedding(encoder_dir, "hello")) for text in texts}

    pieces = np.exp([similarity["hel"], similarity["lo"]])
    local = np.exp((pieces / pieces.sum() + np.array([3, 2]) / 5) / 2 / 0.3)
    local /= local.sum()
    nearest = sorted(texts, key=lambda text: -similarity[text])[:3]
    weights = np.exp([similarity[text] / 0.3 for text in nearest])
    weights /= weights.sum()
    rows = task.rows.double().numpy()
    expected = 0.7 * (local @ rows[[3, 4]]) + 0.3 * (weights @ rows[[old[text] for text in nearest]])
    np.testing.assert_allclose(row.numpy(), expected, atol=1e-5)


def test_tokens_without_text_are_left_to_the_next_method(encoder_dir):
    block = _fitted(encoder_dir).rows(torch.arange(len(TARGET)))
    assert block.made.tolist() == [True, True, False, True, True, False, False]


def test_without_pieces_only_neighbours_count_and_without_neighbours_only_pieces(encoder_dir):
    rows = _fitted(encoder_dir).rows(torch.tensor([UNKNOWN, HELLO])).rows
    assert rows.weights[0].sum().item() == pytest.approx(1)
    assert (rows.indices[0] >= 0).sum() == 3
    rows = _fitted(encoder_dir, threshold=0.99).rows(torch.tensor([UNKNOWN, HELLO])).rows
    assert (rows.indices[0] == -1).all()
    assert sorted(rows.indices[1][rows.indices[1] >= 0].tolist()) == [3, 4]


def test_special_and_blank_tokens_are_never_neighbours(encoder_dir):
    rows = _fitted(encoder_dir, neighbours=50).rows(torch.tensor([HELLO])).rows
    assert set(rows.indices[0].tolist()) - {-1} == {0, 1, 2, 3, 4, 5, 10}


def test_rows_are_convex_and_depend_neither_on_the_block_nor_on_the_ids(encoder_dir):
    task = _task()
    method = _fitted(encoder_dir, task)
    ids = torch.arange(len(TARGET))
    block = method.rows(ids)
    whole = block.values(task.rows)
    apart = torch.cat([method.rows(token[None]).values(task.rows) for token in ids])
    torch.testing.assert_close(apart, whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(block.rows.weights.sum(dim=1)[block.made], torch.ones(int(block.made.sum())))
    assert (block.rows.weights >= 0).all()

    order = [4, 2, 0, 5, 1, 3, 6]
    permuted = make_task(make_transplant(SOURCE, [TARGET[token] for token in order]))
    found = _fitted(encoder_dir, permuted).rows(ids)
    made = block.made[order]
    assert torch.equal(found.made, made)
    torch.testing.assert_close(found.values(task.rows)[made], whole[order][made], atol=1e-6, rtol=0)


def test_embeddings_are_kept_by_encoder_and_vocabulary(encoder_dir, tmp_path):
    task = _task(cache=tmp_path)
    first = _fitted(encoder_dir, task).rows(torch.tensor([HELLO])).rows
    (table,) = tmp_path.iterdir()
    stamp = table.stat().st_mtime_ns
    again = _fitted(encoder_dir, task).rows(torch.tensor([HELLO])).rows
    assert torch.equal(first.weights, again.weights)
    assert table.stat().st_mtime_ns == stamp
    _fitted(encoder_dir, make_task(make_transplant(SOURCE, [*TARGET, b"more"], cache=tmp_path)))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["nothing-there", "."])
def test_what_is_no_encoder_is_refused_before_anything_is_done(tmp_path, name):
    options = TokenAdaptOptions(method="tokenadapt", encoder=str(tmp_path / name))
    with pytest.raises(StageError, match=r"no such file|no encoder that AutoModel"):
        TokenAdapt(options, _task())


def test_it_stops_when_asked(encoder_dir):
    task = make_task(replace(make_transplant(SOURCE, TARGET), should_stop=lambda: True))
    with pytest.raises(StageInterrupted):
        _fitted(encoder_dir, task)
