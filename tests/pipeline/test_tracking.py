"""What a run leaves in MLflow, read back from a real database."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import toys
from mlflow.tracking import MlflowClient
from toys import plan_of, planned

from pipeline.errors import StageFailed
from pipeline.plan import Plan
from pipeline.runner import execute
from pipeline.store import Store
from pipeline.tracking.place import DEFAULT_URI, tracking_uri, ui_command
from pipeline.tracking.session import TrackedRun
from pipeline.tracking.tracker import LiveSession, Tracker


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Creating the tables takes seconds, so it is done once and copied."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: Path) -> Store:
    monkeypatch.setenv("PYTHONPATH", str(Path(toys.__file__).parent))
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return Store(tmp_path / "store")


def database(plan: Plan) -> str:
    """Absolute, because MLflow keeps one connection per URI for the whole test session."""
    return f"sqlite:///{plan.runs}/mlflow.db"


@pytest.fixture
def client(store: Store) -> MlflowClient:
    return MlflowClient(f"sqlite:///{store.root.parent}/mlflow.db")


def run(plan: Plan, uri: str | None = None) -> tuple[str | None, list[str]]:
    """Execute and track; returns the parent run's id and the warnings."""
    warnings: list[str] = []
    uri = uri or database(plan)
    result = execute(plan, tracker=Tracker(plan, uri=uri, warn=warnings.append), out=lambda line: None)
    return result.mlflow_run_id, warnings


def children(client: MlflowClient, parent: str) -> dict[str, list]:
    experiment = client.get_run(parent).info.experiment_id
    found: dict[str, list] = {}
    for child in client.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent}'"):
        found.setdefault(child.data.tags["stage"], []).append(child)
    return found


def test_curves_parameters_and_final_numbers_arrive(store: Store, client: MlflowClient, tmp_path: Path) -> None:
    say = planned(store, "say", "say", {"text": "hello"})
    count = planned(store, "sources/count", "count", {"steps": 5})
    table = planned(store, "table", "table", {}, [say])
    parent_id, warnings = run(plan_of(tmp_path, say, count, table))
    assert warnings == []
    parent = client.get_run(parent_id)
    assert client.get_experiment(parent.info.experiment_id).name == "toy"
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics == {"say.length": 5, "table.length": 5}
    assert parent.data.params == {"say.text": "hello"}, "of the recipe's own stages, to compare runs by"
    assert sorted(file.path for file in client.list_artifacts(parent_id, "table")) == [
        "table/report.html",
        "table/report.json",
        "table/table.txt",
    ]
    stages = children(client, parent_id)
    assert {name: len(runs) for name, runs in stages.items()} == {"say": 1, "sources/count": 1, "table": 1}
    (child,) = stages["sources/count"]
    points = client.get_metric_history(child.info.run_id, "total")
    assert [(point.step, point.value) for point in points] == [(1, 1), (2, 3), (3, 6), (4, 10), (5, 15)]
    assert child.data.params == {"steps": "5"}
    assert child.data.tags["stage_key"] == count.key
    assert child.data.tags["attempt"] == "1"
    assert child.data.tags["result_id"] == store.entry("count", count.key).done().result_id
    assert stages["say"][0].data.metrics == {"length": 5}
    assert (tmp_path / "artifacts" / "toy" / parent_id).is_dir()


def test_parameters_are_tracked_without_secrets(
    store: Store, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "open-sesame-42")
    say = planned(store, "say", "say", {"text": "say open-sesame-42 or hf_0123456789abcdefghij"})
    parent, warnings = run(plan_of(tmp_path, say))
    assert warnings == []
    (child,) = children(client, parent)["say"]
    assert child.data.params == {"text": "say *** or ***"}
    assert client.get_run(parent).data.params == {"say.text": "say *** or ***"}


def test_a_resumed_stage_continues_its_curves_in_the_same_runs(
    store: Store, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"steps": 6}
    stage = planned(store, "count", "count", config)
    monkeypatch.setattr(toys.TextArtifact, "required", ("text.txt", "missing.txt"))
    with pytest.raises(StageFailed):
        run(plan_of(tmp_path, stage))
    monkeypatch.undo()
    monkeypatch.setenv("PYTHONPATH", str(Path(toys.__file__).parent))
    entry = store.entry("count", stage.key)
    for lost in (5, 6):  # as if the newest checkpoint had been at step 4
        shutil.rmtree(entry.work / "ckpt" / f"step-{lost}")
    parent_id, warnings = run(plan_of(tmp_path, stage))
    assert warnings == []
    (child,) = children(client, parent_id)["count"]
    assert [point.step for point in client.get_metric_history(child.info.run_id, "total")] == [1, 2, 3, 4, 5, 6]
    assert child.info.status == "FINISHED"
    assert child.data.tags["attempt"] == "2"
    assert len(client.search_runs([child.info.experiment_id], "attributes.status = 'FINISHED'")) == 2


def test_cached_stages_put_their_numbers_on_a_new_parent(store: Store, client: MlflowClient, tmp_path: Path) -> None:
    first, _ = run(plan_of(tmp_path, planned(store, "say", "say", {"text": "hello"})))
    say = planned(store, "say", "say", {"text": "hello"})
    second, warnings = run(plan_of(tmp_path, say, planned(store, "table", "table", {}, [say])))
    assert warnings == []
    assert first != second
    parent = client.get_run(second)
    assert parent.data.metrics == {"say.length": 5, "table.length": 5}
    assert parent.data.params == {"say.text": "hello"}, "of the recipe's own stages, to compare runs by"
    assert (parent.data.tags["stage.say"], parent.data.tags["stage.table"]) == ("cached", "made")
    assert set(children(client, second)) == {"table"}


def test_a_forced_stage_gets_a_run_of_its_own(store: Store, client: MlflowClient, tmp_path: Path) -> None:
    run(plan_of(tmp_path, planned(store, "say", "say", {"text": "hello"})))
    parent, warnings = run(plan_of(tmp_path, planned(store, "say", "say", {"text": "hello"}, forced=True)))
    assert warnings == []
    assert [child.data.tags["attempt"] for child in children(client, parent)["say"]] == ["2", "1"]


def test_a_failed_run_is_marked_as_failed(store: Store, client: MlflowClient, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, planned(store, "bad", "misbehave", {"how": "stage error"}))
    with pytest.raises(StageFailed):
        run(plan)
    runs = client.search_runs([client.get_experiment_by_name("toy").experiment_id])
    assert [found.info.status for found in runs] == ["FAILED", "FAILED"]


def test_more_points_and_parameters_than_one_request_takes(store: Store, client: MlflowClient, tmp_path: Path) -> None:
    stage = planned(store, "count", "count", {"steps": 1})
    plan = plan_of(tmp_path, stage)
    parameters = {"list": list(range(250)), "long": "x" * 9000, "a b[c]": {}}
    many = dataclasses.replace(stage, ingredients={"params": parameters})
    session = LiveSession(TrackedRun.of(plan), database(plan))
    session.open_child(many, 1)
    session.log_curves(many, [{"step": step, "time": 1.0, "a": step, "b[0]": -step} for step in range(1, 1201)])
    (child,) = children(client, session.parent)["count"]
    assert len(child.data.params) == 252
    assert child.data.params["list.249"] == "249"
    assert len(client.get_metric_history(child.info.run_id, "a")) == 1200
    assert len(client.get_metric_history(child.info.run_id, "b_0_")) == 1200


def test_a_broken_tracker_warns_once_and_the_run_succeeds(store: Store, tmp_path: Path) -> None:
    (tmp_path / "not-a-database").write_text("not a database, but a text that is long enough" * 100)
    plan = plan_of(tmp_path, *(planned(store, f"say{n}", "say", {"text": str(n)}) for n in range(3)))
    run_id, warnings = run(plan, f"sqlite:///{tmp_path}/not-a-database")
    assert run_id is None
    assert len(warnings) == 1
    assert "the run goes on without it" in warnings[0]
    assert all(store.entry("say", stage.key).done() for stage in plan.stages)


def test_a_run_with_nothing_to_do_does_not_import_mlflow(store: Store, tmp_path: Path) -> None:
    execute(plan_of(tmp_path, planned(store, "say", "say", {"text": "hello"})), out=lambda line: None)
    script = """
import sys
from pathlib import Path
from toys import plan_of, planned
from pipeline.runner import execute
from pipeline.store import Store
from pipeline.tracking.tracker import Tracker
from pipeline.tracking.place import DEFAULT_URI
runs = Path(sys.argv[1])
plan = plan_of(runs, planned(Store(runs / "store"), "say", "say", {"text": "hello"}))
result = execute(plan, tracker=Tracker(plan, uri=DEFAULT_URI, warn=print))
assert result.stages[0].cached
heavy = {"mlflow", "torch", "transformers"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)


def test_where_the_runs_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri() == "sqlite:///mlruns/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert tracking_uri() == "http://tracking:5000"
    assert ui_command("http://tracking:5000") == "open http://tracking:5000"
    assert ui_command(DEFAULT_URI).endswith("pipeline ui")
