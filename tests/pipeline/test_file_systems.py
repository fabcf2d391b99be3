"""Runs on file systems that take nothing, or no more: real ones, mounted for a forked process."""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import forked_stages
import pytest
import yaml
from forked_stages import recipe_of
from mounted import apart, read_only, small

from pipeline.cli import main
from pipeline.planner import make_plan
from pipeline.reading.loading import load_recipe
from pipeline.store import Store

STAGES = {
    "first": {"text": "a"},
    "second": {"text": "b", "needs": ["first"]},
    "third": {"text": "c", "needs": ["second"]},
}
TEXTS = {"first": "a()", "second": "b(a())", "third": "c(b(a()))"}
PAGE = 4096
"""What a file takes at least, and what there is room for in a test."""

SHOWING = (
    ["status"], ["status", "grown"], ["status", "grown", "--json"], ["plan", "recipe.yaml"],
    ["plan", "recipe.yaml", "--json"], ["graph", "recipe.yaml"], ["validate", "recipe.yaml"], ["show", "recipe.yaml"],
    ["compare", "grown", "other"], ["compare", "grown", "other", "--json"], ["logs", "grown", "second"], ["ls", "runs"],
    ["clean"], ["clean", "--work"], ["verify"], ["unlock", "grown"], ["env"],
)  # fmt: skip
CHANGING = (
    ["run", "recipe.yaml"], ["run", "new.yaml"], ["resume", "grown"], ["clean", "--yes"],
    ["sweep", "recipe.yaml", "--set", "stages.third.text=q,r"],
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _forked() -> Iterator[None]:
    with forked_stages.forked_stages():
        yield


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://x")
    (tmp_path / "runs").mkdir()
    write_recipe("recipe.yaml", STAGES, "grown")
    return tmp_path


def write_recipe(file: str, stages: dict[str, dict[str, object]], name: str) -> None:
    Path(file).write_text(yaml.safe_dump(recipe_of(stages, name)))


def command(arguments: Sequence[str]) -> tuple[int, str]:
    """Its exit code, and all that it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = main(arguments)
    return code, printed.getvalue()


def quietly(*arguments: str) -> int:
    return command(arguments)[0]


def below(directory: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in directory.rglob("*")}


@pytest.fixture
def half_made(folder: Path) -> Path:
    """Two of three results, one that no run needs, and another run; a file of the recipe's whose digest is not kept."""
    write_recipe("other.yaml", {"first": {"text": "a"}, "second": {"text": "old", "needs": ["first"]}}, "other")
    assert quietly("run", "other.yaml") == 0
    write_recipe("other.yaml", {"first": {"text": "a"}, "second": {"text": "x", "needs": ["first"]}}, "other")
    assert quietly("run", "other.yaml") == 0
    assert quietly("run", "recipe.yaml", "--until", "second") == 0
    write_recipe("new.yaml", {"alone": {"text": "n"}}, "new")
    return folder


def test_what_only_shows_works_on_a_read_only_file_system(half_made: Path) -> None:
    expected = {" ".join(arguments): command(arguments)[0] for arguments in SHOWING}
    before = below(half_made / "runs")

    def show() -> dict[str, tuple[int, str]]:
        read_only(half_made / "runs")
        with pytest.raises(OSError, match="Read-only"):
            (half_made / "runs" / "x").touch()
        return {" ".join(arguments): command(arguments) for arguments in SHOWING}

    told = apart(show)
    assert {arguments: code for arguments, (code, _) in told.items()} == expected == dict.fromkeys(expected, 0)
    assert not any("Traceback" in text or "fault in tokenferry" in text for _, text in told.values())
    assert "third" in told["status grown"][1]
    assert below(half_made / "runs") == before


def test_what_would_write_says_that_it_cannot(half_made: Path) -> None:
    def change() -> dict[str, tuple[int, str]]:
        read_only(half_made / "runs")
        return {" ".join(arguments): command(arguments) for arguments in CHANGING}

    before = below(half_made / "runs")
    for arguments, (code, text) in apart(change).items():
        assert code == 1, arguments
        assert re.search(r"Read-only file system \(\S*runs/", text), arguments
        assert "keep results elsewhere (--runs DIR)" in text, arguments
        assert "Traceback" not in text, arguments
        assert "fault in tokenferry" not in text, arguments
    assert below(half_made / "runs") == before
    assert quietly("run", "recipe.yaml") == 0, "and goes on where it may write"


def test_damage_on_a_read_only_file_system_is_named_though_it_cannot_be_noted(half_made: Path) -> None:
    damaged = (half_made / "runs/grown/stages/second/out/text.txt").resolve()
    damaged.write_text("B(a())")

    def verify() -> tuple[int, str]:
        read_only(half_made / "runs")
        return command(["verify", "grown"])

    code, text = apart(verify)
    assert code == 1
    assert "text.txt: its content changed" in text
    assert "not noted: " in text
    assert "Read-only file system" in text
    assert "resume grown --force second" in text


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_directory_without_rights_is_said(half_made: Path) -> None:
    runs = half_made / "runs"
    runs.joinpath("grown").chmod(stat.S_IRUSR | stat.S_IXUSR)
    code, text = command(["run", "recipe.yaml"])
    assert code == 1
    assert "Permission denied" in text


def texts_of_results() -> dict[str, str]:
    """What counts as made."""
    plan = make_plan(load_recipe(Path("recipe.yaml")), Path("runs"))
    store = Store(Path("runs/store"))
    made = [stage for stage in plan.stages if store.entry(stage.uses, stage.key).done() is not None]
    return {stage.name: (store.entry(stage.uses, stage.key).out / "text.txt").read_text() for stage in made}


def filled(room: int) -> list[tuple[int, str, dict[str, str]]]:
    """A run where there is room for so many pages, and a second one once there is more: how each ended, and what then
    counts as made."""
    small(Path("runs"), 128 * PAGE)
    ballast = Path("runs/ballast")
    ballast.write_bytes(bytes((os.statvfs("runs").f_bavail - room) * PAGE))
    ended = []
    for _ in range(2):
        code, text = command(["run", "recipe.yaml"])
        ended.append((code, text, texts_of_results()))
        os.truncate(ballast, 0)
    return ended


@pytest.mark.parametrize("stride", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_a_disk_may_fill_up_at_any_write(folder: Path, stride: int) -> None:
    stopped = 0
    for room in range(1, 60, stride):
        (code, text, made), (code_then, text_then, made_then) = apart(lambda room=room: filled(room))
        assert "Traceback" not in text, (room, text)
        assert "fault in tokenferry" not in text, (room, text)
        if code != 0:
            stopped += 1
            assert code == 1
            assert "No space left on device" in text or "is full" in text, (room, text)
        assert made.items() <= TEXTS.items(), "nothing half-written counts"
        assert (code_then, made_then) == (0, TEXTS), (room, text_then)
        assert not any(f"{name}: attempt" in text_then for name in made), "what was made is not made again"
    assert 0 < stopped < len(range(1, 60, stride))


def tracked_on_a_full_disk(room: int) -> list[tuple[int, str, dict[str, str]]]:
    """As ``filled``, but it is MLflow's store that has no room."""
    small(Path("tracking"), 4 << 20)
    ballast = Path("tracking/ballast")
    ballast.write_bytes(bytes((os.statvfs("tracking").f_bavail - room) * PAGE))
    ended = []
    for arguments in (["run", "recipe.yaml"], ["run", "recipe.yaml", "--force-all"]):
        code, text = command(arguments)
        ended.append((code, text, texts_of_results()))
        os.truncate(ballast, 0)
    return ended


@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 20, 250])
def test_a_tracking_store_without_room_ends_no_run(folder: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    (folder / "tracking").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/tracking/mlflow.db")
    (code, text, made), (code_then, text_then, _) = apart(lambda: tracked_on_a_full_disk(room))
    assert (code, made) == (0, TEXTS), text
    assert ("the run goes on without it" in text) == (room < 200), "a database takes about 200 pages"
    assert "Traceback" not in text
    assert code_then == 0, text_then
