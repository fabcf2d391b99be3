"""Run one stage in this process: ``python -m stages.worker JOB.json`` (under a launcher, once per rank).

The job file is what the runner wrote: ``stage`` and ``uses`` (names), ``module`` ("package.module:Class"), ``config``,
``inputs`` {input: {stage: directory}}, ``work``, ``out``, ``attempt``, ``cache`` (directories) and ``resources``.

Exit codes: 0 the stage returned, 75 it saved and stopped because it was asked to, 69 it failed because something
outside this machine did not answer (``StageUnavailable``), 1 it failed otherwise. The first rank that does not return
also writes ``outcome.json`` into the attempt, because launchers do not pass exit codes on.
"""

from __future__ import annotations

import argparse
import errno
import faulthandler
import importlib
import json
import os
import shutil
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from stages.masking import MaskedStream, environment_secrets, mask_text
from stages.ranks import Place, RankRecord, find_place, redirect_output
from stages.stage import MetricsWriter, StageConfig, StageContext, StageError, StageInterrupted, StageUnavailable
from stages.stop_request import StopRequest

SCHEMA_VERSION = 2
PROGRESS_PREFIX = "progress| "
"""Log lines with this prefix are for the user; everything else in the log is chatter."""

EXIT_FAILED = 1
EXIT_UNAVAILABLE = 69
EXIT_INTERRUPTED = 75


def make_context(job: Mapping[str, Any], config: Any, should_stop: Callable[[], bool], place: Place) -> StageContext:
    """The context of this rank; only rank 0 writes metrics and shows progress."""
    work, out = Path(job["work"]), Path(job["out"])
    for directory in (work, out):  # a command that is pasted later finds them published or cleaned away
        directory.mkdir(exist_ok=True)

    def progress(line: str) -> None:
        print(f"{PROGRESS_PREFIX}{line}", flush=True)

    return StageContext(
        config=config,
        inputs={name: {stage: Path(path) for stage, path in made.items()} for name, made in job["inputs"].items()},
        work=work,
        out=out,
        metrics=MetricsWriter(Path(job["attempt"]) / "metrics.jsonl" if place.rank == 0 else None),
        progress=progress if place.rank == 0 else lambda line: None,
        should_stop=should_stop,
        resources=job["resources"],
        cache=Path(job["cache"]),
        rank=place.rank,
        world_size=place.world_size,
        local_rank=place.local_rank,
    )


def run_job(path: Path, local_rank: int | None = None) -> int:
    """Run the job file's stage and return the exit code.

    Args:
        path: the job file.
        local_rank: this process among those on its machine, where the launcher gives it as an argument.

    Raises:
        ValueError: the job file was written for another version of this module.
    """
    job = read_job(path)
    place = find_place(os.environ, job["resources"].get("launcher"), local_rank)
    attempt = Path(job["attempt"])
    should_stop = StopRequest(attempt).install()
    record = RankRecord(attempt, place)
    try:
        _prepare_environment(job["resources"], place)
        stage = _load(job["module"])
        config = stage.Config.model_validate(job["config"])
        _check_processes(config, place)
        stage().run(make_context(job, config, should_stop, place))
    except StageInterrupted as stop:
        _record_outcome(job, place, "interrupted", str(stop))
        record.set("interrupted")
        return EXIT_INTERRUPTED
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        transient = isinstance(error, StageUnavailable)
        _record_outcome(job, place, "failed", str(error), explained=True, transient=transient)
        record.set("failed")
        return EXIT_UNAVAILABLE if transient else EXIT_FAILED
    except Exception as error:
        full = _disk_was_full(error)
        message = str(error) if full else "".join(traceback.format_exception_only(error)).strip()
        if full:
            print(f"error: {error}", file=sys.stderr)
        else:
            traceback.print_exc()
        _record_outcome(job, place, "failed", message, explained=full)
        record.set("failed")
        return EXIT_FAILED
    record.set("finished")
    return 0


def _disk_was_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, SafetensorError) and f"(os error {errno.ENOSPC})" in str(error)  # it has no number of it


def read_job(path: Path) -> dict[str, Any]:
    """The content of a job file.

    Raises:
        ValueError: it was written for another version of this module.
    """
    job = json.loads(path.read_text(encoding="utf-8"))
    if job["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"{path} has schema_version {job['schema_version']}, this worker reads {SCHEMA_VERSION}")
    return job


def _prepare_environment(resources: Mapping[str, Any], place: Place) -> None:
    """Make what the recipe says of processes and devices true for every library of this process.

    Raises:
        StageError: the launcher started another number of processes, or there is no GPU for this one.
    """
    processes = (resources.get("processes") or 0) * (resources.get("nodes") or 1)
    if processes and processes != place.world_size:
        raise StageError(
            f"{processes} processes were to work together, but the launcher says that there are {place.world_size}. "
            "Start the stage with `pipeline run`, or paste the whole command of cmd.txt"
        )
    if place.world_size > 1:
        os.environ.update(place.variables())
    if resources.get("device") == "cpu":
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    if resources.get("device") == "gpu":
        _check_gpu(place)


def _check_processes(config: StageConfig, place: Place) -> None:
    try:
        config.check_processes(place.world_size)
    except ValueError as error:
        raise StageError(str(error)) from None


def _check_gpu(place: Place) -> None:
    import torch

    count = torch.cuda.device_count()
    if place.local_rank >= count:
        without = "" if torch.backends.cuda.is_built() else ": it was installed without CUDA"
        raise StageError(
            f"rank {place.rank} is to work on GPU {place.local_rank} of {socket.gethostname()}, but torch sees "
            f"{count} there{without}. Ask for fewer processes, or for device: cpu"
        )


def _load(reference: str) -> type:
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _record_outcome(
    job: Mapping[str, Any],
    place: Place,
    state: str,
    message: str,
    *,
    explained: bool = False,
    transient: bool = False,
) -> None:
    """Write ``outcome.json`` unless a rank already did: the first to end is the cause, the others follow.

    ``explained`` says that the message is meant for the user, so it is no consequence of another rank's death;
    ``transient`` that the same attempt may succeed later.
    """
    path = Path(job["attempt"]) / "outcome.json"
    message = mask_text(message, environment_secrets())
    facts = {"state": state, "message": message, "rank": place.rank, "explained": explained, "transient": transient}
    outcome = json.dumps(facts)
    try:
        _write_new(path, outcome)
    except FileExistsError:
        return
    except OSError:
        # A full disk: what was half-made is worth nothing, and in its place there is room to say what happened.
        shutil.rmtree(job["out"], ignore_errors=True)
        path.unlink(missing_ok=True)
        _write_new(path, outcome)


def _write_new(path: Path, text: str) -> None:
    with path.open("x", encoding="utf-8") as file:
        file.write(text)


def main() -> int:
    """The command: one argument, the job file."""
    parser = argparse.ArgumentParser(prog="python -m stages.worker", description="Run one stage of a recipe.")
    parser.add_argument("job", type=Path, metavar="JOB.json", help="what the runner wrote")
    parser.add_argument("--local_rank", "--local-rank", type=int, help="given by DeepSpeed's launcher")
    arguments = parser.parse_args()
    job = read_job(arguments.job)
    place = find_place(os.environ, job["resources"].get("launcher"), arguments.local_rank)
    redirect_output(Path(job["attempt"]), place.rank)
    faulthandler.enable()
    secrets = environment_secrets()
    with redirect_stdout(MaskedStream(sys.stdout, secrets)), redirect_stderr(MaskedStream(sys.stderr, secrets)):
        return run_job(arguments.job, arguments.local_rank)


if __name__ == "__main__":
    sys.exit(main())
