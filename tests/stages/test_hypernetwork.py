"""The parts of the hypernetwork: the network, the tokenizers it practises on, its losses."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM

from alignment.initializers.rows import SparseRows
from stages.hypernetwork.losses import FrozenModel, lexical_loss
from stages.hypernetwork.network import Hypernetwork, Shape
from stages.hypernetwork.sampling import LONGEST_TOKEN, NOISE_MEDIAN, NOISE_SIGMA, sample_vocabulary
from stages.hypernetwork.table import StudentTable, TableLayout, TokenRows
from stages.output_head import OutputHead
from stages.stage import StageError
from stages.training.data.batch import SideBatch
from stages.training.random import generator

SHAPE = Shape(columns=12, hidden=16, layers=2, heads=4, expansion=2, max_pieces=4, priors=True)
PIECES = torch.tensor([[3, -1, -1, -1], [1, 2, -1, -1], [-1, -1, -1, -1], [5, 5, 0, 6], [0, -1, -1, -1], [4, 2, 1, -1]])
TEXTS = ["the cat sat on the mat, the cat sat", "naïve façade, 東京 🙂", "def add(left, right):\n\treturn left"]


def make_table(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    rows = torch.randn(8, SHAPE.columns, generator=torch.Generator().manual_seed(3)) * 0.1 + 0.05
    rows[:, 7] = 2.0  # a column without variance
    return rows.to(dtype)


def trained_network(shape: Shape = SHAPE, table: torch.Tensor | None = None) -> Hypernetwork:
    """A network whose output layer is no longer zero."""
    network = Hypernetwork.for_table(shape, make_table() if table is None else table, seed=1)
    with torch.no_grad():
        network.head.weight.normal_(generator=torch.Generator().manual_seed(4))
    return network.requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_network_gives_the_mean_of_the_pieces_rows(dtype: torch.dtype) -> None:
    table = make_table(dtype)
    network = Hypernetwork.for_table(SHAPE, table, seed=1)
    predicted = network(table, PIECES, torch.full((len(PIECES),), -5.0))
    for pieces, row in zip(PIECES, predicted, strict=True):
        used = pieces[pieces >= 0]
        expected = table[used if len(used) else slice(None)].double().mean(dim=0)
        torch.testing.assert_close(row.double(), expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(predicted[0], table[3].float())
    sparse = SparseRows(PIECES[[1]], torch.full((1, 4), 0.5))
    torch.testing.assert_close(predicted[[1]], sparse.combine(table))
    torch.testing.assert_close(network.start(table, PIECES), predicted)


def test_a_row_does_not_depend_on_the_others_of_its_block() -> None:
    table, network = make_table(), trained_network()
    together = network(table, PIECES)
    assert not torch.allclose(together[:2], network.start(table, PIECES)[:2], atol=1e-2)
    alone = torch.cat([network(table, PIECES[[row]]) for row in range(len(PIECES))])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    order = torch.tensor([5, 2, 0, 4, 1, 3])
    torch.testing.assert_close(network(table, PIECES[order]), together[order], rtol=1e-5, atol=1e-6)
    assert network(table, PIECES[:0]).shape == (0, SHAPE.columns)


def test_the_order_of_the_pieces_and_the_prior_count_and_a_missing_prior_is_zero() -> None:
    table, network = make_table(), trained_network()
    forward, backward = torch.tensor([[1, 2, -1, -1]]), torch.tensor([[2, 1, -1, -1]])
    assert not torch.allclose(network(table, forward), network(table, backward), atol=1e-3)
    assert not torch.allclose(network(table, forward), network(table, forward, torch.tensor([-9.0])), atol=1e-3)
    assert torch.equal(network(table, forward), network(table, forward, torch.zeros(1)))


def test_predictions_follow_the_scale_and_the_offset_of_every_column() -> None:
    shape = replace(SHAPE, priors=False)
    table = make_table()
    scale, offset = torch.linspace(0.5, 20, SHAPE.columns), torch.linspace(-3, 3, SHAPE.columns)
    plain = trained_network(shape)(table, PIECES)
    moved = table * scale + offset
    torch.testing.assert_close(
        trained_network(shape, moved)(moved, PIECES)[:, :7], (plain * scale + offset)[:, :7], rtol=1e-4, atol=1e-4
    )


def test_the_same_seed_gives_the_same_network_and_leaves_the_random_state_alone() -> None:
    state = torch.random.get_rng_state()
    first, second, other = (Hypernetwork.for_table(SHAPE, make_table(), seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["project.weight"], other["project.weight"])
    layers = [first[f"encoder.{layer}.linear1.weight"] for layer in range(2)]
    assert not torch.equal(*layers)


def test_the_lexical_loss_is_the_mean_distance_and_rests_at_zero() -> None:
    known = TokenRows(torch.zeros(2, 3), torch.ones(2, 3), None)
    predicted = TokenRows(torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]]), torch.ones(2, 3) + 2.0, None)
    expected = (5.0 + 0.0 + 2 * 12**0.5) / 4
    assert lexical_loss(predicted, known).item() == pytest.approx(expected)
    tied = TokenRows(predicted.input, predicted.input, None)
    assert lexical_loss(tied, TokenRows(known.input, known.input, None)).item() == pytest.approx(2.5)

    rows = torch.ones(2, 3, requires_grad=True)
    at_rest = lexical_loss(TokenRows(rows, rows, None), TokenRows(torch.ones(2, 3), torch.ones(2, 3), None))
    at_rest.backward()
    assert at_rest.item() == 0
    assert torch.equal(rows.grad, torch.zeros(2, 3))
    nothing = torch.zeros(0, 3)
    assert lexical_loss(TokenRows(nothing, nothing, None), TokenRows(nothing, nothing, None)).item() == 0


def small_models() -> list[torch.nn.Module]:
    sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    torch.manual_seed(0)
    gemma = Gemma3TextConfig(**sizes, **heads, head_dim=8, final_logit_softcapping=5.0, pad_token_id=0)
    models = [
        LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=False, pad_token_id=2)),
        Gemma3ForCausalLM(gemma),  # tied, scales its embeddings and caps its logits
        PhiForCausalLM(PhiConfig(**sizes, num_attention_heads=2)),  # has an output bias
    ]
    torch.nn.init.normal_(models[2].lm_head.bias)
    return [model.eval() for model in models]


@pytest.mark.parametrize("model", small_models(), ids=lambda model: type(model).__name__)
def test_the_loss_is_that_of_the_model_with_the_rows_put_in(model: torch.nn.Module) -> None:
    """The student's own rows in another order are a tokenizer whose loss the model itself can tell."""
    ids = torch.tensor([[5, 1, 2, 7, 9], [3, 2, 5, 0, 0]])
    attention = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    labels = torch.full_like(ids, -100)
    labels[0, :4], labels[1, :2] = ids[0, 1:], ids[1, 1:3]
    logits = model(input_ids=ids, attention_mask=attention).logits.detach().double()
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")

    matrix, head = model.get_input_embeddings().weight.detach().clone(), model.get_output_embeddings()
    frozen = FrozenModel(model, OutputHead.of(model, 20))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    place = order.argsort()
    bias = None if head.bias is None else head.bias.detach()[order]
    rows = TokenRows(matrix[order].requires_grad_(), head.weight.detach()[order].clone().requires_grad_(), bias)
    none = TokenRows(matrix[:0], matrix[:0], None)
    unused = torch.zeros_like(ids)
    moved_labels = torch.where(labels >= 0, place[labels.clamp(min=0)], -100)
    batch = SideBatch(place[ids], attention, moved_labels, unused, unused > 0, unused, unused)
    output = frozen.cross_entropy(batch, rows, none)
    assert int(output.count) == 6
    assert output.total.item() == pytest.approx(expected.item(), rel=1e-5)

    output.total.backward()
    read = place[torch.tensor([5, 1, 2, 7, 3])]  # what is followed by something; no row is barred as a padding row
    assert (rows.input.grad[read].norm(dim=1) > 0).all()
    assert (rows.output.grad.norm(dim=1) > 0).all()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_rows_of_prefixes_are_read_and_never_predicted() -> None:
    model = small_models()[0]
    frozen = FrozenModel(model, OutputHead.of(model, 20))
    inputs, outputs = model.get_input_embeddings().weight.detach(), model.lm_head.weight.detach()
    rows = TokenRows(inputs[:6], outputs[:6], None)
    prefix = TokenRows(inputs[[9]], outputs[[9]], None)
    ids, labels = torch.tensor([[6, 1, 2]]), torch.tensor([[1, 2, -100]])
    unused = torch.zeros_like(ids)
    batch = SideBatch(ids, torch.ones_like(ids), labels, unused, unused > 0, unused, unused)
    logits = model(input_ids=torch.tensor([[9, 1, 2]])).logits.detach()[:, :, :6].double()
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    assert frozen.cross_entropy(batch, rows, prefix).total.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("tied", "bias"), [(True, False), (False, False), (False, True), (True, True)])
def test_a_table_row_splits_into_its_parts(tied: bool, bias: bool) -> None:
    layout = TableLayout(width=3, tied=tied, bias=bias, dtype="F32")
    row = torch.arange(layout.columns, dtype=torch.float32)[None]
    parts = layout.split(row)
    assert parts.input.tolist() == [[0, 1, 2]]
    assert parts.output.tolist() == ([[0, 1, 2]] if tied else [[3, 4, 5]])
    assert (parts.bias is None) is not bias
    if bias:
        assert parts.bias.tolist() == [row.shape[1] - 1]


def test_a_table_without_a_row_for_every_token_or_with_inputs_of_every_layer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 20, "tie_word_embeddings": True}))
    rows = torch.randn(20, 4)
    tensors = {"model.embed_tokens.weight": rows, "model.layers.0.mlp.weight": torch.zeros(4, 4)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert torch.equal(StudentTable.of(tmp_path, 18).rows(), rows[:18])
    with pytest.raises(StageError, match="ids up to 20, the model has only 20 rows"):
        StudentTable.of(tmp_path, 21)
    save_file(tensors | {"model.embed_tokens_per_layer.weight": torch.zeros(20, 8)}, tmp_path / "model.safetensors")
    with pytest.raises(StageError, match=r"embed_tokens_per_layer\.weight too, which a hypernetwork does not predict"):
        StudentTable.of(tmp_path, 20)


@settings(max_examples=20, deadline=None)
@given(
    texts=st.lists(st.text(max_size=60), min_size=1, max_size=4), seed=st.integers(0, 2**32), extra=st.integers(1, 60)
)
def test_a_sampled_tokenizer_spells_every_text(texts: list[str], seed: int, extra: int) -> None:
    texts = [text.encode(errors="replace").decode() for text in texts]
    vocabulary = sample_vocabulary(texts, 256 + extra, np.random.default_rng(seed))
    assert vocabulary.tokens[:256] == [bytes([byte]) for byte in range(256)]
    assert len(set(vocabulary.tokens)) == len(vocabulary.tokens) <= 256 + extra
    assert max(map(len, vocabulary.tokens)) <= LONGEST_TOKEN
    assert np.isfinite(vocabulary.log_probabilities).all()
    tokenizer = vocabulary.tokenizer()
    for text in [*texts, "other text, 漢字 \x00\x7f"]:
        ids = tokenizer.encode(text).ids
        assert b"".join(vocabulary.tokens[token] for token in ids).decode() == text


def test_with_little_noise_the_most_frequent_substrings_of_words_are_the_vocabulary() -> None:
    def noise(seed: int) -> float:
        return np.random.default_rng(seed).lognormal(np.log(NOISE_MEDIAN), NOISE_SIGMA)

    quiet = next(seed for seed in range(1000) if noise(seed) < 1e-9)
    text = "banana bandana an"
    counted = Counter(
        word[start : start + length]
        for word in (b"banana", b" bandana", b" an")
        for length in range(1, LONGEST_TOKEN + 1)
        for start in range(len(word) - length + 1)
    )
    vocabulary = sample_vocabulary([text], 256 + 8, np.random.default_rng(quiet))
    chosen = {token: counted[token] for token in vocabulary.tokens[256:]}
    longer = sorted((count for token, count in counted.items() if len(token) > 1), reverse=True)
    assert sorted(chosen.values(), reverse=True) == longer[:8]
    total = sum(counted.values())
    for token, score in zip(vocabulary.tokens, vocabulary.log_probabilities, strict=True):
        assert score == pytest.approx(np.log(max(counted[token], 1) / total), rel=1e-5)


def test_draws_differ_and_repeat() -> None:
    first, second, other = (sample_vocabulary(TEXTS, 320, generator(7, number)) for number in (1, 1, 2))
    assert first.tokens == second.tokens
    assert np.array_equal(first.log_probabilities, second.log_probabilities)
    assert first.tokens != other.tokens or not np.array_equal(first.log_probabilities, other.log_probabilities)
