from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from toys import plan_of, planned

from pipeline import estimates as module
from pipeline.estimates import Estimate, NoRoom, check_room, estimates
from pipeline.plan import Plan, PlannedStage
from pipeline.runner import execute
from pipeline.store import Store


def counting(store: Store, seconds: float | None = None, **config: float) -> PlannedStage:
    """A stage that counts; if ``seconds`` are given, one that was made and is recorded to have taken that long."""
    stage = planned(store, "count", "count", config)
    if seconds is not None:
        execute(plan_of(store.root.parent, stage), out=lambda line: None)
        path = store.entry("count", stage.key).done_path
        record = json.loads(path.read_text()) | {"seconds": seconds}
        del record["checksum"]  # as records of before it was there
        path.write_text(json.dumps(record))
    return stage


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    return Store(tmp_path / "store")


def plan(store: Store, *stages: PlannedStage) -> Plan:
    return plan_of(store.root.parent, *stages)


def test_nothing_is_expected_of_a_kind_that_never_ran(store: Store) -> None:
    assert estimates(plan(store, counting(store, steps=4))) == {}


def test_the_most_alike_result_counts_in_proportion_to_its_steps(store: Store) -> None:
    counting(store, 10.0, steps=2, stubborn=False)
    counting(store, 99.0, steps=2, stubborn=True)
    expected = estimates(plan(store, counting(store, steps=6, stubborn=False)))["count"]
    assert expected.seconds == 30.0
    made = store.entry("count", counting(store, steps=2, stubborn=False).key).done()
    assert expected.bytes == made.size > 0


def test_what_is_up_to_date_takes_no_time_and_a_damaged_result_says_nothing(store: Store) -> None:
    counting(store, 5.0, steps=2)
    assert estimates(plan(store, counting(store, steps=2))) == {}
    path = store.entry("count", counting(store, steps=2).key).done_path
    path.write_text(path.read_text()[:-40])
    assert estimates(plan(store, counting(store, steps=3))) == {}


def test_a_run_that_the_disk_cannot_hold_is_not_begun(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000))
    stages = [replace(counting(store, steps=1), name=name) for name in ("small", "large")]
    check_room(plan(store, *stages), {"small": Estimate(1.0, 400), "large": Estimate(1.0, 600)})
    with pytest.raises(NoRoom, match=r"1,000 bytes free; .* about 1,100, large alone 700\."):
        check_room(plan(store, *stages), {"small": Estimate(1.0, 400), "large": Estimate(1.0, 700)})
