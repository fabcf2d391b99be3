"""kill -9 at every change of the file system that saving, pruning, resuming and exporting a training makes."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from unittest import mock

import process_world
import pytest
import torch
from kill_points import killed_at
from mounted import apart, small
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from safetensors.torch import save_file as torch_save_file

from stages.artifacts import ModelArtifact
from stages.distill import Distill, DistillConfig
from stages.stage import StageContext
from stages.training.saving import checkpoint, shard_writer

STEPS = (2, 4, 6, 8)
KEEP = 2
TEXTS = ["The quick brown fox jumps over the lazy dog, and the dog sleeps on while the fox runs far away."] * 12
OPTIONS = {
    "losses": ["alm"], "steps": 6, "batch_windows": 2, "window_tokens": 48, "learning_rate": 3e-3, "dtype": "fp32",
    "data_workers": 0, "checkpoint_every": 2, "keep_checkpoints": 1, "log_every": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_waits_for_the_disk() -> Iterator[None]:
    """What is killed here is processes, and the system's own cache survives that."""
    with mock.patch.object(os, "fsync"):
        yield


def content(step: int) -> str:
    return f"what was learned in {step} steps"


def save(root: Path, step: int) -> None:
    """What the training loop does to save, with two files of two ranks."""
    directory = checkpoint.begin(root, step)
    for rank in (0, 1):
        name = f"state-{rank}.txt"
        (directory / name).write_text(content(step))
        checkpoint.seal(directory, rank, [name])
    (directory / "other.json").write_text(json.dumps(content(step)))
    checkpoint.complete(directory, {"step": step, "best": {"step": 2}})
    checkpoint.prune(root, step, KEEP)


def go_on(root: Path) -> list[int]:
    """From the newest whole checkpoint to the last; the steps that were saved."""
    found = checkpoint.latest(root, lambda line: None)
    done = 0
    if found is not None:
        directory, state = found
        done = state["step"]
        assert directory.name == f"step-{done}"
        assert [(directory / f"state-{rank}.txt").read_text() for rank in (0, 1)] == [content(done)] * 2
        assert json.loads((directory / "other.json").read_text()) == content(done)
    for step in (step for step in STEPS if step > done):
        save(root, step)
    return [step for step in STEPS if step > done]


def whole(root: Path) -> dict[str, dict[str, str]]:
    """What counts: checkpoint -> file -> content. What a kill left of one that was being removed goes at the next save,
    or with all of ``work`` once the model is published."""
    return {
        marker.parent.name: {path.name: path.read_text() for path in marker.parent.iterdir()}
        for marker in root.glob("step-*/COMPLETE.json")
    }


def test_a_kill_at_any_change_costs_at_most_the_checkpoint_that_was_being_saved(tmp_path: Path) -> None:
    go_on(tmp_path / "straight")
    expected = whole(tmp_path / "straight")
    assert expected.keys() == {"step-2", "step-6", "step-8"}, "the newest two, and the best"
    points = []
    for number in itertools.count(1):
        root = tmp_path / str(number)
        root.mkdir()
        point = killed_at(lambda root=root: go_on(root), number, root)
        if point is None:
            break
        points.append(point)
        begun = max((int(path.name.removeprefix("step-")) for path in root.glob("step-*")), default=STEPS[0])
        again = go_on(root)
        assert min(again, default=begun) >= begun, f"{point}: a checkpoint that was whole is lost"
        assert expected.items() <= whole(root).items(), point
    changes = {point.split(" ")[0] for point in points}
    assert {"os.mkdir", "open", "os.rename", "os.remove", "os.rmdir"} <= changes, "saving and pruning are both seen"
    assert len(points) > 30


def test_a_second_kill_while_the_first_is_mended_costs_no_more(tmp_path: Path) -> None:
    go_on(tmp_path / "straight")
    expected = whole(tmp_path / "straight")
    for first, second in itertools.product(range(3, 40, 14), range(1, 30, 11)):
        root = tmp_path / f"{first}-{second}"
        root.mkdir()
        for number in (first, second):
            killed_at(lambda root=root: go_on(root), number, root)
        go_on(root)
        assert expected.items() <= whole(root).items(), (first, second)


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer_dirs, tiny_model_dir) -> dict[str, Path]:
    documents = tmp_path_factory.mktemp("documents")
    records = [{"id": f"d/{n}", "domain": "d", "weight": 1.0, "text": text} for n, text in enumerate(TEXTS)]
    (documents / "documents.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (documents / "manifest.json").write_text("{}")
    teacher, student = tiny_tokenizer_dirs
    return {
        "teacher": tiny_model_dir(teacher, seed=1),
        "student": tiny_model_dir(student, seed=2),
        "documents": documents,
    }


def written_in_halves(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """``save_file`` by two writes of Python's, for the hook sees nothing of what Rust writes."""
    whole = to_bytes(dict(tensors))
    for mode, part in (("wb", whole[: len(whole) // 2]), ("ab", whole[len(whole) // 2 :])):
        with Path(path).open(mode) as file:
            file.write(part)


def train(
    world: Mapping[str, Path],
    root: Path,
    say: Callable[[str], None] = lambda line: None,
    save_file: Callable[[Mapping[str, torch.Tensor], Path], None] = written_in_halves,
) -> None:
    for directory in (root / "work", root / "out"):
        directory.mkdir(parents=True, exist_ok=True)
    inputs = {name: {name: path} for name, path in world.items()}
    config = DistillConfig(**OPTIONS)
    with mock.patch.object(shard_writer, "save_file", save_file):
        Distill().run(StageContext(config, inputs, root / "work", root / "out", progress=say))


def going_on(root: Path) -> list[str]:
    """What the next attempt must say: that it goes on from the newest checkpoint with a marker, if there is one."""
    saved = [int(marker.parent.name.removeprefix("step-")) for marker in root.glob("work/ckpt/*/COMPLETE.json")]
    return [f"resuming after step {max(saved)}/6"] if saved else []


def trained(root: Path) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The weights, and the loss of every step."""
    ModelArtifact.verify(root / "out")
    points = [json.loads(line) for line in (root / "out" / "training.jsonl").read_text().splitlines()]
    assert [point["step"] for point in points] == list(range(1, OPTIONS["steps"] + 1))
    return load_file(root / "out" / "model.safetensors"), [point["loss"] for point in points]


def assert_bitwise(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor], where: str) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), f"{where}: {name}"


@pytest.fixture(scope="module")
def straight(world, tmp_path_factory) -> tuple[dict[str, torch.Tensor], list[float]]:
    root = tmp_path_factory.mktemp("straight")
    train(world, root)
    return trained(root)


@pytest.mark.parametrize("stride", [23, pytest.param(1, marks=pytest.mark.slow)])
def test_a_training_that_is_killed_anywhere_ends_bitwise_like_one_that_was_not(
    world, straight, tmp_path: Path, stride: int
) -> None:
    points = []
    for number in itertools.count(1 + stride // 2, stride):
        root = tmp_path / str(number)
        point = killed_at(lambda root=root: train(world, root), number, root)
        if point is None:
            break
        points.append(point)
        expected = going_on(root)
        shutil.rmtree(root / "out", ignore_errors=True)  # the next attempt has another
        lines: list[str] = []
        train(world, root, lines.append)
        assert [line for line in lines if line.startswith("resuming after step")] == expected, point
        weights, losses = trained(root)
        assert_bitwise(straight[0], weights, point)
        assert losses == straight[1], point
    assert len(points) > 60 // stride, "the hook sees what a training writes"
    if stride == 1:
        assert any("state-00000-00000.safetensors" in point for point in points)
        assert any("COMPLETE.json" in point for point in points)


def two_processes(
    world: Mapping[str, Path], root: Path, killed_at: tuple[int, int] | None = None
) -> process_world.Done:
    config = DistillConfig(**OPTIONS | {"batch_windows": 4, "micro_batch_windows": 1})
    return process_world.run(
        process_world.write_job(root, world, config, {"zero": {"student": 2}}), 2, killed_at=killed_at
    )


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_processes_is_killed_anywhere_and_the_end_is_bitwise_the_same(
    world, tmp_path: Path, victim: int
) -> None:
    straight = two_processes(world, tmp_path / "straight")
    assert straight.codes == (0, 0), straight.text
    expected = trained(tmp_path / "straight")
    for number in itertools.count(4, 11 if victim == 0 else 2):
        root = tmp_path / str(number)
        died = two_processes(world, root, (victim, number))
        if died.codes[victim] == 0:
            break
        assert died.codes[victim] == -9, died.text
        said = going_on(root)
        shutil.rmtree(root / "out", ignore_errors=True)
        resumed = two_processes(world, root)
        assert resumed.codes == (0, 0), resumed.text
        assert re.findall(r"resuming after step .*", resumed.text) == said
        weights, losses = trained(root)
        assert_bitwise(expected[0], weights, f"rank {victim} at change {number}")
        assert losses == expected[1]
    assert number > 10, "the hook sees what a rank writes"


def filled_up(world: Mapping[str, Path], root: Path, pages: int) -> tuple[str, list[str], list[str]]:
    """A training whose disk fills up at step 3, with room for so many pages, and which goes on when there is more.

    Returns:
        The error, what the second attempt must say and what it says of where it goes on.
    """
    small(root, 16 << 20)
    page = os.sysconf("SC_PAGESIZE")

    def fill(line: str) -> None:
        if line.startswith("step 3/") and not (root / "ballast").exists():
            (root / "ballast").write_bytes(bytes((os.statvfs(root).f_bavail - pages) * page))

    try:
        train(world, root, fill, save_file=torch_save_file)
    except Exception as problem:
        error = f"{type(problem).__name__}: {problem}"
    else:
        error = ""
    os.truncate(root / "ballast", 0)
    expected, lines = going_on(root), []
    shutil.rmtree(root / "out")
    train(world, root, lines.append)
    shutil.copytree(root / "out", root.parent / "finished")
    return error, expected, [line for line in lines if line.startswith("resuming after step")]


@pytest.mark.parametrize(
    "pages", [2, 60, *(pytest.param(pages, marks=pytest.mark.slow) for pages in (0, 1, 3, 5, 20, 100, 125, 150, 250))]
)
def test_a_checkpoint_for_which_there_is_no_room_costs_nothing_else(
    world, straight, tmp_path: Path, pages: int
) -> None:
    (tmp_path / "small").mkdir()
    error, expected, said = apart(lambda: filled_up(world, tmp_path / "small", pages))
    if pages <= 60:
        assert "No space left on device" in error
        assert expected == ["resuming after step 2/6"], "the one before is whole"
    assert said == expected
    (tmp_path / "finished").rename(tmp_path / "out")
    weights, losses = trained(tmp_path)
    assert_bitwise(straight[0], weights, f"{pages} pages")
    assert losses == straight[1]
