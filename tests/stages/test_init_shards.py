"""Weight files rewritten by streaming: the model that results, the bytes of its body, and the memory that it takes."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_architectures import PER_LAYER_ROWS, ROWS, save_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from stages.initialisation.shards import read_shard, weight_files, write_model_files
from stages.initialisation.tensors import read_rows, stored_layout, vocabulary_tensors
from stages.stage import StageError, StageInterrupted

INPUT, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
INDEX = "model.safetensors.index.json"
NEW_ROWS = 41


def load_all(directory: Path) -> dict[str, Tensor]:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def pick_rows(directory: Path, picked: Tensor) -> dict[str, Tensor]:
    """The stored vocabulary tensors of a model with the rows ``picked`` of each."""
    return {
        tensor.stored_name: stored_layout(tensor, read_rows(tensor)[picked])
        for tensor in vocabulary_tensors(directory)
        if tensor.stored_name
    }


def set_sizes(source: Path, out: Path, **values: object) -> None:
    """Write the configuration of ``source`` with other values, also into that of a multimodal model's text."""
    config = json.loads((source / "config.json").read_text())
    for section in (config, config.get("text_config", {})):
        section.update({key: value for key, value in values.items() if key in section or section is config})
    (out / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(("shard_size", "dtype"), [("5GB", torch.float32), ("4KB", torch.bfloat16)])
@pytest.mark.parametrize(
    "architecture", ["llama-tied", "llama-untied", "gpt2", "gpt-neox", "phi", "bert", "gemma3", "gemma3n"]
)
def test_a_model_with_permuted_rows_is_the_same_model_of_permuted_ids(
    tmp_path: Path, architecture: str, shard_size: str, dtype: torch.dtype
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    out.mkdir()
    save_model(architecture, source, dtype=dtype, shard_size=shard_size)
    picked = torch.randperm(PER_LAYER_ROWS, generator=torch.Generator().manual_seed(1))[:NEW_ROWS]
    write_model_files(source, out, pick_rows(source, picked))
    set_sizes(source, out, vocab_size=NEW_ROWS, vocab_size_per_layer_input=NEW_ROWS)

    before, after = AutoModelForCausalLM.from_pretrained(source), AutoModelForCausalLM.from_pretrained(out)
    assert after.dtype == dtype
    ids = torch.arange(NEW_ROWS)[None]
    with torch.inference_mode():  # in float32: products of matrices of different sizes round differently in bfloat16
        expected, found = before.float()(picked[ids]).logits[..., picked], after.float()(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    ours, theirs = after.get_output_embeddings().weight, after.get_input_embeddings().weight
    assert (ours is theirs) == (before.get_output_embeddings().weight is before.get_input_embeddings().weight)


@pytest.mark.parametrize("architecture", ["llama-tied", "gpt-neox-tied", "gpt2", "bert", "gemma3"])
def test_a_tied_model_is_untied_by_adding_what_was_tied(tmp_path: Path, architecture: str) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    out.mkdir()
    before = save_model(architecture, source, shard_size="4KB")
    tensors = vocabulary_tensors(source)
    owners = {tensor.name: tensor for tensor in tensors}
    added = {t.name: stored_layout(t, read_rows(owners[t.tied_to])) for t in tensors if t.tied_to and not t.stored_name}
    output = next(tensor.name for tensor in tensors if tensor.role == "output")
    added[output] = added[output] * 2
    write_model_files(source, out, pick_rows(source, torch.arange(ROWS)), added=added)
    set_sizes(source, out, tie_word_embeddings=False)

    after = AutoModelForCausalLM.from_pretrained(out)
    assert after.get_output_embeddings().weight is not after.get_input_embeddings().weight
    ids = torch.arange(9)[None]
    with torch.inference_mode():
        before.get_output_embeddings().weight = torch.nn.Parameter(before.get_output_embeddings().weight * 2)
        torch.testing.assert_close(after(ids).logits, before(ids).logits)
    weight_map = json.loads((out / INDEX).read_text())["weight_map"]
    source_map = json.loads((source / INDEX).read_text())["weight_map"]
    sibling = next(tensor.stored_name for tensor in tensors if tensor.role == "input")
    assert {weight_map[name] for name in added} == {source_map[sibling]}


def test_body_tensors_keep_their_bytes_and_the_index_tells_the_new_sizes(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    out.mkdir()
    save_model("llama-untied", source, shard_size="8KB")
    replaced = pick_rows(source, torch.tensor([5, 0, 3]))
    write_model_files(source, out, replaced)
    before, after = load_all(source), load_all(out)
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        assert torch.equal(tensor, replaced.get(name, before[name])), name
    index = json.loads((out / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in after.values())
    assert index["metadata"]["total_parameters"] == sum(tensor.numel() for tensor in after.values())
    assert index["weight_map"] == json.loads((source / INDEX).read_text())["weight_map"]


def test_what_does_not_change_is_the_same_file_in_a_place_of_its_own(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    out.mkdir()
    save_model("llama-untied", source, shard_size="8KB")
    write_model_files(source, out, pick_rows(source, torch.arange(ROWS)))
    assert json.loads((out / INDEX).read_text()) == json.loads((source / INDEX).read_text())
    for file in source.glob("*.safetensors"):
        # Also a file written anew with the same rows: the library and we write one format.
        assert (out / file.name).read_bytes() == file.read_bytes()
        assert (out / file.name).stat().st_ino != file.stat().st_ino


def test_order_metadata_and_alignment_stay(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    tensors = {
        "a.wide": torch.randn(3, 5, dtype=torch.float64),
        "b.norm": torch.randn(7),
        "c.é": torch.randn(4, 3).to(torch.bfloat16),
        "d.ids": torch.arange(5, dtype=torch.uint8),
    }
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt", "made_by": 'a "test"'})
    replaced = {"c.é": torch.randn(9, 3).to(torch.bfloat16)}
    write_model_files(source, out, replaced, removed=["d.ids"], added={"new": torch.randn(2, 3)})

    with (out / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
    assert length % 8 == 0
    with safe_open(out / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "made_by": 'a "test"'}
        assert torch.equal(file.get_tensor("a.wide"), tensors["a.wide"])
    shard = read_shard(out / "model.safetensors")
    assert shard.names == ["a.wide", "b.norm", "new", "c.é"]
    assert all(tensor.begin % {"F64": 8, "F32": 4, "BF16": 2}[tensor.dtype] == 0 for tensor in shard.tensors)
    assert torch.equal(load_all(out)["c.é"], replaced["c.é"])


_MEASURE = """
import resource, sys, torch
from pathlib import Path
from stages.initialisation.shards import write_model_files
rows = torch.ones(1000, 64, dtype=torch.bfloat16)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_model_files(Path(sys.argv[1]), Path(sys.argv[2]), {"embed": rows})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def write_sparse_model(directory: Path, body_bytes: int) -> None:
    """A weight file with a tiny matrix and a large body of zeros, which takes no room on the disk."""
    rows = 500 * 64 * 2
    header = {
        "body": {"dtype": "F16", "shape": [body_bytes // 2], "data_offsets": [0, body_bytes]},
        "embed": {"dtype": "BF16", "shape": [500, 64], "data_offsets": [body_bytes, body_bytes + rows]},
    }
    encoded = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.truncate(8 + len(encoded) + body_bytes + rows)


def test_memory_is_that_of_the_replaced_tensors_not_of_the_body(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    body = 300 << 20
    write_sparse_model(source, body)
    command = [sys.executable, "-c", _MEASURE, str(source), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    grown_kib = int(done.stdout)
    (written,) = weight_files(out)
    size, found = written.stat().st_size, read_shard(written).tensors
    written.unlink()
    assert grown_kib < 48 << 10
    assert size > body
    assert [(tensor.name, tensor.shape) for tensor in found] == [("body", (body // 2,)), ("embed", (1000, 64))]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"replaced": {"none.weight": torch.zeros(1)}}, "none.weight cannot be replaced: the model stores no such"),
        ({"removed": ["none.weight"]}, "none.weight cannot be removed"),
        ({"added": {INPUT: torch.zeros(1)}}, f"{INPUT} cannot be added: the model stores it already"),
        ({"added": {"ids": torch.zeros(1, dtype=torch.int32)}}, r"ids has dtype torch\.int32"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, arguments: Mapping[str, object], message: str) -> None:
    save_model("llama-tied", tmp_path)
    with pytest.raises(ValueError, match=message):
        write_model_files(tmp_path, tmp_path / "out", **{"replaced": {}, **arguments})


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"has no model\.safetensors"):
        weight_files(tmp_path)
    save_model("llama-tied", tmp_path, shard_size="8KB")
    first, second, *_ = weight_files(tmp_path)
    content = first.read_bytes()
    first.write_bytes(content[:-1])
    with pytest.raises(StageError, match=rf"{first.name} is cut off.*again"):
        write_model_files(tmp_path, tmp_path, {})
    second.unlink()
    with pytest.raises(StageError, match=rf"{INDEX}: names files that are missing: {second.name}"):
        weight_files(tmp_path)


def test_writing_stops_when_asked(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    out.mkdir()
    save_model("llama-tied", source)
    with pytest.raises(StageInterrupted):
        write_model_files(source, out, pick_rows(source, torch.arange(5)), should_stop=lambda: True)
