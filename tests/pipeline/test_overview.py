"""All runs at a glance, and that the glance agrees with what their plans say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import forked_stages
import pytest
import yaml
from forked_stages import recipe_of

from pipeline.cli import main
from pipeline.errors import Interrupted, StageFailed
from pipeline.executing.locks import FileLock
from pipeline.planner import make_plan
from pipeline.reading.loading import load_recipe
from pipeline.request import Request
from pipeline.runner import execute
from pipeline.views.overview import RunOverview, overview

SHARED = {"text": "a"}
RUNS = {
    "broken": {"shared": SHARED, "own": {"text": "b", "needs": ["shared"], "fate": "fail"}},
    "halted": {"shared": SHARED, "own": {"text": "c", "needs": ["shared"], "fate": "stop"}},
    "ready": {"shared": SHARED, "own": {"text": "d", "needs": ["shared"]}},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of three runs that share a stage and ended in three ways, and one of which a part was made."""
    folder = tmp_path_factory.mktemp("runs")
    with forked_stages.forked_stages():
        for name, stages in (RUNS | {"partial": {**RUNS["ready"], "own": {"text": "e", "needs": ["shared"]}}}).items():
            file = folder / f"{name}.yaml"
            file.write_text(yaml.safe_dump(recipe_of(stages, name)))
            request = Request(until=("shared",)) if name == "partial" else Request()
            plan = make_plan(load_recipe(file), folder / "runs", request)
            try:
                execute(plan, out=lambda line: None)
            except (StageFailed, Interrupted):
                assert name in ("broken", "halted")
        yield folder / "runs"


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "runs", symlinks=True)


def seen(runs: Path) -> list[tuple[str, str, int, int, str]]:
    return [(run.name, run.state, run.made, run.stages, run.detail) for run in overview(runs)]


EXPECTED = [
    ("broken", "failed", 1, 2, "own"),
    ("halted", "interrupted", 1, 2, "own"),
    ("partial", "unfinished", 1, 2, ""),
    ("ready", "finished", 2, 2, ""),
]


def test_each_run_is_as_far_as_it_is(runs: Path) -> None:
    assert seen(runs) == EXPECTED
    assert all(run.changed is not None for run in overview(runs))


def test_without_the_list_of_results_the_kept_recipe_tells_the_same(runs: Path) -> None:
    for number, path in enumerate(sorted(runs.glob("*/results.json"))):
        path.unlink() if number % 2 else path.write_text('{"own": 3}')
    assert seen(runs) == EXPECTED


def test_a_run_at_work_and_one_that_cannot_be_read_do_not_hide_the_others(runs: Path) -> None:
    (runs / "halted" / "results.json").unlink()
    (runs / "halted" / "recipe.resolved.yaml").write_text("name: [")
    with FileLock(runs / "ready" / "run.lock").acquire():
        broken, halted, partial, ready = overview(runs)
    assert (broken.state, partial.state, ready.state) == ("failed", "unfinished", "running")
    assert isinstance(halted, RunOverview)
    assert halted.state == "unknown"
    assert "not valid YAML" in halted.detail


def test_a_result_that_is_deleted_is_missed(runs: Path) -> None:
    (done,) = (runs / "store" / "seed").glob("*/DONE.json")
    done.unlink()
    assert [made for _, _, made, _, _ in seen(runs)] == [0, 0, 0, 1]


def test_status_shows_runs_a_line_each_and_one_run_by_its_stages(runs: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["status", "--runs", str(runs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in lines[:4]] == [
        ["broken", "failed", "1", "of"],
        ["halted", "interrupted", "1", "of"],
        ["partial", "unfinished", "1", "of"],
        ["ready", "finished", "2", "of"],
    ]
    assert lines[0].endswith("own")
    assert main(["status", "--json", "--runs", str(runs)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [(run["name"], run["state"], run["made"], run["stages"]) for run in report["runs"]] == [
        row[:4] for row in EXPECTED
    ]
    assert main(["status", "ready", "--runs", str(runs)]) == 0
    assert "shared" in capsys.readouterr().out
    for name in ("broken", "halted", "partial"):
        shutil.rmtree(runs / name)
    assert main(["status", "--runs", str(runs)]) == 0
    assert capsys.readouterr().out.startswith("ready:\n"), "one run alone is shown by its stages"
