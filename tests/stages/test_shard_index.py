"""File names in the index of a model that came from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages.artifacts import ArtifactError
from stages.conversion.errors import ConversionError
from stages.conversion.model import SHARD_INDEX, write_model
from stages.initialisation.shards import weight_files
from stages.shard_index import is_plain_name, shard_names
from stages.stage import StageError

OUTSIDE = ["../outside.safetensors", "a/../../outside", "/etc/passwd", "sub/x.safetensors", "..", "", "a\\b", "C:x", 3]


def index_of(directory: Path, *names: object) -> Path:
    directory.mkdir(exist_ok=True)
    index = directory / SHARD_INDEX
    index.write_text(json.dumps({"weight_map": {f"w{number}": name for number, name in enumerate(names)}}))
    return index


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: object) -> None:
    assert not is_plain_name(name)
    (tmp_path / "outside.safetensors").write_bytes(b"x")
    index = index_of(tmp_path / "model", name)
    with pytest.raises(ArtifactError, match="is not a file beside it"):
        shard_names(index)


def test_names_are_listed_once_and_missing_files_named(tmp_path: Path) -> None:
    index = index_of(tmp_path, "b.safetensors", "a.safetensors", "b.safetensors")
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(ArtifactError, match=r"names files that are missing: b\.safetensors"):
        shard_names(index)
    (tmp_path / "b.safetensors").touch()
    assert shard_names(index) == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_what_is_no_index_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / SHARD_INDEX).write_text(content)
    with pytest.raises(ArtifactError, match="has no `weight_map`"):
        shard_names(tmp_path / SHARD_INDEX)


@pytest.mark.parametrize("index", [SHARD_INDEX, "pytorch_model.bin.index.json"])
def test_no_source_writes_or_reads_outside_its_directory(tmp_path: Path, index: str) -> None:
    model, out = tmp_path / "models" / "model", tmp_path / "store" / "out"
    model.mkdir(parents=True)
    (model / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "models" / "stolen").write_text("secret")
    (model / index).write_text('{"weight_map": {"w": "../stolen"}}')
    with pytest.raises(ConversionError, match=r'names the weight file "\.\./stolen"'):
        write_model(model, out)
    assert not (tmp_path / "store").exists()


def test_no_rewritten_model_does(tmp_path: Path) -> None:
    index_of(tmp_path / "model", "../outside.safetensors")
    (tmp_path / "outside.safetensors").write_bytes(b"x")
    with pytest.raises(StageError, match="is not a file beside it"):
        weight_files(tmp_path / "model")
