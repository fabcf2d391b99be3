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
        leader, seen = os.getpid(), 0

        def die_in_time(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if (os.getpid() == leader) != (who == "leader") or not _changes(event, arguments, root):
                return
            seen += 1
            if seen == number:
                os.write(told_to, f"{event} {arguments[0]}".encode())
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(die_in_time)
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


def _changes(event: str, arguments: tuple[Any, ...], root: Path) -> bool:
    if event == "open":
        writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        return bool(writes) and str(arguments[0]).startswith(str(root))
    return event in CHANGES and any(str(argument).startswith(str(root)) for argument in arguments)
