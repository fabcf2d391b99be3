"""Real file systems for tests, read-only or small: a forked process alone sees them, and they end with it."""

from __future__ import annotations

import ctypes
import os
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

Result = TypeVar("Result")

_NEW_MOUNTS, _NEW_USERS = 0x00020000, 0x10000000
_READ_ONLY, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 32, 4096, 16384, 1 << 18

_libc = ctypes.CDLL(None, use_errno=True)


class CannotMount(Exception):
    """This machine does not let us."""


def read_only(directory: Path) -> None:
    """Forbid all writing below ``directory``, also to root. Call it within ``apart``."""
    _mount(str(directory), directory, "none", _BIND | _RECURSIVE)
    _mount("none", directory, "none", _REMOUNT | _BIND | _READ_ONLY)


def small(directory: Path, size: int) -> None:
    """Put an empty file system of ``size`` bytes in place of ``directory``. Call it within ``apart``."""
    _mount("tmpfs", directory, "tmpfs", 0, f"size={size}")


def apart(action: Callable[[], Result]) -> Result:
    """What ``action`` returns (it must be picklable) in a forked process that may mount and whose mounts nobody sees.

    Raises:
        AssertionError: ``action`` raised; the message is its traceback.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            _leave()
            answer = ("returned", action())
        except CannotMount as problem:
            answer = ("skip", str(problem))
        except BaseException:
            answer = ("raised", traceback.format_exc())
        with os.fdopen(write, "wb") as file:
            pickle.dump(answer, file)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        told = file.read()
    os.waitpid(child, 0)
    assert told, "the process died without a word"
    kind, value = pickle.loads(told)
    if kind == "skip":
        pytest.skip(value)
    assert kind == "returned", value
    return value


def _leave() -> None:
    """Enter a mount namespace of our own; who is not root needs a user namespace for it, in which they are."""
    user, group = os.getuid(), os.getgid()
    if user == 0:
        _check(_libc.unshare(_NEW_MOUNTS))
    else:
        _check(_libc.unshare(_NEW_USERS | _NEW_MOUNTS))
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _mount("none", Path("/"), "none", _RECURSIVE | _PRIVATE)


def _mount(source: str, target: Path, kind: str, flags: int, options: str = "") -> None:
    _check(_libc.mount(source.encode(), os.fsencode(target), kind.encode(), flags, options.encode()))


def _check(result: int) -> None:
    if result != 0:
        raise CannotMount(f"no mounts of our own here: {os.strerror(ctypes.get_errno())}")
