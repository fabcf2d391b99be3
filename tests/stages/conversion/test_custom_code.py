from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers.dynamic_module_utils
from pydantic import ValidationError
from transformers import AutoTokenizer

from stages.conversion.custom_code import tokenizer_code
from stages.conversion.errors import ConversionError
from stages.conversion.model import write_model
from stages.conversion.tokenizer import write_tokenizer
from stages.sources import ModelSource, TokenizerSource
from stages.stage import StageContext, StageError

TEXT = "The quick brown fox, it's 3.14159!\n\treturn  x"
PLAIN_CLASS = "class TinyTokenizer(PreTrainedTokenizerFast):\n    pass\n"
OTHER_IDS_CLASS = """
class TinyTokenizer(PreTrainedTokenizerFast):
    def _encode_plus(self, text, *args, **kwargs):
        return super()._encode_plus(text.upper(), *args, **kwargs)
"""
SLOW_CLASS = """
class TinyTokenizer(PreTrainedTokenizer):
    @property
    def vocab_size(self):
        return 0
    def get_vocab(self):
        return {}
"""

Make = Callable[..., Path]


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """Exists once the custom code has run."""
    return tmp_path / "the-code-was-run"


@pytest.fixture
def custom_tokenizer(
    tmp_path: Path, marker: Path, tiny_tokenizer_dirs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> Make:
    """A factory of tokenizer directories that bring a Python class, which leaves a marker where it is imported."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))

    def make(code: str = PLAIN_CLASS, auto_map: Any = None) -> Path:
        directory = tmp_path / f"custom-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(tiny_tokenizer_dirs[0], directory)
        config = json.loads((directory / "tokenizer_config.json").read_text())
        config["tokenizer_class"] = "TinyTokenizer"
        config["auto_map"] = auto_map or {"AutoTokenizer": [None, "tokenization_tiny.TinyTokenizer"]}
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
        (directory / "tokenization_tiny.py").write_text(
            "from pathlib import Path\n"
            "from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast\n"
            f"Path({str(marker)!r}).touch()\n{code}"
        )
        return directory

    return make


def run(stage: type, tmp_path: Path, **options: Any) -> Path:
    out = tmp_path / "out"
    out.mkdir()
    stage().run(StageContext(config=stage.Config(**options), inputs={}, work=tmp_path, out=out))
    stage.output.verify(out)
    return out


@pytest.mark.parametrize(
    "auto_map",
    [
        {"AutoTokenizer": [None, "tokenization_tiny.TinyTokenizer"]},
        {"AutoTokenizer": ["tokenization_tiny.TinyTokenizer", None]},
        {"AutoTokenizer": "tokenization_tiny.TinyTokenizer"},
        ["tokenization_tiny.TinyTokenizer", None],
    ],
)
def test_code_is_refused_and_not_run_unless_trusted(
    tmp_path: Path, marker: Path, custom_tokenizer: Make, auto_map: Any
) -> None:
    source = custom_tokenizer(auto_map=auto_map)
    assert tokenizer_code(source) == "tokenization_tiny.TinyTokenizer"
    with pytest.raises(StageError, match=rf"{source}: .*tokenization_tiny\.TinyTokenizer.*`trust_remote_code: true`"):
        run(TokenizerSource, tmp_path, tokenizer=str(source))
    assert not marker.exists()
    assert not any((tmp_path / "out").iterdir())


def test_the_refusal_covers_roles_and_a_missing_tokenizer_json(
    tmp_path: Path, marker: Path, custom_tokenizer: Make
) -> None:
    source = custom_tokenizer()
    with pytest.raises(ConversionError, match="trust_remote_code"):
        write_tokenizer(source, tmp_path / "out", roles={"eos": "<|endoftext|>"})
    (source / "tokenizer.json").unlink()
    with pytest.raises(ConversionError, match="trust_remote_code"):
        write_tokenizer(source, tmp_path / "out")
    assert not marker.exists()


def test_trusted_code_is_run_once_and_what_is_published_needs_none(
    tmp_path: Path, marker: Path, custom_tokenizer: Make, tiny_tokenizer_dirs: tuple[Path, Path]
) -> None:
    out = run(TokenizerSource, tmp_path, tokenizer={"file": str(custom_tokenizer()), "trust_remote_code": True})
    assert marker.exists()
    marker.unlink()
    assert not list(out.glob("*.py"))
    assert "auto_map" not in json.loads((out / "tokenizer_config.json").read_text())
    published, original = AutoTokenizer.from_pretrained(out), AutoTokenizer.from_pretrained(tiny_tokenizer_dirs[0])
    assert published(TEXT).input_ids == original(TEXT).input_ids
    assert published.eos_token == original.eos_token
    assert published.all_special_ids == original.all_special_ids
    assert not marker.exists()


def test_the_tokenizer_beside_a_model_is_trusted_at_the_model(
    tmp_path: Path, marker: Path, custom_tokenizer: Make, tiny_model_dir: Make, tiny_tokenizer_dirs: tuple[Path, Path]
) -> None:
    model = shutil.copytree(tiny_model_dir(tiny_tokenizer_dirs[0]), tmp_path / "model")
    for file in custom_tokenizer().iterdir():
        shutil.copyfile(file, model / file.name)
    with pytest.raises(StageError, match=f"{model}: .*trust_remote_code"):
        run(ModelSource, tmp_path, model=str(model))
    assert not marker.exists()
    shutil.rmtree(tmp_path / "out")
    run(ModelSource, tmp_path, model=str(model), trust_remote_code=True)
    assert marker.exists()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (OTHER_IDS_CLASS, "gives other ids than its own `tokenizers` backend, for .The quick"),
        (SLOW_CLASS, "TinyTokenizer has no `tokenizers` backend.*name the rank file"),
        ("raise RuntimeError('broken inside')\n", "custom code tokenization_tiny.TinyTokenizer failed.*broken inside"),
    ],
)
def test_trusted_code_that_cannot_be_done_without_is_refused(
    tmp_path: Path, custom_tokenizer: Make, code: str, message: str
) -> None:
    with pytest.raises(ConversionError, match=message):
        write_tokenizer(custom_tokenizer(code), tmp_path / "out", trust_remote_code=True)


def test_a_tokenizer_without_code_needs_no_trust(tiny_tokenizer_dirs: tuple[Path, Path]) -> None:
    assert tokenizer_code(tiny_tokenizer_dirs[0]) is None


def test_a_model_that_needs_code_is_refused_and_a_known_architecture_is_not(
    tmp_path: Path, tiny_model_dir: Make, tiny_tokenizer_dirs: tuple[Path, Path]
) -> None:
    source = shutil.copytree(tiny_model_dir(tiny_tokenizer_dirs[0]), tmp_path / "model")
    config = json.loads((source / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}
    (source / "config.json").write_text(json.dumps(config))
    write_model(source, tmp_path / "known")
    (source / "config.json").write_text(json.dumps({**config, "model_type": "mine"}))
    with pytest.raises(ConversionError, match=r"model: the model type 'mine' is not.*modeling_mine\.MineForCausalLM"):
        write_model(source, tmp_path / "unknown")


def test_trust_is_part_of_the_key_and_its_absence_is_not() -> None:
    from pipeline.keys import keyed_params

    def key(**options: Any) -> dict[str, Any]:
        return keyed_params(TokenizerSource.Config(tokenizer={"file": "x", **options}), lambda place, text: text)

    assert key() == key(trust_remote_code=False)
    assert key(trust_remote_code=True)["tokenizer"] == {**key()["tokenizer"], "trust_remote_code": True}


def test_trust_beside_a_tokenizer_of_its_own_is_refused() -> None:
    with pytest.raises(ValidationError, match="write it under 'tokenizer'"):
        ModelSource.Config(model="x", tokenizer="y", trust_remote_code=True)
