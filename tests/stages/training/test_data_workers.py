"""Worker processes give what the trainer would have made, tell what went wrong, and end with the trainer."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from window_world import Numbered, names, numbered, source

from stages.stage import StageError
from stages.training.data.prefetch import BLOCKS_AHEAD
from stages.training.data.stream import WindowStream
from stages.training.data.worker_pool import WorkerDied, WorkerPool


class Failing(Numbered):
    """Refuses one document."""

    def make(self, document, number, epoch, done):
        if number == 31:
            raise StageError(f"document {document.id}: cannot be read; repair line 31")
        return super().make(document, number, epoch, done)


class Reporting(Numbered):
    """Says in ``directory`` which process made which document."""

    directory: Path

    def make(self, document, number, epoch, done):
        (self.directory / f"{os.getpid()}-{epoch}-{number}").touch()
        return super().make(document, number, epoch, done)


def _reports(directory: Path) -> tuple[set[int], list[tuple[int, int]]]:
    """The processes, and what was made: (epoch, document)."""
    found = [tuple(int(part) for part in path.name.split("-")) for path in directory.iterdir()]
    return {process for process, *_ in found}, sorted((epoch, number) for _, epoch, number in found)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(workers):
    maker = Numbered(lambda number: number % 3)
    alone = WindowStream(source(numbered(150), maker, seed=2, block_documents=70))
    expected = [names(alone.take(40)) for _ in range(9)]
    with closing(source(numbered(150), maker, seed=2, block_documents=70, workers=workers)) as blocks:
        data = WindowStream(blocks)
        assert [names(data.take(40)) for _ in range(4)] == expected[:4]
        state = data.state()
        assert [names(data.take(40)) for _ in range(5)] == expected[4:]
        assert data.account == alone.account
        data.restore(state)  # to a block that is neither at hand nor under way
        assert names(data.take(40)) == expected[4]


def test_workers_run_ahead_by_so_many_blocks_and_no_further(tmp_path):
    maker = Reporting()
    object.__setattr__(maker, "directory", tmp_path)
    with closing(source(numbered(640), maker, block_documents=64, workers=2)) as blocks:
        WindowStream(blocks).take(1)
        ahead = 64 * (1 + BLOCKS_AHEAD)
        deadline = time.monotonic() + 30
        while len(list(tmp_path.iterdir())) < ahead and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
        processes, made = _reports(tmp_path)
    assert len(made) == len(set(made)) == ahead
    assert os.getpid() not in processes
    assert len(processes) <= 2


def test_what_a_worker_finds_wrong_reaches_the_user_unchanged():
    with closing(source(numbered(40), Failing(), workers=1)) as blocks, pytest.raises(StageError) as caught:
        blocks.get(0, 0)
    assert str(caught.value) == "document d/31: cannot be read; repair line 31"


def test_every_rank_learns_what_one_of_them_found_wrong():
    # Else the others would wait for it until the launcher ends them, and the user would see their message.
    def exchange(mine):
        return [mine, StageError("document d/1 of another rank")]

    blocks = source(numbered(4), rank=0, world_size=2, exchange=exchange)
    with pytest.raises(StageError, match="document d/1 of another rank"):
        blocks.get(0, 0)


def _children() -> set[psutil.Process]:
    return {child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE}


def test_a_killed_worker_is_a_clear_error_unless_the_stage_was_asked_to_stop():
    asked, others = False, _children()
    alone = source(numbered(300), block_documents=50)
    with closing(source(numbered(300), block_documents=50, workers=1, should_stop=lambda: asked)) as blocks:
        blocks.get(0, 0)
        (_children() - others).pop().kill()
        with pytest.raises(StageError, match=r"a data worker was killed \(out of memory\?\): lower data_workers"):
            blocks.get(0, 5)
        # Who asks a stage to stop may ask its workers too; what the last step needs is then made here.
        asked = True
        assert names(list(blocks.get(0, 5))) == names(list(alone.get(0, 5)))


def _slow_and_large(seconds: float, size: int) -> bytes:
    time.sleep(seconds)
    return b"x" * size


def _raise(size: int) -> bytes:
    raise ValueError(f"{size} is wrong")


@pytest.mark.parametrize("delay", [0.0, 0.004, 0.008, 0.012, 0.02, 0.03, 0.05])
def test_a_worker_that_dies_while_it_writes_is_noticed(delay):
    # Results far larger than a pipe's buffer: what is killed then has written a part of one.
    with closing(WorkerPool(2, _slow_and_large)) as pool:
        futures = [pool.submit(0.0, 30_000_000) for _ in range(40)]
        time.sleep(delay)
        pool._processes[0].kill()
        with pytest.raises(WorkerDied):
            [future.result(timeout=30) for future in futures]
        with pytest.raises(WorkerDied):
            pool.submit(0.0, 1).result(timeout=30)


def test_tasks_that_are_dropped_are_not_begun():
    with closing(WorkerPool(1, _slow_and_large)) as pool:
        begun = pool.submit(0.3, 1)
        dropped = [pool.submit(60.0, 1) for _ in range(3)]
        wanted = pool.submit(0.0, 3)
        time.sleep(0.1)
        pool.drop(dropped)
        assert begun.result(timeout=30) == b"x"
        assert wanted.result(timeout=30) == b"xxx"


def test_an_error_that_nobody_expected_says_where_in_the_worker_it_was():
    with closing(WorkerPool(1, _raise)) as pool, pytest.raises(ValueError, match="7 is wrong") as caught:
        pool.submit(7).result(timeout=30)
    assert "in _raise" in caught.value.__notes__[0]


class _Unpicklable(Exception):
    """Like those of HTTP libraries: it can be pickled, and not be rebuilt."""

    def __init__(self, message: str, *, response: int) -> None:
        super().__init__(f"{message}: {response}")


def _refuse() -> bytes:
    raise _Unpicklable("the server says", response=503)


def test_an_error_that_pickle_cannot_rebuild_ends_the_wait_for_it():
    with (
        closing(WorkerPool(1, _refuse)) as pool,
        pytest.raises(RuntimeError, match="_Unpicklable: the server says: 503"),
    ):
        pool.submit().result(timeout=20)


class _Unpicklable(Exception):
    """Like those of HTTP libraries: it can be pickled, and not be rebuilt."""

    def __init__(self, message: str, *, response: int) -> None:
        super().__init__(f"{message}: {response}")


def _refuse() -> bytes:
    raise _Unpicklable("the server says", response=503)


def test_workers_end_when_the_trainer_is_killed(tmp_path):
    script = tmp_path / "trainer.py"
    script.write_text(
        "import sys, time\n"
        f"sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[3])]!r}\n"
        "from window_world import numbered, source\n"
        "blocks = source(numbered(100), workers=3)\n"
        "blocks.get(0, 0)\n"
        "import psutil\n"
        "print(*[child.pid for child in psutil.Process().children()], flush=True)\n"
        "time.sleep(600)\n"
    )
    trainer = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    try:
        workers = [psutil.Process(int(number)) for number in trainer.stdout.readline().split()]
    finally:
        trainer.kill()
        trainer.wait()
    assert len(workers) == 3
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []


def test_closing_ends_the_workers():
    others = _children()
    blocks = source(numbered(100), workers=2)
    workers = _children() - others
    assert len(workers) == 2
    blocks.close()
    assert psutil.wait_procs(workers, timeout=20)[1] == []
