from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import toys  # registers the toy stages

from pipeline import clean
from pipeline.cli import main
from pipeline.executing.locks import FileLock

RECIPE = """\
name: {name}
stages:
  hello: {{uses: say, text: {text}}}
  joined: {{uses: join, needs: [hello]}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a run that has results of its own and of an earlier recipe."""
    assert toys.Say
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://x")
    for text in ("old", "new"):
        (tmp_path / "recipe.yaml").write_text(RECIPE.format(name="words", text=text))
        assert main(["run", "recipe.yaml"]) == 0
    return tmp_path


def entries(folder: Path) -> list[str]:
    """What ``say`` entries in the store say."""
    return sorted(path.read_text() for path in folder.glob("runs/store/say/*/out.*/text.txt"))


def test_what_no_run_needs_is_listed_first_and_deleted_when_asked(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["clean"]) == 0
    assert "in 2 places; nothing was deleted: --yes deletes them" in capsys.readouterr().out
    assert entries(folder) == ["new", "old"]
    assert main(["clean", "--yes"]) == 0
    assert entries(folder) == ["new"]
    assert list(folder.glob("runs/store/*/.deleted-*")) == []
    capsys.readouterr()
    assert main(["plan", "recipe.yaml", "--check"]) == 0, "what the run needs is all there"
    assert main(["clean", "--yes"]) == 0
    assert "nothing to delete" in capsys.readouterr().out


def test_results_that_another_run_needs_stay(folder: Path) -> None:
    (folder / "other.yaml").write_text(RECIPE.format(name="other", text="old"))
    assert main(["run", "other.yaml"]) == 0
    assert main(["clean", "--yes"]) == 0
    assert entries(folder) == ["new", "old"]
    shutil.rmtree(folder / "runs" / "other")
    assert main(["clean", "--yes"]) == 0
    assert entries(folder) == ["new"]


def test_the_newest_of_each_kind_can_be_spared(folder: Path) -> None:
    assert main(["clean", "--yes", "--keep-last", "1"]) == 0
    assert entries(folder) == ["new", "old"]


def test_what_is_at_work_stays(folder: Path) -> None:
    old = next(path.parents[1] for path in folder.glob("runs/store/say/*/out.*/text.txt") if path.read_text() == "old")
    with FileLock(old / clean.LOCK).acquire():
        listed = clean.leftovers(folder / "runs", work=False, keep_last=0)
        assert old not in [leftover.path for leftover in listed], "it is not even listed"
        assert main(["clean", "--yes"]) == 0
        assert entries(folder) == ["new", "old"]
    found = clean.leftovers(folder / "runs", work=False, keep_last=0)
    with FileLock(old / clean.LOCK).acquire():
        clean.delete(found)
        assert entries(folder) == ["new", "old"], "somebody began to work on it after it was listed"


def test_unfinished_work_of_a_run_goes_only_when_asked(folder: Path) -> None:
    (folder / "recipe.yaml").write_text("name: words\nstages:\n  one: {uses: misbehave, how: stage error}\n")
    assert main(["run", "recipe.yaml"]) == 1
    (entry,) = folder.glob("runs/store/misbehave/*")
    (entry / "work" / "saved").write_text("steps")
    assert main(["clean", "--yes"]) == 0
    assert (entry / "work" / "saved").exists()
    assert main(["clean", "--yes", "--work"]) == 0
    assert not (entry / "work").exists()
    assert (entry / "attempts").exists()


def test_nothing_is_deleted_while_a_run_cannot_be_understood(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "runs" / "words" / "recipe.resolved.yaml").write_text("name: words\nstages: {hello: {uses: sya}}\n")
    assert main(["clean", "--yes"]) == 1
    error = capsys.readouterr().err
    assert "what run 'words' needs cannot be told, so nothing is deleted" in error
    assert "did you mean 'say'?" in error
    assert entries(folder) == ["new", "old"]


def test_links_that_lead_out_of_the_store_are_not_followed(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "precious").write_text("x")
    (folder / "runs" / "store" / "say" / "link").symlink_to(outside)
    (folder / "runs" / "store" / "linked").symlink_to(outside.parent)
    assert main(["clean", "--yes"]) == 0
    assert (outside / "precious").exists()


def test_a_run_leads_to_nothing_of_earlier_options(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not even while it is brought up to date: an old evaluation beside a new model would mislead."""
    (folder / "recipe.yaml").write_text(RECIPE.format(name="words", text="newer"))
    capsys.readouterr()
    assert main(["run", "recipe.yaml", "--until", "hello"]) == 0
    note = (
        "note: the results of hello, joined of earlier options or inputs stay in the store until `pipeline clean --yes`"
    )
    assert note in capsys.readouterr().out
    run = folder / "runs" / "words"
    assert (run / "stages" / "hello" / "out" / "text.txt").read_text() == "newer"
    assert not (run / "stages" / "joined").exists()
    assert (run / "earlier" / "joined" / "out" / "text.txt").read_text() == "new"
    assert not os.path.isabs(os.readlink(run / "earlier" / "joined"))
    assert main(["plan", "recipe.yaml"]) == 0
    assert "upstream hello changed" in (said := capsys.readouterr().out), "what it had before is still known"
    assert "note: the results of" not in said, "it is said once"
    assert main(["clean", "--yes"]) == 0
    assert (run / "earlier" / "joined" / "out" / "text.txt").exists(), "until there is a new one"
    assert main(["run", "recipe.yaml"]) == 0
    assert not (run / "earlier" / "joined").is_symlink()
    assert main(["clean", "--yes"]) == 0
    assert [path.read_text() for path in folder.glob("runs/store/join/*/out.*/text.txt")] == ["newer"]


def test_the_note_is_about_results_that_are_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clean", "--yes"]) == 0
    capsys.readouterr()
    assert main(["plan", "recipe.yaml"]) == 0
    assert main(["plan", "recipe.yaml", "--set", "name=other", "--set", "hello.text=x"]) == 0
    assert "note: the results of" not in capsys.readouterr().out
    assert main(["plan", "recipe.yaml", "--set", "hello.text=x"]) == 0
    assert "note: the results of hello, joined of earlier" in capsys.readouterr().out
