"""Scores of a model's tokens against full logits in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from stages.evaluation.scoring import ModelScores, batches, load_model, score_windows
from stages.evaluation.windows import Window
from stages.stage import StageError

VOCABULARY = 40


def random_windows(seed: int, lengths: tuple[int, ...] = (9, 3, 14, 6)) -> list[Window]:
    rng = np.random.default_rng(seed)
    return [
        Window(
            document=0,
            ids=rng.integers(VOCABULARY, size=length, dtype=np.int32),
            ends=np.arange(1, length + 1),
            first_scored=1 + index % 2,
            context_begin=0,
        )
        for index, length in enumerate(lengths)
    ]


def tiny_llama(vocab_size: int = VOCABULARY) -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def score(model: torch.nn.Module, windows: list[Window], prefix: list[int], batch_tokens: int = 64) -> ModelScores:
    return score_windows(
        model,
        windows,
        prefix_ids=prefix,
        vocab_size=VOCABULARY,
        batch_tokens=batch_tokens,
        on_batch=lambda share: None,
    )


def full_logits(model: torch.nn.Module, windows: list[Window], prefix: list[int]) -> tuple[list[float], list[int]]:
    """Log-probability and greedy token of every scored token, one window and one token at a time, in float64."""
    model = model.double()
    logp, greedy = [], []
    for window in windows:
        ids = prefix + window.ids.tolist()
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :, :VOCABULARY].tolist()
        for position in range(len(prefix) + window.first_scored, len(ids)):
            row = logits[position - 1]
            highest = max(row)
            normaliser = highest + math.log(sum(math.exp(value - highest) for value in row))
            logp.append(row[ids[position]] - normaliser)
            greedy.append(row.index(highest))
    return logp, greedy


@pytest.mark.parametrize("prefix", [[], [5]], ids=["no BOS", "BOS"])
@pytest.mark.parametrize("rows", [VOCABULARY, VOCABULARY + 24], ids=["exact rows", "padded rows"])
def test_matches_full_logits(prefix: list[int], rows: int) -> None:
    windows = random_windows(0)
    found = score(tiny_llama(rows), windows, prefix)
    logp, greedy = full_logits(tiny_llama(rows), windows, prefix)
    np.testing.assert_allclose(found.logp, logp, atol=2e-5)
    assert found.greedy.tolist() == greedy


@pytest.mark.parametrize("batch_tokens", [1, 17, 28, 1000])
def test_batches_and_padding_change_nothing(batch_tokens: int) -> None:
    windows = random_windows(1)
    alone = [score(tiny_llama(), [window], [5]) for window in windows]
    together = score(tiny_llama(), windows, [5], batch_tokens)
    np.testing.assert_allclose(together.logp, np.concatenate([one.logp for one in alone]), atol=2e-5)
    assert together.greedy.tolist() == np.concatenate([one.greedy for one in alone]).tolist()


def test_batches_hold_every_window_once_within_the_budget() -> None:
    lengths = (5, 31, 8, 8, 2, 13)
    groups = list(batches(lengths, batch_tokens=20))
    assert sorted(index for group in groups for index in group) == list(range(6))
    assert groups[0] == [1]
    padded = [len(group) * max(lengths[index] for index in group) for group in groups]
    assert padded[0] == 31
    assert max(padded[1:]) <= 20


def test_uniform_model_gives_log_vocabulary() -> None:
    model = tiny_llama()
    torch.nn.init.zeros_(model.lm_head.weight)
    found = score(model, random_windows(4), [])
    np.testing.assert_allclose(found.logp, -math.log(VOCABULARY), rtol=1e-6)


def test_a_head_that_is_not_plain_is_refused() -> None:
    model = tiny_llama()
    model.config.final_logit_softcapping = 1.0  # which Llama does not apply
    with pytest.raises(StageError, match="does more than multiply hidden states by a matrix"):
        score(model, random_windows(5), [])


def test_a_tokenizer_with_more_ids_than_rows_is_refused() -> None:
    with pytest.raises(StageError, match=r"ids up to 39, the model has only 32 output rows"):
        score(tiny_llama(32), random_windows(6), [])


def test_a_window_longer_than_the_positions_is_refused() -> None:
    with pytest.raises(StageError, match=r"takes 66 tokens, the model has 64 positions; lower window_bytes"):
        score(tiny_llama(), random_windows(7, lengths=(65,)), [5])


def test_a_broken_model_is_refused() -> None:
    model = tiny_llama()
    model.lm_head.weight.data[3] = float("nan")
    with pytest.raises(StageError, match="not finite"):
        score(model, random_windows(8), [])


def test_the_stored_dtype_is_kept(
    tmp_path: Path, tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]
) -> None:
    stored = AutoModelForCausalLM.from_pretrained(tiny_model_dir(tiny_tokenizer_dirs[0])).bfloat16()
    stored.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert model.dtype == torch.bfloat16
    assert not model.training


def test_nothing_to_score_is_no_error() -> None:
    found = score(tiny_llama(), [], [5])
    assert (found.logp.tolist(), found.greedy.tolist()) == ([], [])
