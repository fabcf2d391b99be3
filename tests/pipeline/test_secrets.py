"""Secrets do not get into what a run keeps: recipes, logs, records of launches, MLflow, messages."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import toys
import yaml
from pydantic import BaseModel

from pipeline.cli import main
from pipeline.executing.locks import FileLock
from pipeline.launch import recorded_environment
from pipeline.reading.loading import load_recipe
from pipeline.recipe import Resources
from pipeline.tracking.place import ui_command
from stages import STAGES, load_stage
from stages.masking import VOCABULARY_NAMES, is_secret_name

HUB = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz012345"
VARIABLE = "open-sesame-42"

RECIPE = """\
name: keeping
stages:
  say: {uses: say, text: "hello"}
resources:
  say:
    deepspeed: {comet: {enabled: true, api_key: comet-key-1}, train_micro_batch_size_per_gpu: 4}
"""

LEAKING_STAGE = """
import logging, os, sys
from stages.artifacts import Artifact
from stages.stage import StageConfig, StageError

class Leak:
    VERSION = 1
    inputs = {}
    output = Artifact
    class Config(StageConfig):
        pass
    def run(self, ctx):
        token = os.environ["HF_TOKEN"]
        print("print", token)
        ctx.progress(f"progress {token}")
        logging.warning("logging %s", token)
        try:
            raise ValueError(f"traceback {token}")
        except ValueError:
            logging.exception("caught")
        raise StageError(f"https://me:sesame@host/x refused {token}")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a recipe that holds a key for DeepSpeed's reports, and no server that tracks."""
    assert toys.Say
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{Path(toys.__file__).parent}{os.pathsep}{tmp_path}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nosuch://me:sesame@db/runs")
    return tmp_path


def files_with(directory: Path, secret: str) -> list[str]:
    """Every file below ``directory`` that holds ``secret``."""
    found = (path for path in directory.rglob("*") if path.is_file() and secret.encode() in path.read_bytes())
    return sorted(path.relative_to(directory).as_posix() for path in found)


def test_the_copies_of_a_recipe_that_a_run_keeps_are_masked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "recipe.yaml"]) == 0
    kept = folder / "runs" / "keeping"
    resolved = yaml.safe_load((kept / "recipe.resolved.yaml").read_text())
    assert resolved["resources"]["say"]["deepspeed"]["comet"] == {"enabled": True, "api_key": "***"}
    assert "api_key: ***}" in (kept / "recipe.yaml").read_text()
    # What the stage's process reads must have it, and is for its user alone.
    (job,) = folder.glob("runs/store/say/*/attempts/1/JOB.json")
    assert files_with(folder, "comet-key-1") == ["recipe.yaml", job.relative_to(folder).as_posix()]
    assert job.stat().st_mode & 0o077 == 0
    warning = capsys.readouterr().err
    assert "MLflow tracking at nosuch://db/runs stopped" in warning
    assert "sesame" not in warning
    assert main(["show", "recipe.yaml"]) == 0
    assert main(["show", "recipe.yaml", "--sources"]) == 0
    assert "comet-key-1" not in capsys.readouterr().out
    assert main(["plan", "recipe.yaml", "--check"]) == 0
    # The kept recipe tells what there is, but it cannot start a process that needs what was masked.
    assert main(["status", "keeping"]) == 0
    assert main(["resume", "keeping"]) == 2
    assert "(resources.say.deepspeed.comet.api_key)" in capsys.readouterr().err


@pytest.mark.parametrize("value", [HUB, f"prefix {HUB}", "https://me:sesame@host/data.jsonl"])
def test_a_token_among_the_options_is_refused_without_being_repeated(
    folder: Path, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    (folder / "recipe.yaml").write_text(RECIPE.replace("hello", value))
    assert main(["run", "recipe.yaml"]) == 2
    message = capsys.readouterr().err
    assert "recipe.yaml:3: stages.say.text: holds what looks like an access token" in message
    assert HUB not in message
    assert "sesame" not in message
    assert not (folder / "runs").exists()


def test_a_variable_that_a_recipe_refers_to_is_masked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMET_API_KEY", VARIABLE)
    (folder / "recipe.yaml").write_text(RECIPE.replace("comet-key-1", "'${oc.env:COMET_API_KEY}'"))
    recipe = load_recipe(folder / "recipe.yaml")
    assert VARIABLE not in json.dumps(recipe.resolved)
    assert recipe.stages["say"].resources.deepspeed["comet"]["api_key"] == VARIABLE


def test_names_in_the_options_of_a_stage_are_words_of_a_vocabulary(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(RECIPE.replace('"hello"', '"token: hello"'))
    assert load_recipe(folder / "recipe.yaml").resolved["stages"]["say"]["text"] == "token: hello"


def test_whatever_a_stage_prints_is_masked_in_its_log(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "leaking.py").write_text(LEAKING_STAGE)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setitem(STAGES, "leak", "leaking:Leak")
    monkeypatch.setenv("HF_TOKEN", VARIABLE)
    (folder / "recipe.yaml").write_text("name: leaking\nstages:\n  leak: {uses: leak}\n")
    assert main(["run", "recipe.yaml"]) == 1
    shown = capsys.readouterr()
    assert "leak: progress ***" in shown.out
    assert "https://***@host/x refused ***" in shown.err
    (log,) = folder.glob("runs/store/leak/*/attempts/1/log.txt")
    text = log.read_text()
    assert [
        word for word in ("print ***", "progress| progress ***", "logging ***", "traceback ***") if word not in text
    ] == []
    assert VARIABLE not in shown.out + shown.err
    assert files_with(folder / "runs", VARIABLE) == files_with(folder / "runs", "sesame") == []


def test_what_a_launch_inherits_is_recorded_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SLURM_JWT": "abcdefgh1",
        "NCCL_AUTH_TOKEN": VARIABLE,
        "TORCH_STORE": f"redis://u:{VARIABLE}@h:1",
        "NCCL_DEBUG": "INFO",
    }.items():
        monkeypatch.setenv(name, value)
    recorded = recorded_environment()
    assert recorded["NCCL_DEBUG"] == "INFO"
    assert recorded["TORCH_STORE"] == "redis://***@h:1"
    assert not {"SLURM_JWT", "NCCL_AUTH_TOKEN"} & set(recorded)


def test_a_lock_says_who_holds_it_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pipeline", "run", "r.yaml", "--set", f"resources.a.api_key={VARIABLE}"])
    with FileLock(tmp_path / "run.lock").acquire():
        text = (tmp_path / "run.lock").read_text()
    assert "--set resources.a.api_key=***" in text


def test_addresses_are_shown_without_passwords(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ui_command("http://me:sesame@tracking:5000") == "open http://tracking:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mysql://me:sesame@db/runs")
    assert main(["ui", "--print"]) == 0
    command = capsys.readouterr().out
    assert 'MLFLOW_BACKEND_STORE_URI="$MLFLOW_TRACKING_URI"' in command
    assert "sesame" not in command
    assert "--host 127.0.0.1 " in command


def fields(model: type[BaseModel], seen: set[type]) -> Iterator[tuple[str, str]]:
    """Every declared option of a model and of those inside it, with the model's name."""
    if model in seen:
        return
    seen.add(model)
    for name, field in model.model_fields.items():
        yield model.__name__, name
        for inner in _models(field.annotation):
            yield from fields(inner, seen)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def test_no_option_is_for_a_secret() -> None:
    """Options become part of keys and results; so none of them may be named like one, but for words of a vocabulary."""
    seen: set[type] = set()
    models = [*(load_stage(uses).Config for uses in STAGES), Resources]
    found = [(model, name) for each in models for model, name in fields(each, seen)]
    assert len(found) > 300
    assert [pair for pair in found if is_secret_name(pair[1]) and pair[1] not in VOCABULARY_NAMES] == []
