"""Fixtures of the command-line tests."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path

import pytest
from e2e_helpers import TINY_STEPS, Workplace

TRAINED = ("distill", "stochastok", "evaluate")
"""Kinds of stages that a prepared workplace lacks."""


@pytest.fixture(scope="session")
def tiny_overrides(tiny_tokenizer_dirs, tiny_model_dir) -> dict[str, object]:
    """Overrides of the quickstart: two-layer models of width 32 and a tokenizer of 400 ids, a few steps."""
    return {
        "models.teacher.model": tiny_model_dir(tiny_tokenizer_dirs[0], seed=3),
        "models.student.tokenizer": tiny_tokenizer_dirs[1],
        **TINY_STEPS,
    }


@pytest.fixture
def workplace(tmp_path, tiny_overrides) -> Workplace:
    return Workplace(tmp_path, dict(tiny_overrides))


@pytest.fixture(scope="session")
def finished(tmp_path_factory, tiny_overrides) -> tuple[Workplace, str]:
    """A workplace in which the quickstart has run once, and what it printed; the processes of a test run share it."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    directory, record = shared / "finished", shared / "finished.json"
    with (shared / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not record.exists():
            directory.mkdir()
            place = Workplace(directory, dict(tiny_overrides))
            code, output = place.run("run")
            assert code == 0, output
            overrides = {name: str(value) for name, value in place.overrides.items()}
            record.write_text(json.dumps({"overrides": overrides, "output": output}), encoding="utf-8")
    facts = json.loads(record.read_text(encoding="utf-8"))
    return Workplace(directory, facts["overrides"]), facts["output"]


@pytest.fixture
def own_finished(tmp_path, finished) -> Workplace:
    """The same in a copy, for tests that run it with other options."""
    shared, _ = finished
    shutil.copytree(shared.directory / "runs", tmp_path / "own" / "runs", symlinks=True)
    return Workplace(tmp_path / "own", dict(shared.overrides))


@pytest.fixture
def prepared(tmp_path, finished) -> Workplace:
    """A workplace of its own whose store already holds what the quickstart trains on: everything up to ``init``."""
    place, _ = finished
    shutil.copytree(
        place.directory / "runs" / "store",
        tmp_path / "runs" / "store",
        symlinks=True,
        ignore=lambda directory, names: set(TRAINED) & set(names) if Path(directory).name == "store" else set(),
    )
    return Workplace(tmp_path, dict(place.overrides))
