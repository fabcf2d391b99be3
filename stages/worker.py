"""Run one stage in this process: ``python -m stages.worker JOB.json`` (under torchrun, once per rank).

The job file is what the runner wrote: ``stage`` and ``uses`` (names), ``module`` ("package.module:Class"), ``config``,
``inputs`` {input: {stage: directory}}, ``work``, ``out``, ``attempt``, ``cache`` (directories) and ``resources``.

Exit codes: 0 the stage returned, 75 it saved and stopped because it was asked to, 1 it failed. The first rank that
does not return also writes ``outcome.json`` into the attempt, because torchrun does not pass exit codes on.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from stages.stage import MetricsWriter, StageContext, StageError, StageInterrupted

SCHEMA_VERSION = 2
PROGRESS_PREFIX = "progress| "
"""Log lines with this prefix are for the user; everything else in the log is chatter."""

EXIT_FAILED = 1
EXIT_INTERRUPTED = 75

_ORPHAN_CHECK_SECONDS = 1.0


class StopRequest:
    """True once SIGTERM or SIGINT arrived, or once the runner that launched this stage is gone.

    A runner that dies without a word cannot ask; the stage then saves and ends rather than train on unseen.
    """

    def __init__(self) -> None:
        self._asked = False
        self._runner = _runner_processes()
        self._checked = time.monotonic()

    def install(self) -> StopRequest:
        """Handle SIGTERM and SIGINT from now on; a second SIGINT ends the process at once."""
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._handle)
        return self

    def __call__(self) -> bool:
        now = time.monotonic()
        if not self._asked and self._runner is not None and now - self._checked >= _ORPHAN_CHECK_SECONDS:
            self._checked = now
            self._asked = _runner_processes() != self._runner
        return self._asked

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _runner_processes() -> tuple[int, int] | None:
    """The pids of our parent and of the runner; None if there is no runner (any more).

    The runner makes what it starts the leader of a new session; that is this process, or its torchrun agent. A
    stage that a person started in a shell leads no session, and may outlive that shell.
    """
    parent = os.getppid()
    leader = parent if "TORCHELASTIC_RUN_ID" in os.environ else os.getpid()
    try:
        return (parent, psutil.Process(leader).ppid()) if os.getsid(leader) == leader else None
    except (psutil.Error, ProcessLookupError):
        return None


def make_context(job: Mapping[str, Any], config: Any, should_stop: Callable[[], bool]) -> StageContext:
    """The context of this rank; only rank 0 writes metrics and shows progress."""
    rank = int(os.environ.get("RANK", "0"))
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
        metrics=MetricsWriter(Path(job["attempt"]) / "metrics.jsonl" if rank == 0 else None),
        progress=progress if rank == 0 else lambda line: None,
        should_stop=should_stop,
        resources=job["resources"],
        cache=Path(job["cache"]),
        rank=rank,
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
    )


def run_job(path: Path) -> int:
    """Run the job file's stage and return the exit code.

    Raises:
        ValueError: the job file was written for another version of this module.
    """
    job = json.loads(path.read_text(encoding="utf-8"))
    if job["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"{path} has schema_version {job['schema_version']}, this worker reads {SCHEMA_VERSION}")
    should_stop = StopRequest().install()
    attempt = Path(job["attempt"])
    try:
        stage = _load(job["module"])
        config = stage.Config.model_validate(job["config"])
        stage().run(make_context(job, config, should_stop))
    except StageInterrupted as stop:
        _record_outcome(attempt, "interrupted", str(stop))
        return EXIT_INTERRUPTED
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        _record_outcome(attempt, "failed", str(error))
        return EXIT_FAILED
    except Exception as error:
        traceback.print_exc()
        _record_outcome(attempt, "failed", "".join(traceback.format_exception_only(error)).strip())
        return EXIT_FAILED
    return 0


def _load(reference: str) -> type:
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _record_outcome(attempt: Path, state: str, message: str) -> None:
    """Write ``outcome.json`` unless a rank already did: the first to end is the cause, the others follow."""
    try:
        with (attempt / "outcome.json").open("x", encoding="utf-8") as file:
            json.dump({"state": state, "message": message}, file)
    except FileExistsError:
        return


def main() -> int:
    """The command: one argument, the job file."""
    if len(sys.argv) != 2:
        print("usage: python -m stages.worker JOB.json", file=sys.stderr)
        return 2
    return run_job(Path(sys.argv[1]))


if __name__ == "__main__":
    sys.exit(main())
