"""Every moment at which a process changes the file system is a moment at which it may be killed.

Python announces each change to its audit hooks before it makes it, so the moments need no list that someone keeps and
no hook in the code under test: what is added there tomorrow is killed there tomorrow.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod"}

IN_DIRECTORY = {"os.remove", "os.rmdir"}
"""Those whose last argument may be an open directory, which the first is then relative to."""

Who = Literal["leader", "others"]


def killed_at(action: Callable[[], object], number: int, root: Path, who: Who = "leader") -> str | None:
    """Run ``action`` in a child that dies of SIGKILL right before its ``number``-th change below ``root``.

    Args:
        number: from 1.
        who: ``leader``: the child itself is killed; ``others``: a process that it forks, which counts for itself.

    Returns:
        What the change would have been; None if there were fewer.
    """
    told_from, told_to = os.pipe()
    child = os.fork()
    if child == 0:
        leader = os.getpid()
        die_at(
            number,
            root,
            is_meant=lambda: (os.getpid() == leader) == (who == "leader"),
            tell=lambda change: os.write(told_to, change.encode()),
        )
        try:
            action()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(told_to)
    os.waitpid(child, 0)
    with os.fdopen(told_from, "rb") as file:
        return file.read().decode() or None


def die_at(
    number: int,
    root: Path,
    *,
    is_meant: Callable[[], bool] = lambda: True,
    tell: Callable[[str], object] = lambda change: None,
) -> None:
    """From now on, count the changes below ``root`` that this process makes, and kill it right before one of them.

    Args:
        number: which, from 1.
        root: what lies elsewhere does not count.
        is_meant: whether the process counts, asked at every change: those that it forks have the hook as well.
        tell: is told what the change would have been.
    """
    seen = 0

    def die_in_time(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if not is_meant() or not _changes(event, arguments, root):
            return
        seen += 1
        if seen == number:
            tell(f"{event} {arguments[0]}")
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(die_in_time)


def _changes(event: str, arguments: tuple[Any, ...], root: Path) -> bool:
    if event == "open":
        writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        return bool(writes) and str(arguments[0]).startswith(str(root))
    return event in CHANGES and any(path.startswith(str(root)) for path in _paths(event, arguments))


def _paths(event: str, arguments: tuple[Any, ...]) -> list[str]:
    """The paths of a change, absolute: ``shutil.rmtree`` names files relative to a directory that it has open."""
    if event in IN_DIRECTORY and arguments[-1] >= 0:
        return [str(Path(os.readlink(f"/proc/self/fd/{arguments[-1]}"), arguments[0]))]
    return [str(argument) for argument in arguments]
