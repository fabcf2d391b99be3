"""``pipeline track sync``: what is sent afterwards is what the live tracker would have sent, once."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import toys
from mlflow.tracking import MlflowClient

from pipeline.cli import main
from pipeline.executing.locks import FileLock

RECIPE = """\
name: counting
experiment: toys
stages:
  words: {uses: source-documents, documents: [{path: ./a.txt}]}
  count: {uses: count, steps: 6}
  lengths: {uses: evaluation, needs: [count]}
"""
NOTHING = {"runs": 0, "parameters": 0, "points": 0, "numbers": 0, "files": 0}


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Creating the tables takes seconds, so it is done once and copied."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: Path) -> Path:
    """The current directory, with a recipe of toy stages and two empty databases, ``live`` being the one in use."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "a.txt").write_text("some words")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(toys.__file__).parent))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri(tmp_path, "live"))
    for name in ("live", "later"):
        (tmp_path / name).mkdir()
        shutil.copy(empty_database, tmp_path / name / "mlflow.db")
    return tmp_path


def uri(folder: Path, name: str) -> str:
    return f"sqlite:///{folder}/{name}/mlflow.db"


def sync(folder: Path, name: str, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    """Send to one of the databases; how much it lacked."""
    capsys.readouterr()
    assert main(["track", "sync", "counting", "--tracking-uri", uri(folder, name), "--json", *options]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["schema_version"] == 1
    (run,) = answer["runs"]
    return run


def contents(folder: Path, name: str) -> dict[tuple[str, ...], dict[str, Any]]:
    """All that a person can see in a database: by the names of a run, of its parent, and its attempt."""
    client = MlflowClient(uri(folder, name))
    experiments = {found.experiment_id: found.name for found in client.search_experiments()}
    runs = client.search_runs(list(experiments))
    names = {run.info.run_id: run.info.run_name for run in runs}
    seen = {}
    for run in runs:
        tags = {name: value for name, value in run.data.tags.items() if not name.startswith("mlflow.")}
        parent = names.get(run.data.tags.get("mlflow.parentRunId"), "")
        seen[experiments[run.info.experiment_id], parent, run.info.run_name, tags.get("attempt", "")] = {
            "tags": tags,
            "params": run.data.params,
            "status": run.info.status,
            "curves": {
                metric: [(point.step, point.value, point.timestamp) for point in history]
                for metric in run.data.metrics
                if (history := client.get_metric_history(run.info.run_id, metric))
            },
            "files": [file.path for top in client.list_artifacts(run.info.run_id)
                      for file in client.list_artifacts(run.info.run_id, top.path)],
        }  # fmt: skip
    assert len(seen) == len(runs), "two runs of one name"
    return seen


def test_a_lost_database_is_made_again_as_it_was(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "recipe.yaml"]) == 0
    live = contents(folder, "live")
    assert live["toys", "counting", "count", "1"]["curves"]["total"][-1][:2] == (6, 21)
    assert live["toys", "", "counting", ""]["files"], "reports are files of the parent"
    (folder / "a.txt").unlink()  # what the recipe refers to need not be on the machine that sends
    shutil.move(folder / "runs", folder / "copied")
    sent = sync(folder, "later", capsys, "--runs", "copied")["sent"]
    parameters = sum(len(run["params"]) for run in live.values())
    assert sent == {"runs": 4, "parameters": parameters, "points": 6, "numbers": 2, "files": 3}
    assert contents(folder, "later") == live
    assert sync(folder, "later", capsys, "--runs", "copied")["sent"] == NOTHING
    assert sync(folder, "live", capsys, "--runs", "copied")["sent"] == NOTHING
    assert contents(folder, "later") == contents(folder, "live") == live


def test_what_was_done_offline_goes_on_in_the_same_runs(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(toys.TextArtifact, "required", ("text.txt", "missing.txt"))
        assert main(["run", "recipe.yaml"]) == 1
    assert contents(folder, "live")["toys", "counting", "count", "1"]["status"] == "FAILED"
    (entry,) = (folder / "runs" / "store" / "count").iterdir()
    for lost in (5, 6):  # as if the newest checkpoint had been at step 4
        shutil.rmtree(entry / "work" / "ckpt" / f"step-{lost}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nosuch://server")
    assert main(["run", "recipe.yaml"]) == 0
    assert "Once it works again: " in capsys.readouterr().err
    assert sync(folder, "live", capsys)["sent"]["points"] == 0, "those of the first attempt are as good"
    assert sync(folder, "live", capsys)["sent"] == NOTHING
    assert sync(folder, "later", capsys)["sent"]["points"] == 6
    live, later = contents(folder, "live"), contents(folder, "later")
    for seen in (live, later):
        child = seen["toys", "counting", "count", "2"]
        assert [step for step, _, _ in child["curves"]["total"]] == [1, 2, 3, 4, 5, 6]
        assert (child["status"], seen["toys", "", "counting", ""]["status"]) == ("FINISHED", "FINISHED")
    assert live.keys() == later.keys()


@pytest.mark.slow
def test_attempts_of_another_run_and_of_earlier_options_are_not_its_own(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["run", "recipe.yaml", "--set", "name=other", "--until", "count"]) == 0
    assert main(["run", "recipe.yaml"]) == 0
    assert main(["run", "recipe.yaml", "--set", "words.documents[0].weight=2", "--force", "lengths"]) == 0
    live = contents(folder, "live")
    assert sync(folder, "live", capsys)["sent"] == NOTHING, "lengths, of earlier options, has its run there"
    assert contents(folder, "live") == live
    sync(folder, "later", capsys)
    later = contents(folder, "later")
    assert {name for _, _, name, _ in later} == {"counting", "words", "lengths"}, "count was made by `other`"
    assert later["toys", "", "counting", ""]["tags"]["stage.count"] == "cached"
    assert later["toys", "", "counting", ""]["params"]["words.documents.0.weight"] == "2.0"


@pytest.mark.slow
def test_a_tracker_that_died_and_lost_events_are_made_good(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "recipe.yaml"]) == 0
    live = contents(folder, "live")
    client = MlflowClient(uri(folder, "live"))
    for run in client.search_runs([client.get_experiment_by_name("toys").experiment_id]):
        client.update_run(run.info.run_id, status="RUNNING")
    assert sync(folder, "live", capsys)["sent"] == NOTHING
    assert contents(folder, "live") == live
    (folder / "runs" / "counting" / "events.jsonl").unlink()
    (folder / "runs" / "counting" / "results.json").unlink()
    (attempt,) = (folder / "runs" / "store" / "count").glob("*/attempts/1")
    with (attempt / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "tot\n\0\0\0\n')
    answer = sync(folder, "later", capsys)
    assert contents(folder, "later") == live
    assert answer["notes"] == [f"count: 2 lines of {attempt.relative_to(folder) / 'metrics.jsonl'} are damaged"]


def test_a_run_that_was_stopped_in_its_middle(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "recipe.yaml", "--until", "count"]) == 0
    (entry,) = (folder / "runs" / "store" / "count").iterdir()
    (entry / "DONE.json").unlink()
    status = json.loads((entry / "attempts/1/status.json").read_text())
    (entry / "attempts/1/status.json").write_text(json.dumps(status | {"state": "running"}))  # its runner was killed
    assert sync(folder, "later", capsys)["sent"]["runs"] == 2
    later = contents(folder, "later")
    assert later["toys", "counting", "count", "1"]["status"] == "KILLED"
    assert "result_id" not in later["toys", "counting", "count", "1"]["tags"]
    assert later["toys", "", "counting", ""]["status"] == "KILLED"
    with FileLock(folder / "runs" / "counting" / "run.lock").acquire():
        assert main(["track", "sync", "counting"]) == 4
        broken = folder / "runs" / "a-broken-one"
        broken.mkdir()
        (broken / "recipe.resolved.yaml").write_text("name: [")
        capsys.readouterr()
        assert main(["track", "sync"]) == 2, "each is tried; the first failure counts"
        message = capsys.readouterr().err
        assert "a-broken-one: runs/a-broken-one/recipe.resolved.yaml" in message
        assert "counting: run" in message or "counting: runs/counting/run.lock is held by" in message


def test_for_people(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["track", "sync"]) == 0
    assert capsys.readouterr().out == "there are no runs in runs\n"
    assert main(["run", "recipe.yaml", "--until", "count"]) == 0
    capsys.readouterr()
    assert main(["track", "sync"]) == 0
    assert capsys.readouterr().out == "counting: MLflow has all of it\n"
    assert main(["track", "sync", "--tracking-uri", uri(folder, "later")]) == 0
    assert re.fullmatch(r"counting: sent 2 runs, \d+ parameters, 6 points\n", capsys.readouterr().out)
    assert main(["track", "sync", "cuonting"]) == 2
    assert "is called 'cuonting' (did you mean 'counting'?)" in capsys.readouterr().err
    (folder / "text").write_text("not a database, but a text that is long enough" * 100)
    assert main(["track", "sync", "--tracking-uri", f"sqlite:///{folder}/text"]) == 1
    message = capsys.readouterr().err
    assert "did not take run 'counting'" in message
    assert "the same command sends the rest" in message
