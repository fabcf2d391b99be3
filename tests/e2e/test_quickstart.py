"""The shipped quickstart, through the command line: run, cached, re-keyed, killed and resumed, tracked."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import mlflow
from e2e_helpers import quickstart_until_distill, stages_that_ran
from mlflow.entities import ViewType
from safetensors.torch import load_file
from torch import equal

ROWS = ("teacher", "init", "control", "distill", "stochastok")
DOMAINS = ("speeches", "novel", "source", "french", "chat")


def _out(directory: Path, stage: str) -> Path:
    return directory / "runs" / "quickstart" / "stages" / stage / "out"


def test_it_ends_with_a_table_and_says_where_everything_is(finished):
    place, output = finished
    table = output[output.index("Bits per byte on held-out text") :]
    for word in (*ROWS, *DOMAINS, "trained", "untrained", "gap", "top-1", "nats a chunk", "tokens"):
        assert word in table, word
    assert "pipeline ui" in output
    report = json.loads((_out(place.directory, "evaluate") / "report.json").read_text())
    assert list(report["preflight"]) == list(ROWS)
    retention, generation = report["sections"]
    assert list(retention["tables"][0]["rows"]) == list(ROWS)
    assert list(retention["tables"][0]["differences"]) == ["teacher", "initial", "control"]
    assert list(generation["samples"][0]["continuations"]) == list(ROWS)


def test_every_model_directory_is_an_ordinary_one(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place, _ = finished
    for stage in ROWS[1:]:
        model = AutoModelForCausalLM.from_pretrained(_out(place.directory, stage))
        assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(_out(place.directory, stage)))


def test_mlflow_has_one_parent_and_one_child_a_stage(finished):
    place, _ = finished
    mlflow.set_tracking_uri(f"sqlite:///{place.directory / 'mlruns' / 'mlflow.db'}")
    client = mlflow.MlflowClient()
    (experiment,) = [e for e in client.search_experiments(ViewType.ALL) if e.name == "quickstart"]
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    children = {run.info.run_name: run for run in runs if run is not parents[0]}
    assert {"align", "init", "distill", "control", "stochastok", "evaluate"} <= set(children)
    distill = children["distill"]
    assert {"stage_key", "result_id", "attempt", "git_commit"} <= set(distill.data.tags)
    curve = client.get_metric_history(distill.info.run_id, "loss")
    assert [point.step for point in curve] == [1, 2, 3, 4, 5, 6]
    assert "evaluate.retention.distill.bits_per_byte.french" in parents[0].data.metrics
    assert {"table.txt", "report.json", "report.html"} == {
        Path(file.path).name for file in client.list_artifacts(parents[0].info.run_id, "evaluate")
    }


def test_a_second_run_is_all_cached_and_says_so(finished):
    place, _ = finished
    code, output = place.run("run")
    assert code == 0
    assert "up to date" in output
    assert stages_that_ran(output) == set()


def test_a_changed_parameter_reruns_its_stage_and_what_follows_and_says_why(own_finished):
    code, output = own_finished.run("run", **{"stages__distill__losses[0]__alm__gamma": 0.2})
    assert code == 0, output
    assert stages_that_ran(output) == {"distill", "stochastok", "evaluate"}
    assert "gamma 0.1 → 0.2" in output
    assert "upstream distill re-runs" in output


def _kill_everything(process, directory: Path) -> None:
    """SIGKILL the runner and then the stage it started, so that neither can save anything."""
    running = [json.loads(path.read_text()) for path in directory.glob("runs/store/*/*/attempts/*/status.json")]
    os.kill(process.pid, signal.SIGKILL)
    for status in running:
        if status["state"] == "running":
            os.kill(status["pid"], signal.SIGKILL)
    process.communicate()


def _checkpoints(directory: Path) -> list[Path]:
    return [marker.parent for marker in directory.glob("runs/store/distill/**/COMPLETE.json")]


def test_killed_in_the_middle_of_distil_it_resumes_to_the_same_parameters(own_finished, prepared):
    """Also when the newest checkpoint is damaged: then from the one before it, and it says so."""
    workplace, place = prepared, own_finished
    for each in (workplace, place):
        each.keep("models.", "stages.distill.")
    recipe = quickstart_until_distill(workplace.directory)
    changes = {"stages__distill__steps": 40}
    process = workplace.start(workplace.arguments("run", recipe, **changes))
    deadline = time.monotonic() + 300
    while len(_checkpoints(workplace.directory)) < 2:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    _kill_everything(process, workplace.directory)
    assert not list(workplace.directory.glob("runs/quickstart/stages/distill"))
    newest = max(_checkpoints(workplace.directory), key=lambda path: int(path.name.removeprefix("step-")))
    (state,) = newest.glob("*.safetensors")
    state.write_bytes(b"damaged")

    code, output = workplace.run("run", recipe, **changes)
    assert code == 0, output
    assert f"passing over checkpoint {newest.name}" in output
    assert "going on from step" in output
    code, output = place.run("run", recipe, **changes)
    assert code == 0, output
    resumed, straight = (
        load_file(_out(where.directory, "distill") / "model.safetensors") for where in (workplace, place)
    )
    assert resumed.keys() == straight.keys()
    for name, tensor in straight.items():
        assert equal(tensor, resumed[name]), name
