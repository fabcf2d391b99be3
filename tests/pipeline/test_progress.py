"""How far stages are, told from what they write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import plan_of, planned

from pipeline.estimates import Estimate
from pipeline.plan import Plan
from pipeline.store import Store
from pipeline.views.display import clock
from pipeline.views.progress import Follower, Pace, is_remark, printable, share_of


@pytest.mark.parametrize(
    ("line", "share"),
    [
        ("step 1,200/5,000  loss 1.8312 (alm 1.2, ce 0.6)  41,000 tok/s  ETA 12m03s", 0.24),
        ("step 3/3", 1.0),
        ("generate: 30 of 120 documents", 0.25),
        ("score: 7 of this process's 28 shards were finished before", 0.25),
        ("evaluate: init, 20%", 0.2),
        ("cw2v: x: step 5 of 50, loss 0.4000", 0.1),
        ("peak memory: 1,200 MiB; the plan was at most 2,000 MiB", None),
        ("step 7/0", None),
        ("step 9/3", None),
        ("coverage 120%", None),
        ("ratio 3.5/4.5", None),
        ("starting", None),
    ],
)
def test_the_share_that_a_line_tells(line: str, share: float | None) -> None:
    assert share_of(line) == share


def test_the_time_that_remains_by_the_pace_so_far() -> None:
    pace = Pace()
    pace.update("step 10/100", 50.0)
    assert (pace.share, pace.remaining(50.0)) == (None, None)
    pace.update("step 20/100", 60.0)
    assert pace.share == 0.2
    assert pace.remaining(60.0) == pytest.approx(80.0)  # a tenth took 10 s, eight tenths remain
    pace.update("saved a checkpoint", 61.0)
    assert pace.share == 0.2
    pace.update("step 100/100", 140.0)
    assert pace.share == 1.0
    assert pace.remaining(140.0) is None


def test_a_count_that_does_not_grow_is_no_progress() -> None:
    pace = Pace()
    pace.update("translations of 200 of 400 tokens", 1.0)
    pace.update("aligning 10 of 40 words", 2.0)
    assert pace.share is None
    pace.update("aligning 20 of 40 words", 3.0)
    assert pace.share == 0.5
    pace.update("aligning 1 of 40 words", 4.0)  # another round
    assert pace.share is None


@given(st.integers(1, 10**6), st.integers(1, 50), st.floats(0.01, 1000))
def test_a_steady_pace_is_foretold_exactly(total: int, parts: int, seconds: float) -> None:
    total *= parts
    pace = Pace()
    for part in range(parts):
        pace.update(f"{part * total // parts:,}/{total:,} bytes", part * seconds)
        if part:
            assert pace.remaining(part * seconds) == pytest.approx((parts - part) * seconds, rel=1e-6)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0m00s"), (7.4, "0m07s"), (723, "12m03s"), (5999, "99m59s"), (11_100, "3h05m")]
)
def test_a_time_that_remains_as_text(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_remarks_are_told_from_progress() -> None:
    assert is_remark("warning: two tokens share a row")
    assert is_remark("evaluate: WARNING: few documents")
    assert is_remark("note: saved by 2 processes")
    assert not is_remark("step 3/4, footnote:s")


def test_nothing_that_steers_a_terminal_is_shown() -> None:
    assert printable("10%\r55%\r") == "55%"
    assert printable("\x1b[2J\x1b[31mred\x1b[0m\x1b]0;title\x07 a\x00b\x9bc") == "red abc"
    assert printable("Häuschen 東京 🙂") == "Häuschen 東京 🙂"


def followed(runs: Path) -> tuple[Plan, Follower, Path, list[float]]:
    store = Store(runs / "store")
    count = planned(store, "count", "count", {"steps": 4})
    say = planned(store, "say", "say", {"text": "x"})
    table = planned(store, "table", "table", {}, [say])
    plan = plan_of(runs, count, say, table)
    plan.run_directory.mkdir(parents=True)
    attempt = store.entry("count", count.key).path / "attempts" / "2"
    attempt.mkdir(parents=True)
    now = [100.0]
    return plan, Follower(plan, {"count": Estimate(60.0, 1)}, now=lambda: now[0]), attempt, now


def write(path: Path, *lines: object) -> None:
    with path.open("a") as file:
        file.writelines((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)


def test_a_run_is_followed_by_its_files(tmp_path: Path) -> None:
    plan, follower, attempt, now = followed(tmp_path)
    count, table = follower.stages["count"], follower.stages["table"]
    assert (count.state, follower.waits_for("table"), follower.waits_for("say")) == ("waiting", "waits for say", "")
    events = plan.run_directory / "events.jsonl"
    write(events, {"event": "started", "stage": "count", "attempt": 1}, {"event": "failed", "stage": "count"})
    write(events, {"event": "retrying", "stage": "count", "attempt": 1, "exit_code": 69, "retry": 1, "of": 2})
    assert follower.poll() == []
    assert (follower.stages["count"].state, follower.running) == ("retrying", [])
    write(events, {"event": "started", "stage": "count", "attempt": 2}, {"event": "cached", "stage": "say"})
    assert follower.poll() == []
    count = follower.stages["count"]
    assert (count.state, follower.stages["say"].state, follower.waits_for("table")) == ("running", "cached", "")
    now[0] = 110.0
    assert count.eta(110.0) == "0m50s"  # by an earlier run: 60 s
    write(attempt / "log.txt", "chatter\x1b[2J", "progress| step 1/4", "", "progress| step 2/4")
    write(attempt / "metrics.jsonl", {"step": 1, "loss": 2.5}, "{cut", {"step": 2, "student_tokens_per_second": 900})
    assert follower.poll() == [("count", "chatter")]
    assert (count.line, count.loss, count.speed, count.share) == ("step 2/4", 2.5, 900.0, 0.5)
    write(attempt / "log.txt", "progress| step 3/4  loss 2.1  ETA 1m40s")
    write(events, {"event": "finished", "stage": "count", "seconds": 12.5})
    follower.poll()
    assert (count.state, count.seconds, count.eta(now[0])) == ("finished", 12.5, "1m40s")
    write(attempt / "log.txt", "late")
    assert follower.poll() == []
    assert table.state == "waiting"


def test_what_was_there_before_the_run_is_not_followed(tmp_path: Path) -> None:
    plan, _, attempt, _ = followed(tmp_path)
    write(plan.run_directory / "events.jsonl", {"event": "started", "stage": "count", "attempt": 2})
    follower = Follower(plan, {})
    follower.poll()
    assert follower.running == []
    write(plan.run_directory / "events.jsonl", {"event": "started", "stage": "gone", "attempt": 1}, ["no", "object"])
    write(plan.run_directory / "events.jsonl", {"event": "failed", "stage": "count", "seconds": 1.0})
    follower.poll()
    assert follower.stages["count"].state == "failed"
    assert attempt.is_dir()
