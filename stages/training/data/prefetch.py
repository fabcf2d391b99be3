"""Worker processes that tokenise and align the next blocks while the current one is trained on.

A worker is a copy (``fork``) of the trainer, split off before the trainer has loaded a model or touched an
accelerator, so it shares the tokenizers and costs little memory. It never touches an accelerator itself.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from stages.stage import StageError
from stages.training.data.blocks import Block, WindowMaker, distinct, divide, make_part, open_part
from stages.training.data.order import ReadingOrder, Readings
from stages.training.data.windows import Document
from stages.training.data.worker_pool import WorkerDied, WorkerPool

BLOCKS_AHEAD = 2

Outcome = list[bytes] | StageError
"""One process's parts of a block, or why there are none."""

Exchange = Callable[[Outcome], list[Outcome]]
"""Gives every process the outcomes of all, in the order of their ranks. Collective."""


def alone(outcome: Outcome) -> list[Outcome]:
    """The exchange of a single process."""
    return [outcome]


def at_the_start(epoch: int, block: int) -> float:
    """No part of the training is done: for makers to which it makes no difference."""
    return 0.0


@dataclass
class BlockSource:
    """Makes blocks: in this process when they are asked for, or ahead of that in ``workers`` others.

    Every process of the training makes its share of each block, and all get the whole.

    Attributes:
        documents: of which some are trained on; read in the process that makes windows of them.
        maker: cuts them into windows.
        order: in which order they are read.
        workers: processes; 0 for none.
        rank, world_size: this process among those of the training.
        exchange: with the others; may be set after the workers were started.
        should_stop: whether the stage was asked to stop, as its workers may have been.
        share_done: epoch, block -> share of the training that is done when a block is begun.
    """

    documents: Sequence[Document]
    maker: WindowMaker
    order: ReadingOrder
    workers: int = 0
    rank: int = 0
    world_size: int = 1
    exchange: Exchange = alone
    should_stop: Callable[[], bool] = lambda: False
    share_done: Callable[[int, int], float] = at_the_start
    _pool: WorkerPool | None = field(default=None, init=False)
    _pending: deque[_Pending] = field(default_factory=deque, init=False)

    def __post_init__(self) -> None:
        self.maker.prepare()
        if self.workers:
            with _tokenizers_without_threads():
                self._pool = WorkerPool(self.workers, partial(make_part, self.documents, self.maker))

    def get(self, epoch: int, number: int) -> Block:
        """A block. Collective: all processes of the training ask for the same blocks in the same order.

        Raises:
            StageError: a document cannot be read or trained on, or a worker died.
        """
        pending = self._next(epoch, number)
        self._plan_ahead(epoch, number)
        shares = divide(len(distinct(pending.readings)), self.world_size)
        outcomes = self.exchange(self._outcome(pending))
        for outcome in outcomes:
            if isinstance(outcome, StageError):
                raise outcome
        parts = [
            (documents, open_part(part))
            for share, outcome in zip(shares, outcomes, strict=True)
            for documents, part in zip(share, outcome, strict=True)
        ]
        return Block(epoch, number, pending.readings, parts, self.order)

    def close(self) -> None:
        """End the workers; what they were making is lost."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        self._pending.clear()

    def _next(self, epoch: int, number: int) -> _Pending:
        """What is under way of a block; whatever else was planned before it is dropped."""
        while self._pending:
            pending = self._pending.popleft()
            if (pending.epoch, pending.number) == (epoch, number):
                return pending
            if self._pool is not None:
                self._pool.drop(pending.futures)
        return self._plan(epoch, number)

    def _plan_ahead(self, epoch: int, number: int) -> None:
        """Have the workers go on with the blocks after the given one."""
        if self._pool is None:
            return
        for ahead in range(BLOCKS_AHEAD):
            epoch, number = (epoch, number + 1) if number + 1 < self.order.blocks(epoch) else (epoch + 1, 0)
            if ahead >= len(self._pending):
                self._pending.append(self._plan(epoch, number))

    def _plan(self, epoch: int, number: int) -> _Pending:
        readings = self.order.readings(epoch, number)
        numbers = distinct(readings)
        mine = divide(len(numbers), self.world_size)[self.rank]
        parts = [numbers[part.start : part.stop : part.step] for part in mine]
        done = self.share_done(epoch, number)
        futures = [None if self._pool is None else self._pool.submit(epoch, done, part) for part in parts]
        return _Pending(epoch, number, done, readings, parts, futures)

    def _outcome(self, pending: _Pending) -> Outcome:
        try:
            return [
                self._finish(pending.epoch, pending.done, numbers, future)
                for numbers, future in zip(pending.numbers, pending.futures, strict=True)
            ]
        except StageError as error:
            return error

    def _finish(self, epoch: int, done: float, numbers: Sequence[int], future: Future[bytes] | None) -> bytes:
        try:
            if future is not None:
                return future.result()
        except WorkerDied:
            # Who asks a stage to stop may ask all its processes; the step that is under way is still finished.
            if not self.should_stop():
                raise StageError(
                    "a data worker was killed (out of memory?): lower data_workers or shuffle_documents, or cut long "
                    "documents with document_bytes; the same command goes on from the last checkpoint"
                ) from None
        return make_part(self.documents, self.maker, epoch, done, numbers)


@dataclass
class _Pending:
    """A block that is being made: for each of this process's parts the documents, and who makes it if a worker does."""

    epoch: int
    number: int
    done: float
    readings: Readings
    numbers: list[list[int]]
    futures: list[Future[bytes] | None]


@contextmanager
def _tokenizers_without_threads() -> Iterator[None]:
    """Inside, ``tokenizers`` is told to use no threads: else every fork of a process that has used some says so."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
