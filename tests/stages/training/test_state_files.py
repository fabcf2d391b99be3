"""Optimisation state on disk: what one set of processes wrote, another reads in other pieces, bit for bit."""

from __future__ import annotations

import json
import math
import shutil
from collections import namedtuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.distill import DistillConfig
from stages.stage import StageError
from stages.training.saving import checkpoint, state_files
from stages.training.saving.state_files import KINDS, Fragment, Shapes, StateReader

SHAPES = {"body.weight": (7, 5), "body.bias": (7,), "scale": ()}


def _state(seed: int = 0, shapes: Shapes = SHAPES) -> dict[str, dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    return {
        name: {kind: torch.randn(math.prod(shape), generator=draw) for kind in KINDS} for name, shape in shapes.items()
    }


def _write(directory, state, cuts, *, max_bytes=2**20, shapes=SHAPES):
    """One process for each range between ``cuts`` of every flattened parameter, in reverse order of the ranges."""
    directory.mkdir(exist_ok=True)
    for rank, (low, high) in enumerate(zip([0.0, *cuts], [*cuts, 1.0], strict=True)):
        fragments = []
        for name, kinds in state.items():
            size = len(kinds["master"])
            start, stop = round(low * size), round(high * size)
            if start < stop:
                fragments.append(Fragment(name, start, {kind: value[start:stop] for kind, value in kinds.items()}))
        state_files.write(directory, rank, 3, shapes, reversed(fragments), max_bytes)


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.floats(0, 1), max_size=4).map(sorted),
    max_bytes=st.sampled_from([8, 60, 2**20]),
    data=st.data(),
)
def test_any_range_of_any_split_reads_as_it_was(tmp_path_factory, cuts, max_bytes, data):
    directory, state = tmp_path_factory.mktemp("state"), _state()
    _write(directory, state, cuts, max_bytes=max_bytes)
    reader = StateReader(directory)
    assert reader.step == 3
    assert reader.shapes == SHAPES
    for name, kinds in state.items():
        size = len(kinds["master"])
        start = data.draw(st.integers(0, size - 1))
        length = data.draw(st.integers(1, size - start))
        for kind, value in kinds.items():
            assert torch.equal(reader.read(name, kind), value)
            assert torch.equal(reader.read(name, kind, start, length), value[start : start + length])


def test_files_keep_to_their_size_unless_one_tensor_is_larger(tmp_path):
    _write(tmp_path, _state(), [], max_bytes=60)
    sizes = [path.stat().st_size for path in tmp_path.glob("*.safetensors")]
    assert len(sizes) == 5  # three of 140 bytes alone, three of 28 and three of 4 by twos and threes
    assert max(sizes) < 140 + 200


def test_a_part_that_is_missing_is_said_not_filled_up(tmp_path):
    _write(tmp_path, _state(), [0.5])
    (tmp_path / "state-00001.json").unlink()
    with pytest.raises(StageError, match=r"only 18 of 35 values of body\.weight"):
        StateReader(tmp_path).read("body.weight", "master")


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"body.weight": (5, 7)}, "body.weight is [7, 5] there and [5, 7] here"),
        ({"head.weight": (2, 2)}, "it lacks head.weight"),
        ({"scale": None}, "scale does not train here"),
    ],
)
def test_the_state_of_another_model_is_refused_by_parameter(tmp_path, shapes, said):
    _write(tmp_path, _state(), [])
    reader = StateReader(tmp_path)
    reader.check(SHAPES)
    here = {name: shape for name, shape in {**SHAPES, **shapes}.items() if shape is not None}
    with pytest.raises(StageError) as refused:
        reader.check(here)
    assert said in str(refused.value)
    assert "is a checkpoint of another model" in str(refused.value)


def test_a_directory_without_state_says_so(tmp_path):
    with pytest.raises(StageError, match="another version of tokenferry"):
        StateReader(tmp_path)


@pytest.mark.parametrize("cuts", [[], [0.4], [0.1, 0.2, 0.5, 0.9]])
def test_the_size_that_is_planned_is_the_size_on_disk(tmp_path, cuts):
    shapes = {"weight": (400, 500), "a.bias." + "very_long_name." * 10: (500,), "scale": ()}
    _write(tmp_path, _state(shapes=shapes), cuts, shapes=shapes)
    written = sum(path.stat().st_size for path in tmp_path.iterdir())
    planned = state_files.size_of(shapes, len(cuts) + 1)
    assert 0.99 * planned < written <= planned


def test_files_that_a_process_sealed_are_listed_and_watched(tmp_path):
    directory = checkpoint.begin(tmp_path, 1)
    _write(directory, _state(), [0.3, 0.6])
    checkpoint.complete(directory, {"step": 1})
    files = checkpoint.read_marker(directory)["files"]
    assert files.keys() == {path.name for path in directory.iterdir()} - {checkpoint.MARKER}
    assert checkpoint.damage(directory) is None
    path = directory / "state-00001-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "state-00001-00000.safetensors is not what was saved" in checkpoint.damage(directory)
    shares = [checkpoint.damage(directory, share, 3) for share in range(3)]
    assert sum(problem is not None for problem in shares) == 1  # each file is read by one process


def _config(**options) -> DistillConfig:
    return DistillConfig(losses=["cross_entropy"], steps=10, **options)


def test_a_checkpoint_of_other_options_is_refused_by_option(tmp_path):
    saved = json.loads(json.dumps(checkpoint.options(_config(learning_rate=1e-3))))
    checkpoint.check_origin(tmp_path, saved, _config(learning_rate=1e-3))
    # How a stage runs is not what it computes.
    checkpoint.check_origin(tmp_path, saved, _config(learning_rate=1e-3, micro_batch_windows=1, log_every=1))
    with pytest.raises(StageError, match=r"another recipe: learning_rate was 0\.001 and is 0\.002\. Go back"):
        checkpoint.check_origin(tmp_path, saved, _config(learning_rate=2e-3))


def test_checkpoints_that_do_not_fit_are_refused_with_the_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(5 * 2**30))
    checkpoint.check_space(tmp_path / "new", 2**30, keep=4)
    with pytest.raises(StageError) as refused:
        checkpoint.check_space(tmp_path / "new", 2**30, keep=5)
    message = str(refused.value)
    assert "not enough disk for the planned checkpoints: 6 of 1 GiB each" in message
    assert "only 5 GiB left" in message
    assert "keep_checkpoints" in message
