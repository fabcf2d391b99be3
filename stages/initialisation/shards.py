"""The weight files of a model, rewritten with a few tensors replaced and everything else copied byte for byte.

A body tensor is never a tensor in memory: its bytes go from file to file in blocks, so the memory needed is that of
the replaced tensors, whatever the model's size (embedding_init.md §6.3). Only the published format is relied on:
eight bytes with the header's length, a JSON header, then the tensors' bytes without holes.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from stages.artifacts import ArtifactError, read_json, verify_safetensors, write_json
from stages.shard_index import shard_names
from stages.stage import StageError, StageInterrupted

SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
)
"""The element types that rows can have, by their names in a header."""

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()} | {torch.int64: "I64"}
_BLOCK_BYTES = 8 << 20
_HEADER_ALIGNMENT = 8
_NOTHING: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a weight file.

    Attributes:
        name: as in the file.
        dtype: the format's name of the element type, such as ``BF16``.
        shape: in elements.
        file: where it is.
        begin: where its bytes start in the file.
        size: in bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    size: int

    def blocks(self) -> Iterator[bytes]:
        """Its bytes, a block at a time."""
        with self.file.open("rb") as file:
            file.seek(self.begin)
            for start in range(0, self.size, _BLOCK_BYTES):
                yield file.read(min(_BLOCK_BYTES, self.size - start))


@dataclass(frozen=True)
class Shard:
    """One weight file: its tensors in the order of their bytes, and its free-form metadata."""

    file: Path
    tensors: tuple[StoredTensor, ...]
    metadata: Mapping[str, str] | None

    @property
    def names(self) -> list[str]:
        """The names of its tensors, in order."""
        return [tensor.name for tensor in self.tensors]


def weight_files(model_dir: Path) -> list[Path]:
    """The files that transformers loads the weights from; others of the directory are in somebody else's layout.

    Raises:
        StageError: there are none, or the index names one that is missing or lies elsewhere.
    """
    if (model_dir / SINGLE_FILE).is_file():
        return [model_dir / SINGLE_FILE]
    if not (model_dir / INDEX).is_file():
        raise StageError(f"{model_dir} has no {SINGLE_FILE} and no {INDEX}: save the model with save_pretrained")
    try:
        return [model_dir / name for name in shard_names(model_dir / INDEX)]
    except ArtifactError as error:
        raise StageError(f"{error}. Fetch or save the model again.") from None


def read_shard(file: Path) -> Shard:
    """What the header of a safetensors file says.

    Raises:
        StageError: the file is cut off or is no safetensors file.
    """
    try:
        verify_safetensors(file)
    except ArtifactError as error:
        raise StageError(f"{error}. Fetch or save the model again.") from None
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    metadata = header.pop("__metadata__", None)
    tensors = []
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors.append(StoredTensor(name, entry["dtype"], tuple(entry["shape"]), file, 8 + length + begin, end - begin))
    return Shard(file, tuple(sorted(tensors, key=lambda tensor: tensor.begin)), metadata)


def write_model_files(
    source_dir: Path,
    out_dir: Path,
    replaced: Mapping[str, Tensor],
    *,
    removed: Collection[str] = (),
    added: Mapping[str, Tensor] = _NOTHING,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Write the weight files of ``source_dir`` to ``out_dir`` under their own names, and their index if there is one.

    All tensors are named as they are stored. A replaced tensor takes the place of the old one, whatever its shape; an
    added one goes into the file of the first tensor of ``replaced``, or into the last file if nothing is replaced. A
    file without a change is copied; no file of the result is linked to one of the source.

    Raises:
        StageError: a weight file is missing or damaged.
        StageInterrupted: ``should_stop`` gave True; ``out_dir`` may hold an unfinished file.
        ValueError: a tensor to be replaced or removed is not there, one to be added is, or one has a dtype that is
            not in ``DTYPES``.
    """
    shards = [read_shard(file) for file in weight_files(source_dir)]
    _check_names({name for shard in shards for name in shard.names}, replaced, removed, added)
    new = {name: _new_tensor(name, value) for name, value in (*replaced.items(), *added.items())}
    sibling = next(iter(replaced), None)
    home = next((shard for shard in shards if sibling in shard.names), shards[-1])

    contents: dict[str, list[_Content]] = {}
    for shard in shards:
        content: list[_Content] = [new.get(each.name, each) for each in shard.tensors if each.name not in removed]
        for name in added if shard is home else ():
            _insert(content, new[name])
        target = out_dir / shard.file.name
        if content == list(shard.tensors):
            shutil.copyfile(shard.file, target)
        else:
            _write_shard(content, shard.metadata, target, should_stop)
        if should_stop():
            raise StageInterrupted
        contents[shard.file.name] = content
    if not (source_dir / SINGLE_FILE).is_file():
        write_json(out_dir / INDEX, _new_index(read_json(source_dir / INDEX), contents))


@dataclass(frozen=True, eq=False)
class _NewTensor:
    """A tensor that is written from memory; the fields as in ``StoredTensor``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    value: Tensor

    def blocks(self) -> Iterator[memoryview]:
        """Its bytes; they are in memory anyway, so all at once."""
        yield memoryview(self.value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


_Content = StoredTensor | _NewTensor


def _new_tensor(name: str, value: Tensor) -> _NewTensor:
    if value.dtype not in _DTYPE_NAMES:
        raise ValueError(f"{name} has dtype {value.dtype}, weight files get {', '.join(map(str, _DTYPE_NAMES))}")
    return _NewTensor(name, _DTYPE_NAMES[value.dtype], tuple(value.shape), value.nbytes, value)


def _check_names(
    stored: Collection[str], replaced: Collection[str], removed: Collection[str], added: Collection[str]
) -> None:
    for action, names in (("replaced", replaced), ("removed", removed)):
        if missing := [name for name in names if name not in stored]:
            raise ValueError(f"{', '.join(missing)} cannot be {action}: the model stores no such tensor")
    if present := [name for name in added if name in stored]:
        raise ValueError(f"{', '.join(present)} cannot be added: the model stores it already")


def _insert(content: list[_Content], new: _NewTensor) -> None:
    """Put ``new`` behind the last tensor with elements as large: so everything stays aligned to its element size."""
    as_large = [index for index, each in enumerate(content) if _element_size(each) >= _element_size(new)]
    content.insert(as_large[-1] + 1 if as_large else 0, new)


def _element_size(tensor: _Content) -> float:
    return tensor.size / max(1, math.prod(tensor.shape))


def _write_shard(
    content: Sequence[_Content],
    metadata: Mapping[str, str] | None,
    target: Path,
    should_stop: Callable[[], bool],
) -> None:
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    position = 0
    for tensor in content:
        offsets = [position, position + tensor.size]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        position += tensor.size
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % _HEADER_ALIGNMENT)
    with target.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for tensor in content:
            for block in tensor.blocks():
                if should_stop():
                    raise StageInterrupted
                file.write(block)


def _new_index(index: Mapping[str, Any], contents: Mapping[str, Sequence[_Content]]) -> dict[str, Any]:
    tensors = [tensor for content in contents.values() for tensor in content]
    totals = {
        "total_size": sum(tensor.size for tensor in tensors),
        "total_parameters": sum(math.prod(tensor.shape) for tensor in tensors),
    }
    metadata = index.get("metadata", {})
    weight_map = {tensor.name: file for file, content in contents.items() for tensor in content}
    return {
        **index,
        "metadata": metadata | {key: total for key, total in totals.items() if key in metadata},
        "weight_map": dict(sorted(weight_map.items())),
    }
