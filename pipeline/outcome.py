"""How an attempt ended, and what to tell the user about it (runner rules R16 and R17)."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import EXIT_INTERRUPTED
from pipeline.store import Attempt, Entry

LOG_LINES = 20
"""How much of a failed stage's log is shown."""


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended. ``message`` says why it failed, for a person; empty otherwise."""

    state: Literal["finished", "interrupted", "failed"]
    exit_code: int
    message: str = ""


def interpret(attempt: Attempt, exit_code: int, problem: str | None, *, asked: bool) -> Outcome:
    """Decide how ``attempt`` ended.

    torchrun turns every non-zero exit of its workers into 1, so what the worker wrote counts before the code.

    Args:
        attempt: the attempt, with its ``outcome.json`` if the worker wrote one.
        exit_code: of the stage's leading process; negative if a signal killed it.
        problem: why the output of a stage that exited with 0 could not be published; None if it could.
        asked: whether the runner had asked the stage to stop.
    """
    if problem is not None:
        return Outcome("failed", exit_code, f"it ended without an error, but its output cannot be published: {problem}")
    if exit_code == 0:
        return Outcome("finished", exit_code)
    written = _read(attempt.path / "outcome.json")
    if written:
        return Outcome(written["state"], exit_code, written["message"])
    if asked or exit_code == EXIT_INTERRUPTED:
        return Outcome("interrupted", exit_code)
    if exit_code < 0:
        hint = " (out of memory?)" if exit_code == -9 else ""
        return Outcome("failed", exit_code, f"killed by signal {-exit_code}{hint}")
    return Outcome("failed", exit_code, "its process ended before the stage could say why")


def failure_report(name: str, entry: Entry, attempt: Attempt, outcome: Outcome, command: str) -> str:
    """Everything a person needs after a failure: the cause, the end of the log, where it is, what to do next."""
    tail = _last_lines(attempt.log)
    if tail and tail[-1] == f"error: {outcome.message}":
        tail.pop()
    point = entry.resume_point()
    return "\n".join(
        [
            f"stage {name!r} failed (attempt {attempt.number}, exit code {outcome.exit_code}): {outcome.message}",
            *(["the end of its log:", *(f"  {line}" for line in tail)] if tail else []),
            f"full log: {attempt.log}",
            f"try again{f' from {point}' if point else ''} with: {command}",
        ]
    )


def interruption_report(name: str, entry: Entry, command: str, *, killed: bool) -> str:
    """Where the same command will go on; ``killed`` says that the stage did not stop by itself."""
    how = "did not save in time and was killed" if killed else "was interrupted"
    point = entry.resume_point() or "its beginning"
    return f"stage {name!r} {how}; it goes on from {point} with: {command}"


def _last_lines(log: Path) -> list[str]:
    """The end of a log; of a progress bar that redraws its line, only what was drawn last."""
    with log.open(encoding="utf-8", errors="replace", newline="\n") as file:
        return [line.rstrip().rsplit("\r", 1)[-1] for line in deque(file, maxlen=LOG_LINES)]


def _read(path: Path) -> Mapping[str, str]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
