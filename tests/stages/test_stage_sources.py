from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.sources import ModelSource, TokenizerSource
from stages.stage import StageContext, StageError

MakeModel = Callable[..., Path]
PARAGRAPH = (
    "The ferry leaves the harbour at a quarter past six, and by the time the sun is up the islands have already "
    "slipped behind the grey line of the horizon. Most of the passengers sleep through it. Those who do not stand "
    "at the rail with paper cups of coffee and say very little, because there is nothing to say about a sea that "
    "is so calm."
)


def run(stage: type, tmp_path: Path, **options: Any) -> Path:
    """Run a source stage and verify what it wrote as the runner would."""
    out = tmp_path / "out"
    out.mkdir()
    stage().run(StageContext(config=stage.Config(**options), inputs={}, work=tmp_path, out=out))
    stage.output.verify(out)
    return out


def test_a_model_directory_is_copied_byte_for_byte(
    tmp_path: Path, tiny_model_dir: MakeModel, tiny_tokenizer_dirs: tuple[Path, Path]
) -> None:
    source = tiny_model_dir(tiny_tokenizer_dirs[0])
    out = run(ModelSource, tmp_path, model=str(source))
    names = sorted(path.name for path in source.iterdir())
    assert sorted(path.name for path in out.iterdir()) == names
    for name in names:
        assert (out / name).read_bytes() == (source / name).read_bytes()
        assert (out / name).stat().st_ino != (source / name).stat().st_ino, "an edit of the source must not reach it"


def test_only_what_transformers_loads_is_copied(
    tmp_path: Path, tiny_model_dir: MakeModel, tiny_tokenizer_dirs: tuple[Path, Path]
) -> None:
    source = tiny_model_dir(tiny_tokenizer_dirs[0])
    model = AutoModelForCausalLM.from_pretrained(source)
    (source / "model.safetensors").unlink()
    model.save_pretrained(source, max_shard_size="20KB")
    (source / "consolidated.safetensors").write_bytes(b"another copy of the weights")
    out = run(ModelSource, tmp_path, model=str(source))
    assert not (out / "consolidated.safetensors").exists()
    assert len(list(out.glob("*.safetensors"))) > 1
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


@pytest.mark.parametrize("poison", [False, True])
def test_pickled_weights_become_safetensors_if_they_are_finite(
    tmp_path: Path, tiny_model_dir: MakeModel, tiny_tokenizer_dirs: tuple[Path, Path], poison: bool
) -> None:
    source = tiny_model_dir(tiny_tokenizer_dirs[0])
    weights = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).state_dict()
    if poison:
        weights["model.norm.weight"][3] = math.nan
    (source / "model.safetensors").unlink()
    torch.save(weights, source / "pytorch_model.bin")
    if poison:
        with pytest.raises(StageError, match=r"not finite: model\.norm\.weight"):
            run(ModelSource, tmp_path, model=str(source))
        return
    out = run(ModelSource, tmp_path, model=str(source))
    loaded = AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert all(torch.equal(weights[name], loaded[name]) for name in weights)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda source: (source / "config.json").unlink(), "not a model directory: config.json is missing"),
        (lambda source: (source / "model.safetensors").unlink(), "no model.safetensors, .* among config.json"),
        (
            lambda source: (
                (source / "model.safetensors").rename(source / "model-00001-of-00002.safetensors")
                and (source / "model.safetensors.index.json").write_text(
                    '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
                )
            ),
            "names files that are missing: model-00002-of-00002.safetensors",
        ),
        (lambda source: (source / "config.json").write_text('{"model_type": "nope"}'), "not a causal language model"),
        (lambda source: (source / "tokenizer.json").unlink(), "finds no tokenizer there"),
        (lambda source: (source / "tokenizer.json").write_text('{"model": '), "is damaged: JSONDecodeError"),
        (lambda source: (source / "tokenizer.json").write_text("{}"), "is damaged: KeyError"),
    ],
)
def test_an_incomplete_model_is_refused_with_what_is_missing(
    tmp_path: Path,
    tiny_model_dir: MakeModel,
    tiny_tokenizer_dirs: tuple[Path, Path],
    damage: Callable[[Path], object],
    message: str,
) -> None:
    source = tiny_model_dir(tiny_tokenizer_dirs[0])
    damage(source)
    with pytest.raises(StageError, match=message):
        run(ModelSource, tmp_path, model=str(source))


def test_a_tokenizer_whose_ids_exceed_the_embedding_is_refused(
    tmp_path: Path, tiny_model_dir: MakeModel, tiny_tokenizer_dirs: tuple[Path, Path]
) -> None:
    small, large = tiny_tokenizer_dirs
    with pytest.raises(StageError, match="the tokenizer has ids up to 399, the model's embedding only 320 rows"):
        run(ModelSource, tmp_path, model=str(tiny_model_dir(small)), tokenizer=str(large))


@pytest.mark.demo
def test_a_model_directory_does_not_change_the_tokenizer_in_it(
    tmp_path: Path, tiny_model_dir: MakeModel, gpt2_tokenizer_dir: Path
) -> None:
    # transformers chooses tokenizer classes by the model's type: a Llama directory must still give GPT-2's ids.
    out = run(ModelSource, tmp_path, model=str(tiny_model_dir(gpt2_tokenizer_dir)), tokenizer=str(gpt2_tokenizer_dir))
    alone, inside = AutoTokenizer.from_pretrained(gpt2_tokenizer_dir), AutoTokenizer.from_pretrained(out)
    for text in (PARAGRAPH, "  x\n\n\tnaïve 東京 12345 <s> ▁ <|endoftext|>"):
        assert inside(text).input_ids == alone(text).input_ids
    assert inside.all_special_ids == [50256]


@pytest.mark.demo
def test_gpt2_ranks_become_a_tokenizer(tmp_path: Path, gpt2_tokenizer_dir: Path) -> None:
    version = importlib.metadata.version("openai-whisper")
    out = run(
        TokenizerSource,
        tmp_path,
        tokenizer={
            "file": f"package:openai-whisper=={version}/whisper/assets/gpt2.tiktoken",
            "pattern": "gpt2",
            "special_tokens": {"<|endoftext|>": 50256},
            "bos": "<|endoftext|>",
            "eos": "<|endoftext|>",
        },
    )
    assert (out / "tokenizer.json").read_bytes() == (gpt2_tokenizer_dir / "tokenizer.json").read_bytes()


def test_roles_can_be_given_to_a_bare_tokenizer_json(tmp_path: Path, tiny_tokenizer_dirs: tuple[Path, Path]) -> None:
    file = tiny_tokenizer_dirs[0] / "tokenizer.json"
    out = run(TokenizerSource, tmp_path, tokenizer={"file": str(file), "eos": "<|endoftext|>"})
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.all_special_ids) == (0, 0, [0])


@pytest.mark.parametrize(
    ("roles", "message"),
    [({}, "has no end-of-text token; name one of its tokens as 'eos'"), ({"eos": "<end>"}, "no token '<end>'")],
)
def test_a_tokenizer_without_an_end_is_refused(
    tmp_path: Path, tiny_tokenizer_dirs: tuple[Path, Path], roles: dict[str, str], message: str
) -> None:
    with pytest.raises(StageError, match=message):
        run(TokenizerSource, tmp_path, tokenizer={"file": str(tiny_tokenizer_dirs[0] / "tokenizer.json"), **roles})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("x.tiktoken", "byte strings alone"),
        ({"file": "x.tiktoken", "pattern": "gpt2", "eos": "<e>"}, "byte strings alone"),
        ({"file": "x.tiktoken.gz", "pattern": "gpt2", "eos": "<e>"}, "byte strings alone"),
        ({"file": "x.model", "pattern": "gpt2"}, "byte strings alone"),
        ({"file": "x.json", "pattern": "gpt2"}, "are for tiktoken rank files"),
        ({"file": "x.model.v3", "normalization": "nfc"}, "are for tiktoken rank files"),
        ({"file": "x.tiktoken", "pattern": "gtp2", "special_tokens": {"<e>": 1}, "eos": "<e>"}, "known: gpt2, cl100k"),
        ({"file": "x.model", "patern": "gpt2"}, "Extra inputs are not permitted"),
    ],
)
def test_a_tokenizer_that_cannot_be_right_is_refused_before_anything_runs(options: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TokenizerSource.Config(tokenizer=options)


@pytest.mark.demo
def test_smollm2_from_gguf_predicts_english(smollm2_dir: Path) -> None:
    # 1.139 bits per byte were measured; a scrambled conversion gives over 3.
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir)
    assert model.dtype == torch.bfloat16
    assert tokenizer.chat_template is not None
    ids = torch.tensor([tokenizer(PARAGRAPH).input_ids])
    with torch.no_grad():
        logits = model(ids).logits[0, :-1].float()
    nats = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
    scored = len(PARAGRAPH.encode()) - len(tokenizer.decode(ids[0, :1]).encode())
    assert nats / math.log(2) / scored == pytest.approx(1.139, abs=0.02)
