"""How an attempt ended, and what to tell the user about it (runner rules R16 and R17)."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.deaths import describe_signal, first_death, hint, rank_states
from pipeline.errors import EXIT_INTERRUPTED
from pipeline.store import Attempt, Entry
from stages.ranks import log_path

LOG_LINES = 20
"""How much of a failed stage's log is shown."""


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    Attributes:
        state: of the attempt.
        exit_code: of its leading process.
        message: why it failed, for a person; empty otherwise.
        rank: whose failure that was.
    """

    state: Literal["finished", "interrupted", "failed"]
    exit_code: int
    message: str = ""
    rank: int = 0


def interpret(attempt: Attempt, exit_code: int, problem: str | None, *, asked: bool) -> Outcome:
    """Decide how ``attempt`` ended.

    Launchers turn every non-zero exit of their ranks into 1, so what the ranks wrote counts before the code.

    Args:
        attempt: the attempt, with its ``outcome.json`` if a rank wrote one.
        exit_code: of the stage's leading process; negative if a signal killed it.
        problem: why the output of a stage that exited with 0 could not be published; None if it could.
        asked: whether the runner had asked the stage to stop.
    """
    if problem is not None:
        return Outcome("failed", exit_code, f"it ended without an error, but its output cannot be published: {problem}")
    if exit_code == 0:
        return Outcome("finished", exit_code)
    written = _read(attempt.path / "outcome.json")
    dead = None if written.get("explained") else _death(attempt, written)
    if dead is not None and not asked:
        return Outcome("failed", exit_code, dead[1], dead[0])
    if written and (written["state"] == "failed" or exit_code >= 0 or asked):
        message = written["message"] + ("" if written.get("explained") else hint(written["message"]))
        return Outcome(written["state"], exit_code, message, written.get("rank", 0))
    if asked or exit_code == EXIT_INTERRUPTED:
        return Outcome("interrupted", exit_code)
    if exit_code < 0:
        saved = "; its ranks saved and ended" if written else ""
        return Outcome("failed", exit_code, f"killed by {describe_signal(-exit_code)}{saved}")
    return Outcome("failed", exit_code, "its process ended before the stage could say why")


def _death(attempt: Attempt, written: Mapping[str, Any]) -> tuple[int, str] | None:
    """The rank that died without a word, and what to say of it; None if none did, or another's failure came first.

    When a rank dies, the others fail in the middle of a collective operation: theirs is not the cause. But a launcher
    also kills those that hang after another has failed, so its own report decides where it names a rank.
    """
    states = rank_states(attempt.path)
    silent = [state for state in states if state.silent]
    if not silent or len(states) == 1:
        return None
    first = first_death(attempt.log.read_text(encoding="utf-8", errors="replace"))
    if first is not None and first.rank is not None:
        silent = [state for state in silent if state.rank == first.rank]
        if not silent:
            return None
    who = " and ".join(map(str, silent))
    number = first.signal if first is not None else None
    how = f"was killed by {describe_signal(number)}" if number else "ended without a word"
    after = f"; then rank {written['rank']} failed: {written['message']}" if written.get("state") == "failed" else ""
    return silent[0].rank, f"{who} {how}{after}"


def failure_report(name: str, entry: Entry, attempt: Attempt, outcome: Outcome, command: str) -> str:
    """Everything a person needs after a failure: the cause, the end of the log, where it is, what to do next."""
    log = log_path(attempt.path, outcome.rank)
    tail = _last_lines(log) if log.exists() else []
    if tail and tail[-1] == f"error: {outcome.message}":
        tail.pop()
    point = entry.resume_point()
    return "\n".join(
        [
            f"stage {name!r} failed (attempt {attempt.number}, exit code {outcome.exit_code}): {outcome.message}",
            *([f"the end of {f'the log of rank {outcome.rank}' if outcome.rank else 'its log'}:"] if tail else []),
            *(f"  {line}" for line in tail),
            f"full log: {log}" + (f" and {attempt.log}" if outcome.rank else ""),
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


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
