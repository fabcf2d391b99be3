"""Ranks that outlived their attempt: their runner and their launcher were killed, and they may still be saving.

The locks of a run belong to the runner and the launcher, for a launcher does not hand descriptors on. So whoever takes
the locks next makes sure that no rank of an earlier attempt still writes into the same ``work``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import Locked
from pipeline.executing.supervise import ask_to_stop, kill_ranks, ranks_alive
from pipeline.store import Entry

_POLL_SECONDS = 0.2
_DEATH_SECONDS = 10.0


def end(entry: Entry, grace_seconds: float, check: Callable[[], None], show: Callable[[str], None]) -> None:
    """Have the ranks of the last attempt save and end, and return when they are gone.

    Args:
        entry: whose lock the caller holds.
        grace_seconds: how long they may take before they are killed.
        check: called at every poll; raises to give up waiting.
        show: prints one line for a person.

    Raises:
        Locked: some live on another machine, and do not end.
    """
    attempt = entry.last_attempt()
    if attempt is None or not (alive := ranks_alive(attempt.path)):
        return
    show(f"waiting for {' and '.join(alive)} of attempt {attempt.number}, which outlived its runner, to save")
    ask_to_stop(attempt.path)
    if not _gone(attempt.path, grace_seconds, check):
        kill_ranks(attempt.path)
        if not _gone(attempt.path, _DEATH_SECONDS, check):
            raise Locked(
                f"{' and '.join(ranks_alive(attempt.path))} of attempt {attempt.number} still work in {entry.work} and "
                "do not end; end them on their machine, then try again"
            )


def _gone(attempt: Path, seconds: float, check: Callable[[], None]) -> bool:
    deadline = time.monotonic() + seconds
    while ranks_alive(attempt):
        check()
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True
