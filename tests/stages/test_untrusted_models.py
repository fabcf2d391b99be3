"""Models that were made to do harm: nothing that comes with them is run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stages.conversion.errors import ConversionError
from stages.conversion.model import write_model
from stages.initialisation.text_encoder import TextEncoder
from stages.stage import StageError


class Payload:
    """Runs a program when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self._mark),)


@pytest.fixture
def pickled(tmp_path: Path) -> tuple[Path, Path]:
    """A model directory whose pickled weights run a program, and the directory which that makes."""
    model, mark = tmp_path / "model", tmp_path / "ran"
    network = LlamaForCausalLM(
        LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    network.config.save_pretrained(model)
    torch.save({**network.state_dict(), "x": Payload(mark)}, model / "pytorch_model.bin")
    return model, mark


def test_the_payload_is_one(pickled: tuple[Path, Path]) -> None:
    model, mark = pickled
    torch.load(model / "pytorch_model.bin", weights_only=False)
    assert mark.is_dir()


def test_a_program_in_pickled_weights_is_not_run(pickled: tuple[Path, Path], tmp_path: Path) -> None:
    model, mark = pickled
    with pytest.raises(ConversionError, match=r"hold more than tensors.*nothing of it was run"):
        write_model(model, tmp_path / "out")
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


def test_nor_in_those_of_a_text_encoder(pickled: tuple[Path, Path], tiny_tokenizer_dirs: tuple[Path, Path]) -> None:
    model, mark = pickled
    for file in tiny_tokenizer_dirs[0].iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    with pytest.raises(StageError):
        TextEncoder(model)
    assert not mark.exists()


def test_code_that_comes_with_a_model_of_a_known_type_is_not_run(tmp_path: Path) -> None:
    model, mark = tmp_path / "model", tmp_path / "ran"
    network = LlamaForCausalLM(
        LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    network.save_pretrained(model)
    torch.save(network.state_dict(), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    (model / "evil.py").write_text(f"import os; os.mkdir({str(mark)!r})")
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (model / "config.json").write_text(json.dumps(config))
    write_model(model, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert not (tmp_path / "out" / "evil.py").exists()
    assert not mark.exists()
