"""The init stage with a donor that is whole, broken, hostile or a stranger."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from init_stage import EMBEDDING, HEAD, init_context, manifest_of, tiny_gemma3n
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PhiConfig, PhiForCausalLM

from alignment.byte_view import ByteView
from stages.init import Init
from stages.initialisation.donor import Donor
from stages.stage import StageError

pytestmark = pytest.mark.usefixtures("warm_checks")


def test_a_donor_gives_rows_through_anchors_and_the_chain_falls_back(
    tmp_path: Path, tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]
) -> None:
    small, large = tiny_tokenizer_dirs
    student, donor = tiny_model_dir(small, tied=False), tiny_model_dir(large, seed=3)
    weights = load_file(donor / "model.safetensors")
    gap = AutoTokenizer.from_pretrained(large)(" dog", add_special_tokens=False).input_ids[-1]
    weights[EMBEDDING][gap] = 0  # nothing can be made of a zero row
    save_file(weights, donor / "model.safetensors", metadata={"format": "pt"})
    chain = {"method": "omp", "k": 8, "fallback": "fvt"}
    ctx = init_context(student, large, tmp_path / "init", donor=donor, input=chain)
    Init().run(ctx)
    tensors = manifest_of(ctx)["tensors"]
    assert tensors.keys() == {EMBEDDING, HEAD}
    for tensor in tensors.values():
        assert tensor["methods"] == ["copied", "omp", "piece_mean", "mean"]
        assert tensor["rows"]["omp"] > 20
        assert tensor["rows"]["piece_mean"] <= 1
        assert 0 < tensor["diagnostics"]["residual"]["median"] < 1
        assert tensor["anchors"]["used"] > 100
    assert tensors[EMBEDDING]["weights_sha256"] == tensors[HEAD]["weights_sha256"], "a tied donor has one matrix"
    assert tensors[EMBEDDING]["sha256"] != tensors[HEAD]["sha256"]


def test_a_donor_without_the_target_tokens_is_refused(
    tmp_path: Path,
    tiny_tokenizer_dirs: tuple[Path, Path],
    tiny_model_dir: Callable[..., Path],
    strangers_tokenizer: Path,
) -> None:
    small, large = tiny_tokenizer_dirs
    donor = tiny_model_dir(strangers_tokenizer)
    ctx = init_context(tiny_model_dir(small), large, tmp_path / "init", donor=donor, input="omp")
    with pytest.raises(StageError, match="has none of the target tokenizer's tokens"):
        Init().run(ctx)


@pytest.fixture
def strangers_tokenizer(tmp_path: Path) -> Path:
    """A tokenizer of two Japanese words, with nothing that another one has."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(WordLevel({"[?]": 0, "東京都": 1, "大阪府": 2}, unk_token="[?]"))
    backend.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[?]").save_pretrained(tmp_path / "strangers")
    return tmp_path / "strangers"


def test_hostile_and_broken_rows_of_a_donor_are_named(
    tmp_path: Path, tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]
) -> None:
    small, large = tiny_tokenizer_dirs
    donor = tiny_model_dir(large, seed=3)
    weights = load_file(donor / "model.safetensors")
    hostile, broken = 364, 377  # among the last merges, which the smaller tokenizer does not have
    names = [AutoTokenizer.from_pretrained(large).decode([token]) for token in (hostile, broken)]
    weights[EMBEDDING][hostile] *= 1000
    weights[EMBEDDING][broken, 0] = torch.nan
    save_file(weights, donor / "model.safetensors", metadata={"format": "pt"})
    chain = {"method": "ridge_map", "fallback": "fvt"}
    ctx = init_context(tiny_model_dir(small), large, tmp_path / "init", donor=donor, input=chain, override={"e": "a"})
    Init().run(ctx)
    (tensor,) = manifest_of(ctx)["tensors"].values()
    assert tensor["rejected"] == {"ridge_map": {"count": 1, "rows": [{"id": hostile, "token": names[0]}]}}
    assert tensor["broken_donor_rows"] == {"count": 1, "rows": [{"id": broken, "token": names[1]}]}
    said = (ctx.work / "said.txt").read_text(encoding="utf-8")
    assert (
        f"1 rows of ridge_map are not finite or too long: the next method made them: {names[0]!r} ({hostile})" in said
    )
    assert (
        f"1 rows that the donor has for {EMBEDDING} are not finite and will not be used: {names[1]!r} ({broken})"
        in said
    )
    records = np.load(ctx.out / "rows.npz")[f"{EMBEDDING}/method"]
    assert [tensor["methods"][records[token]] for token in (hostile, broken)] == ["piece_mean", "piece_mean"]
    assert np.array_equal(np.load(ctx.work / "new_rows.npy"), records != 0), "an overridden row is no copy"


def test_a_donor_that_lower_cases_is_refused(
    tmp_path: Path, tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]
) -> None:
    small, large = tiny_tokenizer_dirs
    donor = tiny_model_dir(large)
    facts = json.loads((donor / "tokenizer.json").read_text(encoding="utf-8"))
    facts["normalizer"] = {"type": "Lowercase"}
    (donor / "tokenizer.json").write_text(json.dumps(facts), encoding="utf-8")
    ctx = init_context(tiny_model_dir(small), large, tmp_path / "init", donor=donor, input="ridge_map")
    with pytest.raises(StageError, match="one lower-cases all text: name a model that uses the target tokenizer"):
        Init().run(ctx)


def test_without_a_shared_token_there_is_a_model_and_a_warning(
    tmp_path: Path, tiny_tokenizer_dirs: tuple[Path, Path], strangers_tokenizer: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dirs[0])
    config = PhiConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model = PhiForCausalLM(config)
    model.lm_head.bias.data = torch.arange(len(tokenizer)) / 100
    model.save_pretrained(tmp_path / "phi")
    tokenizer.save_pretrained(tmp_path / "phi")
    ctx = init_context(tmp_path / "phi", strangers_tokenizer, tmp_path / "init", bias="mean")
    Init().run(ctx)
    bias = load_file(ctx.out / "model.safetensors")["lm_head.bias"]
    torch.testing.assert_close(bias, torch.full((3,), (len(tokenizer) - 1) / 200))
    said = (ctx.work / "said.txt").read_text(encoding="utf-8")
    assert "warning: student and target share no token" in said
    assert "the tokenizer has no tokens for" in said


def test_a_donor_may_have_fewer_rows_of_one_role(tmp_path: Path, tiny_tokenizer_dirs: tuple[Path, Path]) -> None:
    tokenizer = tiny_tokenizer_dirs[1]
    target = ByteView.from_tokenizer(tokenizer)
    donor = Donor(tiny_gemma3n(tokenizer, tmp_path / "gemma3n"), target, tokenizer)
    whole, shorter = donor.rows("input"), donor.rows("per_layer_input")
    assert whole is not None
    assert shorter is not None
    assert whole.usable.tolist().count(False) <= 1  # the padding token's row is zero
    assert len(shorter.rows) == target.vocab_size
    assert not shorter.usable[-5:].any()
    assert shorter.usable[10:-5].all()
