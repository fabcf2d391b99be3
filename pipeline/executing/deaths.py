"""Which rank of a stage died, of what: from the records that ranks keep, and from what launchers print.

A launcher sees how its ranks end, but passes on only that one did; a rank that is killed leaves nothing but its record.
"""

from __future__ import annotations

import json
import re
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipeline.executing import locks
from stages.ranks import DIRECTORY

_PATTERNS = (
    # torchrun, of the failure that it saw first
    re.compile(r"Root Cause \(first observed failure\):.*?rank\s+: (?P<rank>\d+).*?exitcode\s+: (?P<code>-?\d+)", re.S),
    # DeepSpeed's launcher, which names the command that it started last instead of the rank
    re.compile(r"sigkill_handler\].*exits with return code = (?P<code>-?\d+)"),
    re.compile(r"^srun: error: \S+: tasks? (?P<rank>\d+)\S*: (?P<name>\w[\w ]*)", re.M),
)

_HINTS = (
    # gloo and NCCL
    (re.compile(r"Timed out waiting|[Ww]atchdog caught collective operation timeout"),
     "another rank is dead, hangs, or needs longer than timeout_minutes of this stage's resources"),
    (re.compile(r"Connection (closed|reset) by peer|remote process exited"),
     "another rank is gone, and its log may say why"),
)  # fmt: skip

_MEANINGS = {
    signal.SIGKILL: "out of memory?",
    signal.SIGABRT: "a library gave up, such as NCCL when another rank did not answer",
    signal.SIGSEGV: "a fault in compiled code; its stack is in the log",
    signal.SIGBUS: "a full /dev/shm, or a file that shrank?",
}

_SRUN_NAMES = {"Killed": signal.SIGKILL, "Aborted": signal.SIGABRT, "Segmentation fault": signal.SIGSEGV,
               "Terminated": signal.SIGTERM, "Bus error": signal.SIGBUS}  # fmt: skip


@dataclass(frozen=True)
class RankState:
    """What is known of one rank: ``state`` is what it last wrote, ``alive`` whether it still holds its record."""

    rank: int
    pid: int
    host: str
    state: str
    alive: bool

    @property
    def silent(self) -> bool:
        """Whether it died without saying anything."""
        return not self.alive and self.state == "running"

    def __str__(self) -> str:
        return f"rank {self.rank} (pid {self.pid} on {self.host})"


@dataclass(frozen=True)
class Death:
    """The first end of a rank that its launcher reported; what it did not say is None."""

    rank: int | None
    signal: int | None


def rank_states(attempt: Path) -> list[RankState]:
    """The ranks of an attempt that got as far as to write a record, by number."""
    return sorted(_read(attempt), key=lambda state: state.rank)


def _read(attempt: Path) -> Iterator[RankState]:
    for path in (attempt / DIRECTORY).glob("*.json"):
        alive = locks.is_locked(path)
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            if not facts.get("locked", True):
                alive = facts["host"] == socket.gethostname() and psutil.pid_exists(facts["pid"])
            yield RankState(facts["rank"], facts["pid"], facts["host"], facts["state"], alive)
        except (OSError, ValueError, KeyError):  # it died, or is, in the middle of writing
            yield RankState(int(path.stem), 0, "an unknown host", "running", alive)


def first_death(log: str) -> Death | None:
    """The first end that a launcher reports in its output; None if it reports none."""
    for pattern in _PATTERNS:
        if match := pattern.search(log):
            found = match.groupdict()
            code = _SRUN_NAMES.get(found["name"].strip(), 0) if "name" in found else -int(found["code"])
            return Death(int(found["rank"]) if "rank" in found else None, code if code > 0 else None)
    return None


def hint(message: str) -> str:
    """What an error of a collective operation means, in brackets to append; empty for other messages."""
    meaning = next((meaning for pattern, meaning in _HINTS if pattern.search(message)), None)
    return f" ({meaning})" if meaning else ""


def describe_signal(number: int) -> str:
    """A signal for a person: ``signal 9, SIGKILL (out of memory?)``."""
    try:
        name = signal.Signals(number)
    except ValueError:
        return f"signal {number}"
    return f"signal {number}, {name.name}" + (f" ({_MEANINGS[name]})" if name in _MEANINGS else "")
