"""The init stage on tiny models: what is written is an ordinary model with the other vocabulary."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from init_stage import EMBEDDING, HEAD, init_context, manifest_of, run_align, tiny_gemma3n
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PhiConfig, PhiForCausalLM

from alignment.vocab import Match, VocabAlignment
from stages.artifacts import ModelArtifact
from stages.init import Init
from stages.stage import StageError, StageInterrupted

pytestmark = pytest.mark.usefixtures("warm_checks")


@pytest.mark.parametrize(("tied", "multiple"), [(True, 1), (False, 64)])
def test_init_gives_a_model_the_target_vocabulary_and_leaves_its_body_alone(
    tmp_path: Path,
    tiny_tokenizer_dirs: tuple[Path, Path],
    tiny_model_dir: Callable[..., Path],
    tied: bool,
    multiple: int,
) -> None:
    small, large = tiny_tokenizer_dirs
    student = tiny_model_dir(small, tied=tied)
    ctx = init_context(student, large, tmp_path / "init", pad_to_multiple_of=multiple)
    Init().run(ctx)
    ModelArtifact.verify(ctx.out)

    before, after = load_file(student / "model.safetensors"), load_file(ctx.out / "model.safetensors")
    assert before.keys() == after.keys()
    for name in before.keys() - {EMBEDDING, HEAD}:
        assert torch.equal(before[name], after[name]), name

    alignment = VocabAlignment.load(tmp_path / "init-align" / "alignment.npz")
    tokens = alignment.target_size
    rows = -(-tokens // multiple) * multiple
    for name in {EMBEDDING, HEAD} & before.keys():
        assert len(after[name]) == rows
        for token in range(tokens):
            pieces = torch.from_numpy(alignment.pieces_of(token)).long()
            expected = before[name][pieces].double().mean(dim=0)
            torch.testing.assert_close(after[name][token].double(), expected, rtol=1e-6, atol=1e-8)
        mean = after[name][:tokens].double().mean(dim=0)
        for padding in after[name][tokens:]:
            torch.testing.assert_close(padding.double(), mean, rtol=1e-5, atol=1e-7)

    manifest = manifest_of(ctx)
    assert (manifest["tokenizer_size"], manifest["matrix_rows"], manifest["tied"]) == (tokens, rows, tied)
    decomposed = int((alignment.match == Match.PIECES).sum())
    for tensor in manifest["tensors"].values():
        assert tensor["rows"] == {"copied": tokens - decomposed, "piece_mean": decomposed, "mean": 0}
    methods = np.load(ctx.out / "rows.npz")[f"{EMBEDDING}/method"]
    assert np.array_equal(methods == 1, alignment.match == Match.PIECES)
    _check_as_a_user_would(ctx.out, large, tied, rows)


def _check_as_a_user_would(model_dir: Path, tokenizer_dir: Path, tied: bool, rows: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    tokenizer, expected = AutoTokenizer.from_pretrained(model_dir), AutoTokenizer.from_pretrained(tokenizer_dir)
    assert tokenizer.get_vocab() == expected.get_vocab()
    assert model.config.vocab_size == rows
    assert model.config.tie_word_embeddings is tied
    for config in (model.config, model.generation_config):
        assert (config.bos_token_id, config.eos_token_id) == (expected.bos_token_id, expected.eos_token_id)
        assert config.pad_token_id == expected.pad_token_id
    assert model(torch.tensor([[1, 2, len(expected) - 1]])).logits.shape == (1, 3, rows)
    prompt = tokenizer("The quick brown", return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=3, do_sample=False).shape[1] > prompt.input_ids.shape[1]


@pytest.mark.parametrize("tied", [True, False])
def test_the_own_tokenizer_as_target_gives_the_same_bytes(
    tmp_path: Path, tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path], tied: bool
) -> None:
    student = tiny_model_dir(tiny_tokenizer_dirs[0], tied=tied)
    ctx = init_context(student, tiny_tokenizer_dirs[0], tmp_path / "init")
    Init().run(ctx)
    assert (ctx.out / "model.safetensors").read_bytes() == (student / "model.safetensors").read_bytes()
    verification = manifest_of(ctx)["verification"]
    assert verification["probe"]["bits_per_byte"] == verification["student_probe"]["bits_per_byte"]


def test_the_same_seed_gives_the_same_bytes(
    tmp_path: Path, tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]
) -> None:
    small, large = tiny_tokenizer_dirs
    student = tiny_model_dir(small)
    written = []
    for number in range(2):
        ctx = init_context(student, large, tmp_path / f"init-{number}", input="normal", seed=1)
        Init().run(ctx)
        written.append((ctx.out / "model.safetensors").read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize("records", [[], [{"domain": "chat", "messages": [{"role": "user", "content": "Hello"}]}]])
def test_documents_without_a_text_cannot_be_predicted(
    tmp_path: Path,
    tiny_tokenizer_dirs: tuple[Path, Path],
    tiny_model_dir: Callable[..., Path],
    records: list[dict[str, Any]],
) -> None:
    small, large = tiny_tokenizer_dirs
    ctx = init_context(tiny_model_dir(small), large, tmp_path / "init", verify={"text": "eval"})
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "documents.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    ctx.inputs["eval"] = {"sources/eval": documents}
    with pytest.raises(StageError, match=r"no document of data\.eval has a text"):
        Init().run(ctx)


def test_an_untied_head_is_made_on_request_and_has_its_own_methods(
    tmp_path: Path, tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]
) -> None:
    small, large = tiny_tokenizer_dirs
    student = tiny_model_dir(small)
    ctx = init_context(student, large, tmp_path / "init", tie="untie", output=["mean"])
    Init().run(ctx)
    weights = load_file(ctx.out / "model.safetensors")
    manifest = manifest_of(ctx)
    assert not manifest["tied"]
    assert manifest["tensors"][HEAD]["rows"]["mean"] > 0
    copied = torch.from_numpy(np.load(ctx.out / "rows.npz")[f"{HEAD}/method"] == 0)
    assert torch.equal(weights[HEAD][copied], weights[EMBEDDING][copied])
    assert not torch.equal(weights[HEAD], weights[EMBEDDING])
    _check_as_a_user_would(ctx.out, large, False, manifest["matrix_rows"])


@pytest.mark.parametrize(
    ("tied", "options", "expected"),
    [
        (True, {"output": "mean"}, "`output` has nothing to make. Remove `output`, or say `tie: untie`"),
        (False, {"tie": "untie"}, "has an output matrix of its own already: remove `tie: untie`"),
        (True, {"override": {" dgo": "a"}}, "override: tokenizer 'target' has no token ' dgo'"),
    ],
)
def test_options_that_do_not_fit_the_student_are_refused(
    tmp_path: Path,
    tiny_tokenizer_dirs: tuple[Path, Path],
    tiny_model_dir: Callable[..., Path],
    tied: bool,
    options: dict[str, Any],
    expected: str,
) -> None:
    small, large = tiny_tokenizer_dirs
    ctx = init_context(tiny_model_dir(small, tied=tied), large, tmp_path / "init", **options)
    with pytest.raises(StageError, match=expected):
        Init().run(ctx)
    assert list(ctx.out.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"input": []}, "names no method"),
        ({"input": ["omp", {"method": "omp", "k": 3}]}, "names omp twice"),
        ({"override": {"a": []}}, "override names no source token for 'a'"),
        ({"input": {"method": "ompp"}}, "ompp"),
        ({"output": ["mean", "omp"]}, "mean makes every row: omp after it would never be asked"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        Init.Config(**options)


def test_every_way_to_write_a_chain_means_the_same() -> None:
    written = [
        {"method": "omp", "k": 8, "fallback": ["fvt", "mean"]},
        [{"method": "omp", "k": 8}, "piece_mean", {"method": "mean"}],
    ]
    first, second = (Init.Config(input=chain) for chain in written)
    assert first == second
    assert Init.Config(**first.model_dump(mode="json")) == first
    assert first.wanted_inputs == {"donor"}
    assert Init.Config().wanted_inputs == frozenset()


def test_an_output_bias_follows_the_rows_of_the_head(tmp_path: Path, tiny_tokenizer_dirs: tuple[Path, Path]) -> None:
    small, large = tiny_tokenizer_dirs
    tokenizer = AutoTokenizer.from_pretrained(small)
    config = PhiConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model = PhiForCausalLM(config)
    model.lm_head.bias.data = torch.arange(len(tokenizer)) / 100
    model.save_pretrained(tmp_path / "phi")
    tokenizer.save_pretrained(tmp_path / "phi")
    ctx = init_context(tmp_path / "phi", large, tmp_path / "init", pad_to_multiple_of=64)
    Init().run(ctx)
    alignment = VocabAlignment.load(tmp_path / "init-align" / "alignment.npz")
    bias = load_file(ctx.out / "model.safetensors")["lm_head.bias"]
    for token in range(alignment.target_size):
        assert float(bias[token]) == pytest.approx(float(np.mean(alignment.pieces_of(token) / 100)), abs=1e-6)
    assert len(bias) == manifest_of(ctx)["matrix_rows"] > alignment.target_size
    assert (bias[alignment.target_size :] == -1e4).all(), "no padding row may win"


def test_embeddings_that_every_layer_reads_get_rows_too(tmp_path: Path, tiny_tokenizer_dirs: tuple[Path, Path]) -> None:
    small, large = tiny_tokenizer_dirs
    ctx = init_context(tiny_gemma3n(small, tmp_path / "gemma3n"), large, tmp_path / "init")
    Init().run(ctx)
    alignment = VocabAlignment.load(tmp_path / "init-align" / "alignment.npz")
    (before,) = (t for n, t in load_file(tmp_path / "gemma3n" / "model.safetensors").items() if "per_layer.weight" in n)
    (after,) = (t for n, t in load_file(ctx.out / "model.safetensors").items() if "embed_tokens_per_layer.weight" in n)
    for token in range(alignment.target_size):
        pieces = torch.from_numpy(alignment.pieces_of(token)).long()
        if (pieces < len(before)).all():
            torch.testing.assert_close(after[token], before[pieces].mean(dim=0))
        else:
            torch.testing.assert_close(after[token], before.mean(dim=0))


def test_broken_rows_of_the_student_are_named(
    tmp_path: Path, tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]
) -> None:
    small, large = tiny_tokenizer_dirs
    student = tiny_model_dir(small)
    weights = load_file(student / "model.safetensors")
    weights[EMBEDDING][[7, 9], 0] = torch.nan
    save_file(weights, student / "model.safetensors", metadata={"format": "pt"})
    ctx = init_context(student, large, tmp_path / "init")
    with pytest.raises(StageError, match=r"embed_tokens.weight of the student has rows that are not finite: 7, 9"):
        Init().run(ctx)


def test_an_alignment_that_needs_more_rows_than_the_model_has_is_refused(
    tmp_path: Path, tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]
) -> None:
    small, large = tiny_tokenizer_dirs
    aligned = run_align(tiny_model_dir(large), small, tmp_path / "align")
    tokenizer = AutoTokenizer.from_pretrained(large)
    student = tiny_model_dir(small)
    rows = AutoModelForCausalLM.from_pretrained(student).config.vocab_size
    tokenizer.save_pretrained(student)
    with pytest.raises(StageError, match=rf"ids up to {len(tokenizer) - 1}, the model has only {rows} rows"):
        Init().run(init_context(student, small, tmp_path / "init", aligned))


def test_an_alignment_of_other_tokenizers_is_refused(
    tmp_path: Path, tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]
) -> None:
    small, large = tiny_tokenizer_dirs
    student = tiny_model_dir(small)
    aligned = run_align(student, large, tmp_path / "align")
    with pytest.raises(StageError, match="made for another target tokenizer"):
        Init().run(init_context(student, small, tmp_path / "init", aligned))


def test_a_stage_that_is_asked_to_stop_stops(
    tmp_path: Path, tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]
) -> None:
    small, large = tiny_tokenizer_dirs
    ctx = init_context(tiny_model_dir(small), large, tmp_path / "init")
    ctx.should_stop = lambda: True
    with pytest.raises(StageInterrupted):
        Init().run(ctx)
    assert list(ctx.out.iterdir()) == []
