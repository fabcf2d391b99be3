"""Tokenizers without a tokenizer.json: published as they are, or refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertJapaneseTokenizer,
    ByT5Tokenizer,
    PerceiverTokenizer,
    PreTrainedTokenizer,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from alignment.byte_view import ByteView
from stages.align import Align
from stages.artifacts import ArtifactError, ModelArtifact, TokenizerArtifact
from stages.init import Init
from stages.sources import ModelSource, TokenizerSource
from stages.stage import StageContext, StageError

TEXT = "Ein Häuschen in 東京 🙂,\n\t</s> and <pad> are text."
MakeModel = Callable[..., Path]


def run(stage: type, out: Path, inputs: dict[str, Path] | None = None, **options: Any) -> Path:
    out.mkdir()
    named = {name: {f"sources/{name}": path} for name, path in (inputs or {}).items()}
    stage().run(StageContext(config=stage.Config(**options), inputs=named, work=out, out=out))
    stage.output.verify(out)
    return out


@pytest.fixture
def byte_tokenizer(tmp_path: Path) -> Path:
    ByT5Tokenizer().save_pretrained(tmp_path / "byt5")
    return tmp_path / "byt5"


@pytest.mark.parametrize("make", [ByT5Tokenizer, PerceiverTokenizer])
def test_a_python_tokenizer_is_published_as_it_is(tmp_path: Path, make: type[PreTrainedTokenizer]) -> None:
    original = make()
    original.save_pretrained(tmp_path / "source")
    out = run(TokenizerSource, tmp_path / "out", tokenizer=str(tmp_path / "source"))
    published = AutoTokenizer.from_pretrained(out)
    assert type(published) is make
    assert published(TEXT).input_ids == original(TEXT).input_ids
    assert ByteView.from_tokenizer(published).fingerprint == ByteView.from_tokenizer(original).fingerprint


def test_a_role_can_be_given_to_a_python_tokenizer(tmp_path: Path, byte_tokenizer: Path) -> None:
    out = run(TokenizerSource, tmp_path / "out", tokenizer={"file": str(byte_tokenizer), "bos": "<extra_id_0>"})
    published = AutoTokenizer.from_pretrained(out)
    assert (published.bos_token_id, published.eos_token_id) == (259, 1)
    assert published(TEXT).input_ids == ByT5Tokenizer()(TEXT).input_ids


def test_a_python_tokenizer_belongs_to_a_model(
    tmp_path: Path, byte_tokenizer: Path, tiny_model_dir: MakeModel, tiny_tokenizer_dirs: tuple[Path, Path]
) -> None:
    source = tiny_model_dir(tiny_tokenizer_dirs[1])
    out = run(ModelSource, tmp_path / "out", model=str(source), tokenizer=str(byte_tokenizer))
    assert AutoTokenizer.from_pretrained(out)(TEXT).input_ids == ByT5Tokenizer()(TEXT).input_ids


def test_a_python_tokenizer_whose_tokens_are_not_text_is_refused(tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "x"]), encoding="utf-8")
    BertJapaneseTokenizer(
        str(vocabulary), word_tokenizer_type="basic", subword_tokenizer_type="character"
    ).save_pretrained(tmp_path / "source")
    with pytest.raises(StageError, match="BertJapaneseTokenizer has no `tokenizers` backend, and its tokens do not"):
        run(TokenizerSource, tmp_path / "out", tokenizer=str(tmp_path / "source"))


@pytest.mark.parametrize("name", ["LlamaTokenizer", "GPT2Tokenizer", "BertTokenizer"])
def test_a_missing_vocabulary_is_not_an_empty_one(tmp_path: Path, name: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, "eos_token": "</s>"}))
    with pytest.raises(StageError, match="finds no tokenizer there: no file holds a vocabulary"):
        run(TokenizerSource, tmp_path / "out", tokenizer=str(tmp_path))


@pytest.fixture
def qwen_student(tmp_path: Path, tiny_tokenizer_dirs: tuple[Path, Path]) -> Path:
    """In a directory of this model type AutoTokenizer takes Qwen's own class, whatever the tokenizer says."""
    directory = tmp_path / "qwen"
    config = Qwen2Config(
        vocab_size=400,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(config).save_pretrained(directory)
    AutoTokenizer.from_pretrained(tiny_tokenizer_dirs[1]).save_pretrained(directory)
    return directory


def test_a_model_type_that_hides_its_tokenizer_is_refused(
    tmp_path: Path, byte_tokenizer: Path, qwen_student: Path
) -> None:
    with pytest.raises(StageError, match=r"makes a Qwen2Tokenizer of it that gives other ids.*take another model"):
        run(ModelSource, tmp_path / "out", model=str(qwen_student), tokenizer=str(byte_tokenizer))


def test_init_refuses_a_target_that_the_student_hides(tmp_path: Path, byte_tokenizer: Path, qwen_student: Path) -> None:
    inputs = {"student": qwen_student, "tokenizer": byte_tokenizer}
    aligned = run(Align, tmp_path / "align", inputs)
    with pytest.raises(StageError, match="a target tokenizer without one needs a student of another type"):
        run(Init, tmp_path / "init", {**inputs, "alignment": aligned})


def test_init_accepts_a_target_that_rewrites_text(
    tmp_path: Path, tiny_model_dir: MakeModel, tiny_tokenizer_dirs: tuple[Path, Path]
) -> None:
    from tokenizers import Tokenizer, normalizers

    backend = Tokenizer.from_file(str(tiny_tokenizer_dirs[1] / "tokenizer.json"))
    backend.normalizer = normalizers.NFKC()
    target = tmp_path / "target"
    AutoTokenizer.from_pretrained(tiny_tokenizer_dirs[1]).save_pretrained(target)
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("é", "e")])
    backend.save(str(target / "tokenizer.json"))
    inputs = {"student": tiny_model_dir(tiny_tokenizer_dirs[0]), "tokenizer": target}
    out = run(Init, tmp_path / "init", {**inputs, "alignment": run(Align, tmp_path / "align", inputs)})
    ids = AutoTokenizer.from_pretrained(out)("café").input_ids
    assert ids == AutoTokenizer.from_pretrained(target)("cafe").input_ids
    assert AutoModelForCausalLM.from_pretrained(out)(torch.tensor([ids])).logits.isfinite().all()


@pytest.mark.parametrize("artifact", [TokenizerArtifact, ModelArtifact])
def test_a_fast_tokenizer_without_its_file_is_no_artifact(
    tmp_path: Path, tiny_model_dir: MakeModel, tiny_tokenizer_dirs: tuple[Path, Path], artifact: type
) -> None:
    directory = tiny_model_dir(tiny_tokenizer_dirs[0])
    artifact.verify(directory)
    (directory / "tokenizer.json").write_text("")
    with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
        artifact.verify(directory)
    (directory / "tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match=r"tokenizer\.json is missing or empty"):
        artifact.verify(directory)
