"""A finished model as a directory of its own: the files of Hugging Face, a model card, and proof that it loads."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from pipeline import durable
from pipeline.errors import PipelineError, RecipeError
from pipeline.nearest import unknown_name
from pipeline.plan import Plan, PlannedStage, State
from pipeline.planner import make_plan
from pipeline.reading.loading import load_recipe
from pipeline.runs import kept_recipe
from pipeline.sharing.model_card import Evaluated, card, result_row
from pipeline.store import Done, Entry, FileRecord, Store
from stages import load_stage
from stages.artifacts import EvaluationArtifact, ModelArtifact
from stages.model_loading import MODELING_FILE

FILES = (
    *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("additional_chat_templates/*", "vocab.json", "merges.txt", "vocab.txt", "*.model", MODELING_FILE.name),
)
"""What of a result belongs to the model; the rest (curves, counts, plans) is about its making and stays behind."""

CARD = "README.md"
CONVERTER = "convert_hf_to_gguf.py"
"""llama.cpp's script."""


@dataclass(frozen=True)
class Found:
    """A finished model of a run.

    Attributes:
        plan: of the run.
        stage: that made it.
        entry, done: its result.
    """

    plan: Plan
    stage: PlannedStage
    entry: Entry
    done: Done


def find(run: str, stage: str, runs: Path) -> Found:
    """The finished model of a stage of a run.

    Raises:
        RecipeError: there is no such run or stage, or it makes no model.
        PipelineError: the stage is not up to date.
    """
    plan = make_plan(load_recipe(kept_recipe(run, runs)), runs)
    models = [each.name for each in plan.stages if issubclass(load_stage(each.uses).output, ModelArtifact)]
    if stage not in models:
        known = [each.name for each in plan.stages]
        wrong = f"{stage!r} makes no model" if stage in known else f"{run} has no stage called {stage!r}"
        raise RecipeError(f"{wrong}{unknown_name(stage, models)}")
    planned = plan.stage(stage)
    entry = Store(runs / "store").entry(planned.uses, planned.key)
    done = entry.done()
    if planned.state != State.FRESH or done is None:
        raise PipelineError(
            f"stage {stage!r} of {run} is not up to date ({planned.state}: {planned.reason}); "
            f"`pipeline resume {run}` finishes it"
        )
    return Found(plan, planned, entry, done)


def export(found: Found, directory: Path, say: Callable[[str], None]) -> None:
    """Copy the model to ``directory`` with a card, after it was loaded from the copy by a process of its own.

    Raises:
        RecipeError: ``directory`` is there and not empty, and stays as it is; or nothing can be written beside it.
        PipelineError: a file is not what was published, or the copy does not load.
        KeyboardInterrupt: it was asked to stop, also by SIGTERM; nothing stays behind.
    """
    directory = directory.resolve()  # a link to a place stands for that place: a rename would take its own
    check_free(directory)
    partial = directory.with_name(f"{directory.name}.partial-{platform.node()}-{os.getpid()}")
    try:
        _remove_abandoned(directory)
        partial.mkdir(parents=True)
    except OSError as error:
        raise RecipeError(f"{directory} cannot be made: {error.strerror}") from None
    with _termination_as_interrupt(), _removed_at_the_end(partial):
        _copy(found, partial)
        (partial / CARD).write_text(
            card(found.plan, found.stage, found.done, _evaluations(found), _machine(found), _written(found)),
            encoding="utf-8",
            newline="\n",
        )
        say("loading the copy in a process of its own")
        _check_loads(partial)
        if directory.exists():
            directory.rmdir()  # empty; a rename onto it would be refused elsewhere than on Linux
        os.rename(partial, directory)
        durable.sync(directory.parent)


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Have SIGTERM, by which schedulers end a process, clean up as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _removed_at_the_end(partial: Path) -> Iterator[None]:
    """Delete what is still called so in the end."""
    try:
        yield
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_abandoned(directory: Path) -> None:
    """Delete what exports to ``directory`` left that were killed on this machine; of others nothing is known."""
    name = re.compile(re.escape(f"{directory.name}.partial-{platform.node()}-") + r"(\d+)")
    beside = directory.parent.iterdir() if directory.parent.is_dir() else ()
    for path in [path for path in beside if path.is_dir() and not path.is_symlink()]:
        if (found := name.fullmatch(path.name)) and not psutil.pid_exists(int(found[1])):
            shutil.rmtree(path)


def check_free(directory: Path) -> None:
    """Refuse a place where something is.

    Raises:
        RecipeError: it is a file, or a directory that holds something.
    """
    if directory.is_dir() and not any(directory.iterdir()):
        return
    if directory.exists():
        raise RecipeError(f"{directory} is there already, and nothing is overwritten: name another directory")


def holds(directory: Path, found: Found) -> bool:
    """Whether ``directory`` is an export of this result: its card says so, and its files are those of the result.

    The card may have been edited, and other files may lie beside.
    """
    written = directory / CARD
    if not written.is_file() or result_row(found.done) not in written.read_text(encoding="utf-8").splitlines():
        return False
    return all(_is_whole(directory / record.path, record) for record in _files(found))


def _files(found: Found) -> list[FileRecord]:
    """What of the result is exported."""
    return [record for record in found.done.manifest if any(fnmatch.fnmatch(record.path, pattern) for pattern in FILES)]


def _is_whole(path: Path, record: FileRecord) -> bool:
    if not path.is_file() or path.stat().st_size != record.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == record.sha256


def _copy(found: Found, directory: Path) -> None:
    for record in _files(found):
        target = directory / record.path
        target.parent.mkdir(parents=True, exist_ok=True)
        with durable.disk_full_explained(f"copying {record.path}", directory):
            shutil.copyfile(found.entry.out / record.path, target)
        if not _is_whole(target, record):
            raise PipelineError(
                f"{found.entry.out / record.path} is not what was published: make it anew with "
                f"`pipeline run RECIPE --force {found.stage.name}`"
            )


def _evaluations(found: Found) -> list[Evaluated]:
    """The finished evaluations of the run that looked at the model."""
    evaluations = []
    for stage in found.plan.stages:
        if not issubclass(load_stage(stage.uses).output, EvaluationArtifact) or stage.state != State.FRESH:
            continue
        done = Store(found.plan.runs / "store").entry(stage.uses, stage.key).done()
        if done is not None and found.stage.name in stage.inputs.get("models", ()):
            beside = ("teacher", stage.config.initial, stage.config.control)
            rows = dict.fromkeys(row for row in beside if row not in (None, found.stage.name))
            evaluations.append(Evaluated(stage.name, done.metrics, (*rows, found.stage.name)))
    return evaluations


def _machine(found: Found) -> dict[str, Any]:
    """What the attempt that made the model recorded of its machine; empty where that is gone."""
    record = found.entry.path / "attempts" / str(found.done.attempt) / "env.json"
    return json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}


def _written(found: Found) -> str:
    """The recipe as its author wrote it; where that is gone, as the run keeps it."""
    kept = found.plan.run_directory / "recipe.yaml"
    return kept.read_text(encoding="utf-8") if kept.is_file() else found.plan.recipe.text


def _check_loads(directory: Path) -> None:
    from stages.reload_check import differences, inspect_in_fresh_process

    try:
        problems = differences(inspect_in_fresh_process(directory), {})
    except subprocess.CalledProcessError as error:
        raise PipelineError(f"the copy does not load: {error.stderr.strip().splitlines()[-1]}") from None
    if problems:
        raise PipelineError(f"the copy loads, but {'; '.join(problems)}")


def converter() -> list[str]:
    """The command that converts a directory to GGUF.

    Raises:
        PipelineError: llama.cpp's script is not installed.
    """
    found = shutil.which(CONVERTER)
    if found is None:
        raise PipelineError(
            f"GGUF is written by llama.cpp's {CONVERTER}, which is not on PATH: clone github.com/ggml-org/llama.cpp, "
            "add its directory to PATH, make the script executable, and give the same command again"
        )
    return [sys.executable, found]


def write_gguf(command: list[str], directory: Path) -> Path:
    """Convert an exported model; returns the file, which lies in ``directory``.

    Raises:
        PipelineError: the converter failed.
    """
    file = directory / f"{directory.resolve().name}.gguf"
    done = subprocess.run([*command, str(directory), "--outfile", str(file)], capture_output=True, text=True)
    if done.returncode != 0 or not file.is_file():
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise PipelineError(f"{directory} is complete, but the conversion to GGUF failed:\n{last}")
    return file
