"""The init stage on tiny models: what is written is an ordinary model with the other vocabulary."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertLMHeadModel, PhiConfig, PhiForCausalLM
from transformers.models.gemma3n import Gemma3nForCausalLM, Gemma3nTextConfig

from alignment.initializers.fvt import fvt
from alignment.vocab import Match, VocabAlignment
from stages.align import Align
from stages.artifacts import ModelArtifact
from stages.init import Init
from stages.initialisation import replace_rows, vocabulary_tensors
from stages.reload_check import differences, inspect
from stages.stage import StageContext, StageError, StageInterrupted

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def run_align(student: Path, tokenizer: Path, out: Path) -> Path:
    out.mkdir()
    inputs = {"student": {"sources/student": student}, "tokenizer": {"sources/tokenizer": tokenizer}}
    Align().run(StageContext(config=Align.Config(), inputs=inputs, work=out, out=out))
    return out


def init_context(student: Path, tokenizer: Path, alignment: Path, out: Path, **options: int) -> StageContext:
    out.mkdir()
    inputs = {
        "student": {"sources/student": student},
        "tokenizer": {"sources/tokenizer": tokenizer},
        "alignment": {"align": alignment},
    }
    return StageContext(config=Init.Config(**options), inputs=inputs, work=out, out=out)


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
    aligned = run_align(student, large, tmp_path / "align")
    ctx = init_context(student, large, aligned, tmp_path / "init", pad_to_multiple_of=multiple)
    Init().run(ctx)
    ModelArtifact.verify(ctx.out)

    before, after = load_file(student / "model.safetensors"), load_file(ctx.out / "model.safetensors")
    assert before.keys() == after.keys()
    for name in before.keys() - {EMBEDDING, HEAD}:
        assert torch.equal(before[name], after[name]), name

    alignment = VocabAlignment.load(aligned / "alignment.npz")
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

    manifest = json.loads((ctx.out / "init.json").read_text(encoding="utf-8"))
    assert (manifest["tokenizer_size"], manifest["matrix_rows"], manifest["tied"]) == (tokens, rows, tied)
    assert manifest["rows"]["mean_of_pieces"] == int((alignment.match == Match.PIECES).sum())
    assert sum(manifest["rows"].values()) == rows
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


@pytest.mark.parametrize("tied", [True, False])
def test_the_own_tokenizer_as_target_gives_the_same_model(
    tmp_path: Path, tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path], tied: bool
) -> None:
    student = tiny_model_dir(tiny_tokenizer_dirs[0], tied=tied)
    alignment = VocabAlignment.load(run_align(student, tiny_tokenizer_dirs[0], tmp_path / "align") / "alignment.npz")
    before, model = AutoModelForCausalLM.from_pretrained(student), AutoModelForCausalLM.from_pretrained(student)
    tensors = replace_rows(model, lambda rows: fvt(rows, alignment))
    assert tensors.tied is tied
    assert tensors.digest == vocabulary_tensors(before).digest
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.state_dict().items())


def test_the_reload_check_finds_what_is_wrong(
    tmp_path: Path, tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]
) -> None:
    directory = tiny_model_dir(tiny_tokenizer_dirs[0], tied=True)
    assert differences(inspect(directory), {"tied": True}) == []
    model = AutoModelForCausalLM.from_pretrained(directory)
    model.model.norm.weight.data[0] = torch.nan
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_tokenizer_dirs[0]).save_pretrained(tmp_path)
    wrong = differences(inspect(tmp_path), {"tied": False})
    assert wrong == ["tied is True, not False", "logits_finite is False, not True"]


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
        Init().run(init_context(student, small, aligned, tmp_path / "init"))


def test_an_alignment_of_other_tokenizers_is_refused(
    tmp_path: Path, tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]
) -> None:
    small, large = tiny_tokenizer_dirs
    student = tiny_model_dir(small)
    aligned = run_align(student, large, tmp_path / "align")
    with pytest.raises(StageError, match="made for another target tokenizer"):
        Init().run(init_context(student, small, aligned, tmp_path / "init"))


def test_a_stage_that_is_asked_to_stop_stops(
    tmp_path: Path, tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]
) -> None:
    small, large = tiny_tokenizer_dirs
    student = tiny_model_dir(small)
    ctx = init_context(student, large, run_align(student, large, tmp_path / "align"), tmp_path / "init")
    ctx.should_stop = lambda: True
    with pytest.raises(StageInterrupted):
        Init().run(ctx)
    assert list(ctx.out.iterdir()) == []


def test_an_output_bias_gets_the_same_rows_as_the_head() -> None:
    config = PhiConfig(vocab_size=6, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    model = PhiForCausalLM(config)
    bias = torch.arange(6.0)
    model.lm_head.bias.data = bias.clone()
    tensors = replace_rows(model, lambda rows: rows[[5, 0, 3]], multiple=2)
    assert not tensors.tied
    torch.testing.assert_close(model.lm_head.bias, torch.tensor([5.0, 0.0, 3.0, 8 / 3]))
    assert model(torch.tensor([[0, 3]])).logits.shape == (1, 2, 4)


def test_a_bias_that_two_modules_share_stays_shared(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=6, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, is_decoder=True
    )
    model = BertLMHeadModel(config)
    tensors = replace_rows(model, lambda rows: rows[[5, 0, 3]])
    assert tensors.tied
    assert model.cls.predictions.bias is model.cls.predictions.decoder.bias
    model.save_pretrained(tmp_path)
    reloaded = BertLMHeadModel.from_pretrained(tmp_path)
    assert torch.equal(reloaded.cls.predictions.decoder.weight, tensors.head)


def test_a_dimension_that_only_happens_to_be_the_vocabulary_size_is_no_vocabulary_tensor() -> None:
    config = PhiConfig(vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    assert len(vocabulary_tensors(PhiForCausalLM(config)).distinct) == 3


def test_a_further_vocabulary_tensor_is_refused_by_name() -> None:
    config = Gemma3nTextConfig(
        vocab_size=64,
        vocab_size_per_layer_input=60,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=0,
        laurel_rank=4,
        layer_types=["sliding_attention", "full_attention"],
        activation_sparsity_pattern=[0.0, 0.0],
    )
    with pytest.raises(StageError, match=r"embed_tokens_per_layer\.weight \(60, 16\)"):
        vocabulary_tensors(Gemma3nForCausalLM(config))
