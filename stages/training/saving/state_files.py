"""A student's optimisation state on disk, by parameter name: no number of processes and no ZeRO stage shows in it.

Every process writes what it holds, as fragments: contiguous ranges of flattened parameters. Reading, a process asks for
the ranges that it holds now, whichever files they lie in. So one format serves a plain process and all stages of ZeRO,
and a checkpoint resumes under any of them, without a conversion between.

The state of a parameter is AdamW's: the float32 master weight and the two moments; the number of steps is the same for
all.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from stages.stage import StageError
from stages.training.saving import checkpoint
from stages.training.saving.shard_writer import MAX_SHARD_BYTES, ShardWriter

MOMENTS = ("exp_avg", "exp_avg_sq")
KINDS = ("master", *MOMENTS)

Shapes = Mapping[str, tuple[int, ...]]

_NOTES_BYTES = 1024
"""More than one process writes of one parameter beside its values: its name, its shape, and where its values lie."""


@dataclass(frozen=True)
class Fragment:
    """The state of elements ``start`` to ``start + n`` of one flattened parameter.

    Attributes:
        name: the parameter's, in ``student.named_parameters()``.
        start: index of the first element.
        values: float32 [n] by kind: ``master``, ``exp_avg``, ``exp_avg_sq``.
    """

    name: str
    start: int
    values: Mapping[str, Tensor]


def size_of(shapes: Shapes, processes: int = 1) -> int:
    """Bytes that ``write`` takes on disk for parameters of these shapes, all processes together; never too few."""
    values = sum(math.prod(shape) for shape in shapes.values())
    return 4 * len(KINDS) * values + _NOTES_BYTES * len(shapes) * processes


def write(
    directory: Path,
    rank: int,
    step: int,
    shapes: Shapes,
    fragments: Iterable[Fragment],
    max_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write one process's fragments; at most ``max_bytes`` of them are held at a time.

    Args:
        directory: of the checkpoint; the other processes write into it too.
        rank: this process's.
        step: how many steps the optimiser has taken.
        shapes: of all parameters, not only of those that have fragments here.
        fragments: of which the next is asked for only when the one before may be forgotten.
        max_bytes: most bytes in one file.
    """
    writer = ShardWriter(lambda number: directory / f"state-{rank:05d}-{number:05d}.safetensors", max_bytes)
    index = []
    for number, fragment in enumerate(fragments):
        places = {kind: writer.add(f"{number}.{kind}", fragment.values[kind]) for kind in KINDS}
        size = fragment.values["master"].numel()
        index.append({"name": fragment.name, "number": number, "start": fragment.start, "size": size, "files": places})
    writer.flush()
    record = {"step": step, "shapes": {name: list(shape) for name, shape in shapes.items()}, "fragments": index}
    (directory / f"state-{rank:05d}.json").write_text(json.dumps(record), encoding="utf-8")
    checkpoint.seal(directory, rank, sorted({name for entry in index for name in entry["files"].values()}))


class _Place(NamedTuple):
    """Where on disk a fragment lies."""

    start: int
    stop: int
    number: int
    files: Mapping[str, Path]


class StateReader:
    """The state that all processes wrote together.

    Attributes:
        step: how many steps the optimiser had taken.
        shapes: of all parameters, by name.

    Raises:
        StageError: the directory holds no such state.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._places: dict[str, list[_Place]] = defaultdict(list)
        records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(directory.glob("state-*.json"))]
        if not records:
            raise StageError(
                f"{directory} was written by another version of tokenferry; remove {directory.parent} to start this "
                "stage again"
            )
        self.step: int = records[0]["step"]
        self.shapes: Shapes = {name: tuple(shape) for name, shape in records[0]["shapes"].items()}
        for record in records:
            for entry in record["fragments"]:
                files = {kind: directory / name for kind, name in entry["files"].items()}
                place = _Place(entry["start"], entry["start"] + entry["size"], entry["number"], files)
                self._places[entry["name"]].append(place)
        self._open = cache(lambda path: safe_open(path, framework="pt"))

    def check(self, shapes: Shapes) -> None:
        """Make sure that the state is of the model at hand.

        Raises:
            StageError: names the parameters that differ.
        """
        missing = [name for name in shapes if name not in self.shapes]
        unknown = [name for name in self.shapes if name not in shapes]
        reshaped = [
            f"{name} is {list(self.shapes[name])} there and {list(shape)} here"
            for name, shape in shapes.items()
            if name in self.shapes and self.shapes[name] != tuple(shape)
        ]
        if missing or unknown or reshaped:
            differences = [
                *(f"it lacks {name}" for name in missing),
                *(f"{name} does not train here" for name in unknown),
                *reshaped,
            ]
            raise StageError(
                f"{self._directory} is a checkpoint of another model: {'; '.join(differences[:3])}"
                f"{f'; and {len(differences) - 3} more' if len(differences) > 3 else ''}. Remove "
                f"{self._directory.parent} to start this stage again"
            )

    def read(self, name: str, kind: str, start: int = 0, size: int | None = None) -> Tensor:
        """``kind`` of ``size`` elements of the flattened parameter ``name`` from ``start``, by default of all.

        Returns:
            float32 [size].

        Raises:
            StageError: no file has some of them.
        """
        stop = math.prod(self.shapes[name]) if size is None else start + size
        result = torch.empty(stop - start, dtype=torch.float32)
        found = 0
        for place in self._places[name]:
            first, last = max(start, place.start), min(stop, place.stop)
            if first < last:
                stored = self._open(place.files[kind]).get_slice(f"{place.number}.{kind}")
                result[first - start : last - start] = stored[first - place.start : last - place.start]
                found += last - first
        if found != stop - start:
            raise StageError(
                f"{self._directory} holds only {found:,} of {stop - start:,} values of {name}: a part of it is missing"
            )
        return result
