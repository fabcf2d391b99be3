"""What ``clean --work`` would cost is said before it is paid."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import forked_stages
import pytest
import yaml
from forked_stages import recipe_of

from pipeline.cli import main


@pytest.fixture(scope="module", autouse=True)
def _forked() -> Iterator[None]:
    with forked_stages.forked_stages():
        yield


@pytest.fixture
def interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The entry of a stage ``grown/first`` that was interrupted at step 1 twice, after 2 h and after 1.5 h."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://x")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_of({"first": {"text": "a", "fate": "stop"}})))
    assert main(["run", "recipe.yaml"]) == 75
    (entry,) = (tmp_path / "runs" / "store" / "seed").iterdir()
    first = json.loads((entry / "attempts" / "1" / "status.json").read_text())
    for number, hours in ((1, 2.0), (2, 1.5)):
        attempt = entry / "attempts" / str(number)
        attempt.mkdir(exist_ok=True)
        (attempt / "status.json").write_text(json.dumps(first | {"ended": first["started"] + hours * 3600}))
    return entry


def test_stage_step_and_hours_are_said_first(interrupted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["clean", "--work"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "work  (" in line)
    assert "grown/first: unfinished at step 1, 3 h 30 min of work; begun anew without it" in line
    assert (interrupted / "work" / "ckpt" / "step-1").exists()
    assert main(["clean", "--work", "--json"]) == 0
    facts = {Path(each["path"]).name: each for each in json.loads(capsys.readouterr().out)["leftovers"]}
    assert facts["work"]["lost"] == {"stages": ["grown/first"], "point": "step 1", "seconds": 3.5 * 3600}


def test_an_attempt_that_was_killed_counts_until_it_last_wrote(
    interrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = interrupted / "attempts" / "2" / "status.json"
    record = json.loads(status.read_text())
    del record["ended"]
    status.write_text(json.dumps(record | {"state": "running", "started": status.stat().st_mtime - 1800}))
    capsys.readouterr()
    assert main(["clean", "--work"]) == 0
    assert "2 h 30 min of work" in capsys.readouterr().out
    status.write_text(json.dumps(record | {"started": status.stat().st_mtime + 86_400}))
    assert main(["clean", "--work"]) == 0
    assert "2 h 00 min of work" in capsys.readouterr().out, "the clock was set back: no negative hours"
