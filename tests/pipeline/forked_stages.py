"""Stages for tests that run hundreds of them: each in a process that is forked from this one instead of started anew.

All else is as in a real run: a process group of its own, the log, the locks that it inherits, its exit code. What it
saves is Python's start and imports.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, Literal
from unittest import mock

from toys import TextArtifact

from pipeline import launch
from pipeline.executing import supervise
from stages import STAGES, worker
from stages.stage import Input, StageConfig, StageContext, StageError, StageInterrupted, not_keyed


class ForkedStage:
    """What ``launch.start`` needs of ``subprocess.Popen``, with ``os.fork``."""

    def __init__(
        self,
        args: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: int,
        stdout: IO[bytes],
        stderr: int,
        start_new_session: bool,
        pass_fds: Sequence[int],
    ) -> None:
        self.args = args
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            self._become(args, env, stdout)

    def _become(self, args: Sequence[str], env: Mapping[str, str], log: IO[bytes]) -> None:
        code = worker.EXIT_FAILED
        try:
            os.setsid()
            for stream in (1, 2):
                os.dup2(log.fileno(), stream)
            sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1) for stream in (1, 2))
            os.environ.update(env)
            code = worker.run_job(Path(args[-1]))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


@contextmanager
def forked_stages() -> Iterator[None]:
    """Inside, the runner forks its stages, and looks at them often, for they are short.

    Nothing waits for the disk: what is killed here is processes, and the system's own cache survives that.
    """
    popen = SimpleNamespace(Popen=ForkedStage, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT)
    with (
        mock.patch.object(launch, "subprocess", popen),
        mock.patch.object(supervise, "_POLL_SECONDS", 0.002),
        mock.patch.object(os, "fsync"),
        mock.patch.object(supervise, "_processes", return_value=()),  # a forked stage is its own process group
    ):
        yield


class GrowConfig(StageConfig):
    text: str = ""
    fickle: bool = False
    """Writes other bytes at every attempt, as no stage of ours should."""
    pace: int = not_keyed(1)
    fate: Literal["finish", "fail", "stop", "die"] = not_keyed("finish")
    """How an attempt that has saved its first step ends."""


class Seed:
    """Two steps with a checkpoint each; gives its text, then how it came about."""

    VERSION = 1
    inputs: Mapping[str, Input] = {}
    output = TextArtifact
    Config = GrowConfig

    def run(self, ctx: StageContext) -> None:
        config: GrowConfig = ctx.config
        parts = [(path / "text.txt").read_text() for made in ctx.inputs.values() for path in made.values()]
        told = f"{config.text}({','.join(parts)})"
        if self._saved(ctx) != told:
            self._save(ctx, 1, told)
            _meet(config.fate)
        self._save(ctx, 2, told)
        nonce = os.urandom(8).hex() if config.fickle else ""
        (ctx.out / "text.txt").write_text(told + nonce)
        (ctx.out / "metrics.json").write_text(json.dumps({"length": len(told)}))

    def _saved(self, ctx: StageContext) -> str | None:
        """What the newest whole checkpoint holds; damaged ones are passed over."""
        for step in (2, 1):
            try:
                return json.loads((ctx.work / "ckpt" / f"step-{step}" / "COMPLETE.json").read_text())["told"]
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return None

    def _save(self, ctx: StageContext, step: int, told: str) -> None:
        directory = ctx.work / "ckpt" / f"step-{step}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "COMPLETE.json.tmp").write_text(json.dumps({"told": told}))
        (directory / "COMPLETE.json.tmp").replace(directory / "COMPLETE.json")


class Grow(Seed):
    inputs: Mapping[str, Input] = {"parts": Input(TextArtifact, many=True)}


def _meet(fate: str) -> None:
    if fate == "fail":
        raise StageError("it was to fail")
    if fate == "stop":
        raise StageInterrupted("it was to stop")
    if fate == "die":
        os.kill(os.getpid(), signal.SIGKILL)


STAGES.update({"seed": f"{__name__}:Seed", "grow": f"{__name__}:Grow"})


def recipe_of(stages: Mapping[str, Mapping[str, Any]], name: str = "grown") -> dict[str, Any]:
    """A recipe of ``seed`` and ``grow`` stages: stage -> its ``needs`` and options."""
    return {
        "name": name,
        "stages": {
            stage: {"uses": "grow" if options.get("needs") else "seed", **options} for stage, options in stages.items()
        },
    }
