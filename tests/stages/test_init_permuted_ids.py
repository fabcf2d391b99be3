"""Methods that learn from text: with the target's ids in another order, the same rows in that order, bit by bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from init_world import make_task, make_transplant
from transformers import PreTrainedTokenizerFast

from alignment.byte_view import ByteView
from stages.initialisation.methods.constrained_word2vec import CW2V
from stages.initialisation.methods.cooccurrence import TokAlign
from stages.initializers.constrained_word2vec import CW2VOptions
from stages.initializers.cooccurrence import TokAlignOptions

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "Tokens are byte strings; two tokenizations of one text meet.",
    "def add(left, right):\n    return left + right",
] * 3
METHODS = {
    "tokalign": (TokAlign, TokAlignOptions(method="tokalign", dimensions=20, min_count=2)),
    "cw2v": (CW2V, CW2VOptions(method="cw2v", rank=4, batch_pairs=100, max_steps=10, learning_rate=0.05)),
}


@pytest.fixture(scope="module")
def renamed(tiny_tokenizer_dirs, tmp_path_factory):
    """The larger tiny tokenizer with its ids, but for the special one, in another order; and old id -> new id."""
    content = json.loads((tiny_tokenizer_dirs[1] / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["content"] for token in content["added_tokens"]}
    vocabulary = content["model"]["vocab"]
    ids = np.array(sorted(token for name, token in vocabulary.items() if name not in special))
    new_ids = np.arange(max(vocabulary.values()) + 1)
    new_ids[ids] = np.random.default_rng(0).permutation(ids)
    content["model"]["vocab"] = {name: int(new_ids[token]) for name, token in vocabulary.items()}
    directory = tmp_path_factory.mktemp("renamed-tokenizer")
    (directory / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"))
    return ByteView.from_tokenizer(tokenizer), torch.from_numpy(new_ids)


@pytest.mark.parametrize("name", METHODS)
def test_rows_move_with_their_tokens(tiny_tokenizer_dirs, renamed, name):
    source, target = map(ByteView.from_tokenizer, tiny_tokenizer_dirs)
    other, new_ids = renamed
    assert other.token_bytes(int(new_ids[300])) == target.token_bytes(300)
    blocks = []
    for view, ids in ((target, torch.arange(target.vocab_size)), (other, new_ids)):
        task = make_task(make_transplant(views=(source, view), texts=TEXTS))
        build, options = METHODS[name]
        method = build(options, task)
        method.fit()
        block = method.rows(ids)
        blocks.append((block.made, block.values(task.rows)[block.made]))
    (made, values), (other_made, other_values) = blocks
    assert torch.equal(made, other_made)
    assert made.sum() > 20
    assert torch.equal(values, other_values)
