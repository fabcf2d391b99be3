"""How an attempt ended, and what to tell the user about it (runner rules R16 and R17)."""

from __future__ import annotations

import json
import shutil
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import EXIT_INTERRUPTED
from pipeline.executing.deaths import describe_signal, first_death, hint, rank_states
from pipeline.store import Attempt, Entry
from stages.ranks import log_path
from stages.worker import EXIT_FAILED, EXIT_UNAVAILABLE

LOG_LINES = 20
"""How much of a failed stage's log is shown."""

_ROOM_FOR_WORDS = 16_384
"""Bytes without which a process cannot even say that the disk is full."""

_SIGNALLED = 128
"""A shell says 128 + number of a process that a signal killed."""


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    Attributes:
        state: of the attempt.
        code: its exit code as a shell says it: 128 + the signal that killed it or its first rank, and what the rank
            that failed ended with, which launchers do not pass on.
        message: why it failed, for a person; empty otherwise.
        rank: whose failure that was.
        transient: the stage says that the same attempt may succeed later.
        final: the stage, or who was to publish its output, understood what is wrong: another attempt fails as well.
    """

    state: Literal["finished", "interrupted", "failed"]
    code: int
    message: str = ""
    rank: int = 0
    transient: bool = False
    final: bool = False


def interpret(attempt: Attempt, exit_code: int, problem: str | None, *, asked: bool) -> Outcome:
    """Decide how ``attempt`` ended.

    Launchers turn every non-zero exit of their ranks into 1, so what the ranks wrote counts before the code.

    Args:
        attempt: the attempt, with its ``outcome.json`` if a rank wrote one.
        exit_code: of the stage's leading process; negative if a signal killed it.
        problem: why the output of a stage that exited with 0 could not be published; None if it could.
        asked: whether the runner had asked the stage to stop.
    """
    code = exit_code if exit_code >= 0 else _SIGNALLED - exit_code
    if problem is not None:
        why = f"it ended without an error, but its output cannot be published: {problem}"
        return Outcome("failed", code, why, final=True)
    if exit_code == 0:
        return Outcome("finished", code)
    written = _read(attempt.path / "outcome.json")
    dead = None if written.get("explained") else _death(attempt, written, code)
    if dead is not None and not asked:
        return dead
    if written and (written["state"] == "failed" or exit_code >= 0 or asked):
        return _as_written(written)
    if asked or exit_code == EXIT_INTERRUPTED:
        return Outcome("interrupted", code)
    if exit_code < 0:
        saved = "; its ranks saved and ended" if written else ""
        return Outcome("failed", code, f"killed by {describe_signal(-exit_code)}{saved}")
    full = shutil.disk_usage(attempt.path).free < _ROOM_FOR_WORDS
    why = f": the file system of {attempt.path} is full" if full else ""
    return Outcome("failed", code, f"its process ended before the stage could say why{why}")


def _as_written(written: Mapping[str, Any]) -> Outcome:
    """What a rank said about its end."""
    explained, transient = written.get("explained", False), written.get("transient", False)
    failed = EXIT_UNAVAILABLE if transient else EXIT_FAILED
    return Outcome(
        state=written["state"],
        code=failed if written["state"] == "failed" else EXIT_INTERRUPTED,
        message=written["message"] + ("" if explained else hint(written["message"])),
        rank=written.get("rank", 0),
        transient=transient,
        final=explained and not transient,
    )


def _death(attempt: Attempt, written: Mapping[str, Any], code: int) -> Outcome | None:
    """The end of a rank that died without a word; None if none did, or another's failure came first.

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
    return Outcome("failed", _SIGNALLED + number if number else code, f"{who} {how}{after}", silent[0].rank)


def failure_report(name: str, entry: Entry, attempts: Sequence[tuple[Attempt, Outcome]], command: str) -> str:
    """Everything a person needs after a failure: the cause, the end of the log, where it is, what to do next.

    Args:
        name: the stage.
        entry: its place in the store.
        attempts: those of this run, which all failed; the last one's failure is the one that counts.
        command: the command line that goes on.
    """
    *earlier, (attempt, outcome) = attempts
    log = log_path(attempt.path, outcome.rank)
    tail = _without(f"error: {outcome.message}".splitlines(), _last_lines(log)) if log.exists() else []
    point = entry.resume_point()
    return "\n".join(
        [
            f"stage {name!r} failed (attempt {attempt.number}, exit code {outcome.code}): {outcome.message}",
            *(
                f"so did attempt {before.number} (exit code {ending.code}): {ending.message}; its log: "
                f"{log_path(before.path, ending.rank)}"
                for before, ending in earlier
            ),
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


def _without(said: Sequence[str], lines: list[str]) -> list[str]:
    """``lines`` but for the place where ``said`` stands; libraries may have written after it."""
    for start in reversed(range(len(lines))):
        if lines[start : start + len(said)] == said:
            return lines[:start] + lines[start + len(said) :]
    return lines


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
