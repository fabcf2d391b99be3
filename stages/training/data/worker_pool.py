"""Worker processes that fail loudly: one that dies, at whatever moment, is noticed, and none outlives its parent.

``concurrent.futures`` and ``multiprocessing.Pool`` share queues between workers, so a worker that is killed while it
writes a result can leave their parent waiting for the rest of it for ever. Here every worker has a pipe of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

_FORK = multiprocessing.get_context("fork")


class WorkerDied(Exception):
    """A worker process ended before its work."""


class WorkerPool:
    """Processes that run one function, each a copy (``fork``) of this one as it is now.

    Args:
        size: how many processes.
        function: of the tasks' arguments; what it returns or raises must be picklable.
    """

    def __init__(self, size: int, function: Callable[..., bytes]) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[tuple[tuple[Any, ...], Future[bytes]]] = deque()
        self._busy: dict[Connection, Future[bytes]] = {}
        self._state: BaseException | None = None
        self._wake_reader, self._wake_writer = multiprocessing.Pipe(duplex=False)
        self._ends: list[Connection] = []
        self._processes = []
        for _ in range(size):
            ours, theirs = multiprocessing.Pipe()
            self._ends.append(ours)
            inherited = (*self._ends, self._wake_reader, self._wake_writer)
            process = _FORK.Process(target=_work, args=(theirs, inherited, function), daemon=True)
            process.start()
            theirs.close()  # else this process would hold it open when the worker dies
            self._processes.append(process)
        self._idle = list(self._ends)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def submit(self, *arguments: Any) -> Future[bytes]:
        """The function's result for these arguments, once a worker has it; raises WorkerDied from then on where one
        died."""
        future: Future[bytes] = Future()
        with self._lock:
            if self._state is not None:
                future.set_exception(self._state)
                return future
            self._waiting.append((arguments, future))
        self._wake_writer.send_bytes(b".")
        return future

    def drop(self, futures: Sequence[Future[bytes]]) -> None:
        """Forget tasks that no worker has begun; their futures never finish."""
        dropped = set(map(id, futures))
        with self._lock:
            self._waiting = deque(each for each in self._waiting if id(each[1]) not in dropped)

    def close(self) -> None:
        """End the workers at once; what they were doing is lost."""
        self._fail(WorkerDied("the workers were ended"))
        self._wake_writer.send_bytes(b".")
        self._thread.join()
        for process in self._processes:
            process.kill()
            process.join()
        for end in (*self._ends, self._wake_reader, self._wake_writer):
            end.close()

    def _serve(self) -> None:
        """Hand out tasks and take in results, until a worker dies or the pool is closed."""
        try:
            while self._hand_out():
                for end in wait([*self._ends, self._wake_reader]):
                    if end is self._wake_reader:
                        end.recv_bytes()
                        continue
                    self._take_in(end, *end.recv())
        except (EOFError, OSError):
            self._fail(WorkerDied("a worker process was killed"))
        except BaseException as error:  # without this thread, who asks for a result would wait for ever
            self._fail(error)

    def _hand_out(self) -> bool:
        """Give every idle worker a task, as long as there are some; False once the pool works no more."""
        with self._lock:
            while self._state is None and self._idle and self._waiting:
                end = self._idle.pop()
                arguments, self._busy[end] = self._waiting.popleft()
                end.send(arguments)
            return self._state is None

    def _take_in(self, end: Connection, done: bool, value: Any) -> None:
        with self._lock:
            future = self._busy.pop(end, None)
            self._idle.append(end)
        if future is not None:  # else the pool was closed meanwhile
            (future.set_result if done else future.set_exception)(value)

    def _fail(self, reason: BaseException) -> None:
        with self._lock:
            if self._state is not None:
                return
            self._state = reason
            unfinished = [*self._busy.values(), *(future for _, future in self._waiting)]
            self._waiting.clear()
            self._busy.clear()
        for future in unfinished:
            future.set_exception(reason)


def _work(pipe: Connection, inherited: Sequence[Connection], function: Callable[..., bytes]) -> None:
    """A worker's life: tasks in, results out, until the other end of the pipe is gone with the parent."""
    for end in inherited:  # a copy here would keep a pipe open whose process has died
        end.close()
    # SIGTERM ends a worker, whatever the parent makes of it; Ctrl-C is for the parent to answer.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EOFError, OSError):
        while True:
            pipe.send(_reply(function, pipe.recv()))
    os._exit(0)


def _reply(function: Callable[..., bytes], arguments: tuple[Any, ...]) -> tuple[bool, Any]:
    """Whether the function returned, and what; else what it raised."""
    try:
        return True, function(*arguments)
    except Exception as error:
        return False, _portable(error, f"in a worker process:\n{traceback.format_exc()}")


def _portable(error: Exception, note: str) -> Exception:
    """``error`` with a note; another one that says the same where pickle cannot rebuild it, as with many libraries'."""
    error.add_note(note)
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
        error.add_note(note)
    return error
