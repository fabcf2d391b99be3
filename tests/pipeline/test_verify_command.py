"""A byte that changes in place: what every command says of it before and after ``pipeline verify``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import forked_stages
import pytest
import yaml
from forked_stages import recipe_of

from pipeline.cli import main
from pipeline.executing.locks import FileLock

STAGES = {
    "first": {"text": "a"},
    "second": {"text": "b", "needs": ["first"]},
    "third": {"text": "c", "needs": ["second"]},
}


@pytest.fixture(scope="module", autouse=True)
def _forked() -> Iterator[None]:
    with forked_stages.forked_stages():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run ``grown`` of three stages, and ``other``, which shares the first and is not finished."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe_of(STAGES)))
    (folder / "other.yaml").write_text(
        yaml.safe_dump(recipe_of({"first": {"text": "a"}, "last": {"text": "x", "needs": ["first"]}}, "other"))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", "nowhere://x")
        assert main(["run", "recipe.yaml"]) == 0
        assert main(["run", "other.yaml", "--only", "first"]) == 0
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(finished, tmp_path / "folder", symlinks=True)
    monkeypatch.chdir(tmp_path / "folder")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://x")
    return tmp_path / "folder"


def published(stage: str, name: str = "text.txt") -> Path:
    """The file itself, not through the links that people use."""
    return Path("runs/grown/stages", stage, "out", name).resolve()


def flip(path: Path, at: int = 0) -> bytes:
    """Change one bit and nothing else; returns what was there."""
    before = path.read_bytes()
    path.write_bytes(before[:at] + bytes([before[at] ^ 1]) + before[at + 1 :])
    return before


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    code = main(arguments)
    printed = capsys.readouterr()
    assert "fault in tokenferry" not in printed.err
    return code, printed.out + printed.err


def test_what_is_whole_is_said_to_be_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = said(capsys, "verify", "grown")
    assert code == 0
    assert text.splitlines()[:3] == ["whole    grown: first", "whole    grown: second", "whole    grown: third"]
    assert text.splitlines()[3].startswith("3 results, 0.000 GB: all whole")
    code, text = said(capsys, "verify")
    assert "whole    grown: first, other: first\n" in text, "a shared result is read once"
    assert "missing  other: last\n" in text
    assert code == 0, "what was not made yet is not damaged"


def test_a_changed_byte_is_found_named_and_made_anew(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(published("second"))
    assert said(capsys, "plan", "recipe.yaml", "--check")[0] == 0, "a plan looks at sizes alone"
    code, text = said(capsys, "verify", "grown")
    assert code == 1
    assert f"damaged  grown: second\n         {Path('runs') / 'store'}" in text
    assert "text.txt: its content changed (sha256 " in text
    assert "first\ndamaged" in text
    assert text.splitlines()[-1].split()[-2:] == ["resume", "grown"]
    code, text = said(capsys, "plan", "recipe.yaml", "--check")
    assert code == 3
    assert "result damaged" in text
    assert "pipeline verify" in " ".join(text.split())
    assert "missing" in said(capsys, "status", "grown")[1]
    code, text = said(capsys, "resume", "grown")
    assert code == 0
    assert "second: attempt 2" in text
    assert published("second").read_text() == "b(a())"
    assert said(capsys, "verify", "grown")[0] == 0
    assert said(capsys, "plan", "recipe.yaml", "--check")[0] == 0


def test_every_damaged_file_is_in_the_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(published("second"))
    published("second", "metrics.json").unlink()
    published("third").write_text("longer than it was")
    capsys.readouterr()
    assert main(["verify", "grown", "--json"]) == 1
    printed = capsys.readouterr()
    record = json.loads(printed.out)
    assert record["schema_version"] == 1
    found = {tuple(result["stages"]["grown"]): result for result in record["results"]}
    assert [found[stage,]["state"] for stage in STAGES] == ["whole", "damaged", "damaged"]
    problems = {Path(each["path"]).name: each["problem"] for each in found["second",]["problems"]}
    assert problems["metrics.json"] == "it is missing"
    assert problems["text.txt"].startswith("its content changed (sha256 ")
    (problem,) = found["third",]["problems"]
    assert problem["problem"] == "it has 18 bytes instead of 9"


def test_files_that_were_put_back_count_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = flip(published("first"))
    assert said(capsys, "verify")[0] == 1
    published("first").write_bytes(before)
    assert said(capsys, "plan", "recipe.yaml", "--check")[0] == 3, "it takes a verification to know"
    assert said(capsys, "verify")[0] == 0
    assert said(capsys, "plan", "recipe.yaml", "--check")[0] == 0


def test_damage_of_a_result_that_is_at_work_is_said_and_not_noted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(published("third"))
    entry = Path("runs/grown/stages/third").resolve()
    with FileLock(entry / "stage.lock").acquire():
        code, text = said(capsys, "verify", "grown")
    assert code == 1
    assert "not noted: some process is at work on it" in text
    assert "resume grown --force third" in text
    assert not (entry / "damage.json").exists()


@pytest.mark.parametrize("field", ["key", "seconds", "result_id", "size"])
def test_a_digit_that_changes_in_the_record_is_noticed_by_every_command(
    folder: Path, capsys: pytest.CaptureFixture[str], field: str
) -> None:
    record = Path("runs/grown/stages/second/DONE.json").resolve()
    text = record.read_text()
    at = next(i for i in range(text.index(f'"{field}": ') + len(field) + 4, len(text)) if text[i].isdigit())
    changed = text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :]
    json.loads(changed)
    record.write_text(changed)
    code, said_by_plan = said(capsys, "plan", "recipe.yaml", "--check", "--json")
    assert code == 3
    assert "result damaged: DONE.json changed since it was written: its checksum differs" in said_by_plan
    code, said_by_verify = said(capsys, "verify", "grown")
    assert code == 1
    assert "DONE.json changed since it was written: its checksum differs" in said_by_verify
    assert said(capsys, "status", "grown")[0] == 0
    assert said(capsys, "run", "recipe.yaml")[0] == 0
    assert said(capsys, "verify", "grown")[0] == 0


def test_an_unknown_run_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = said(capsys, "verify", "grwon")
    assert code == 2
    assert "did you mean 'grown'" in text
