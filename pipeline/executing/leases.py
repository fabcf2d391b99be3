"""Locks for file systems without ``flock``: a file that exists as long as its holder lives (runner rule R13).

The kernel does not free them. A holder that died on this machine is noticed and its lease broken; of one on another
machine nothing can be known, so its lease holds until it is released or somebody says that the holder is gone
(``pipeline unlock``). Clocks play no part: a process is told from another one that has its number later by when it
began in ticks since the machine did, which nobody sets.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def lease_path(path: Path) -> Path:
    """The lease that stands for a lock on ``path``."""
    return path.with_name(f"{path.name}.lease")


def take(path: Path, info: Mapping[str, Any]) -> str | None:
    """Take the lease on ``path``; ``info`` tells others who has it.

    Returns:
        A token to ``release`` it with; None if somebody else has it.
    """
    lease, token = lease_path(path), uuid.uuid4().hex
    record = {**info, "token": token, "born": _born(os.getpid())}
    # Written in full under another name, then linked: whoever sees the lease can read who has it.
    draft = lease.with_name(f".{lease.name}.{token}")
    try:
        draft.write_text(json.dumps(record), encoding="utf-8")
        if _linked(draft, lease):
            return token
        return token if _broken(path, draft) and _linked(draft, lease) else None
    finally:
        draft.unlink(missing_ok=True)


def release(path: Path, token: str) -> None:
    """Give the lease back, if it is still the one of ``token``."""
    if _read(lease_path(path)).get("token") == token:
        lease_path(path).unlink(missing_ok=True)


def is_held(path: Path) -> bool:
    """Whether a lease on ``path`` is there whose holder is not known to be dead."""
    lease = lease_path(path)
    return lease.exists() and not _is_dead(_read(lease))


def discard(path: Path) -> bool:
    """Remove a lease on ``path`` whoever has it, and what somebody who died while breaking one left; whether there was
    a lease."""
    _guard(path).unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        lease_path(path).unlink()
        return True
    return False


def _is_dead(record: Mapping[str, Any]) -> bool:
    if record.get("host") != socket.gethostname() or "pid" not in record:
        return False
    try:
        return _born(record["pid"]) != record.get("born")
    except psutil.NoSuchProcess:
        return True


def _born(pid: int) -> str | float:
    """When a process began, for comparison with what this said before, or a moment in time where there is no /proc.

    Raises:
        psutil.NoSuchProcess: there is none.
    """
    if not _BOOT_ID.exists():
        return psutil.Process(pid).create_time()
    try:
        facts = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        raise psutil.NoSuchProcess(pid) from None
    ticks = facts.rpartition(")")[2].split()[19]  # the name in brackets may hold anything; field 22 of proc(5)
    return f"{ticks} ticks after boot {_BOOT_ID.read_text(encoding='utf-8').strip()}"


def _broken(path: Path, draft: Path) -> bool:
    """Remove the lease on ``path`` if its holder is dead; whether it is gone.

    One process at a time: between seeing that the holder is dead and removing the lease, nobody else can put a living
    one in its place.
    """
    guard = _guard(path)
    if not _linked(draft, guard):
        return False
    try:
        if is_held(path):
            return False
        lease_path(path).unlink(missing_ok=True)
        return True
    finally:
        guard.unlink(missing_ok=True)


def _guard(path: Path) -> Path:
    return path.with_name(f".{path.name}.breaking")


def _linked(draft: Path, name: Path) -> bool:
    """Give ``draft`` a second name, unless something has it already."""
    try:
        os.link(draft, name)
    except FileExistsError:
        return False
    return True


def _read(lease: Path) -> Mapping[str, Any]:
    try:
        record = json.loads(lease.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
