"""``pipeline init``: a recipe on somebody's own text that is valid as it stands, and nothing overwritten."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli import main
from pipeline.reading.loading import load_recipe
from pipeline.recipe import Recipe
from pipeline.starting.held_out import held_out_of, split
from pipeline.starting.starter import USES
from stages.document_sets import DocumentSet


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a text of 40 paragraphs and no terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    (tmp_path / "story.txt").write_text("\n\n".join(f"Paragraph {number}. {'Words. ' * 150}" for number in range(40)))
    return tmp_path


def made(name: str) -> Recipe:
    return load_recipe(Path(f"{name}.yaml"))


@pytest.mark.demo
@pytest.mark.parametrize("use", USES)
def test_a_first_recipe_is_valid_as_it_is(folder: Path, use: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "mine", "--use", use, "--train", "story.txt"]) == 0
    assert "mine.yaml is written" in capsys.readouterr().out
    assert main(["validate", "mine.yaml"]) == 0
    assert "note:" not in capsys.readouterr().out, "nothing in it is unused"
    assert main(["run", "mine.yaml", "--dry-run"]) == 0
    assert all(len(line) <= 120 for line in Path("mine.yaml").read_text().splitlines())


@pytest.mark.demo
def test_the_commands_in_a_first_recipe_work(folder: Path) -> None:
    for use in USES:
        assert main(["init", use, "--use", use, "--train", "story.txt"]) == 0
        shown = [line[4:].split("  ")[0].split() for line in Path(f"{use}.yaml").read_text().splitlines()]
        runs = [words[1:] for words in shown if words[:2] == ["pipeline", "run"]]
        assert len(runs) == 2
        for words in runs:
            assert main([*words, "--dry-run"]) == 0


def test_what_each_use_is_for(folder: Path) -> None:
    for use in USES:
        assert main(["init", use, "--use", use, "--train", "story.txt"]) == 0
    assert made("byteify").stages["sources/tokenizer"].config.tokenizer.bytes
    assert made("byteify").stages["init"].config.expand_input == "longest_suffix"
    distil = made("distil")
    assert distil.stages["sources/tokenizer"].config.tokenizer.file == distil.stages["sources/student"].config.model
    stochastok = made("stochastok").stages
    assert (stochastok["stochastok"].config.proportion, stochastok["control"].config.proportion) == (0.1, 0)
    assert stochastok["stochastok"].config.steps == stochastok["control"].config.steps


def test_models_that_are_named(folder: Path) -> None:
    words = ["--teacher", "org/large", "--student", "org/small", "--target-tokenizer", "org/other"]
    assert main(["init", "mine", *words, "--train", "story.txt"]) == 0
    stages = made("mine").stages
    assert stages["sources/teacher"].config.model == "org/large"
    assert stages["sources/student"].config.model == "org/small"
    assert stages["sources/tokenizer"].config.tokenizer.file == "org/other"
    assert stages["align"].config.digits == "refuse"
    names = [entry.name for entry in stages["distill"].config.losses]
    assert names == ["alm", "cross_entropy"], "other layers cannot be compared with these"


def test_some_is_held_out_and_none_of_it_trained_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (folder / "story.txt").read_text()
    assert main(["init", "--train", "story.txt"]) == 0
    recipe = yaml.safe_load(Path("first.yaml").read_text())
    assert recipe["data"] == {
        "train": [{"name": "story", "path": "first-data/train/story.jsonl"}],
        "eval": [{"name": "story", "path": "first-data/eval/story.jsonl"}],
    }
    train, held_out = (
        [json.loads(line)["text"] for line in Path(recipe["data"][part][0]["path"]).read_text().splitlines()]
        for part in ("train", "eval")
    )
    shown = capsys.readouterr().out
    assert "story: 34 documents to train on, 6 held out\n" in shown
    assert "note: story: with fewer than 10 held-out documents the intervals are wide" in shown
    assert (len(train), len(held_out)) == (34, 6), "small texts are cut finer, and more than a tenth is held out"
    assert all(len(document.encode()) <= 2000 for document in train + held_out)
    in_order = sorted(train + held_out, key=text.index)
    assert [in_order.index(document) for document in held_out] == [3, 10, 16, 23, 30, 36]
    assert "".join(in_order) == text


def test_records_and_conversations_are_recognised(folder: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (folder / "chat.jsonl").write_text(f"{json.dumps(chat)}\n" * 3)
    (folder / "other.jsonl").write_text('{"body": "x y"}\n' * 3)
    assert main(["init", "talk", "--train", "chat.jsonl", "--eval", "story.txt"]) == 0
    assert yaml.safe_load(Path("talk.yaml").read_text())["data"]["train"] == [
        {"name": "chat", "path": "chat.jsonl", "messages": "messages"}
    ]
    assert main(["init", "held", "--train", "chat.jsonl"]) == 0
    assert json.loads(Path("held-data/eval/chat.jsonl").read_text()) == chat
    assert main(["init", "body", "--train", "other.jsonl", "--text", "body"]) == 0
    assert Path("body-data/train/other.jsonl").read_text() == '{"text": "x y"}\n' * 2


def test_text_of_the_hub_is_streamed(folder: Path) -> None:
    assert main(["init", "--train", "hub:datasets/org/text", "--eval", "story.txt"]) == 0
    (documents,) = made("first").stages["sources/train"].config.documents
    assert (documents.name, documents.stream) == ("text", True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "what shall it train on?"),
        (["--train", "stroy.txt"], "stroy.txt: no such file or directory; did you mean story.txt"),
        (["--train", "short.txt"], "has one document of at most 2000 bytes: name held-out text with --eval"),
        (["--train", "empty.txt"], "empty.txt: the file is empty"),
        (["--train", "story.txt", "again/story.txt", "--eval", "short.txt"], "several files are called story"),
        (["--train", "other.jsonl"], "other.jsonl:1: the text is not in a field 'text'; say with --text which: body"),
        (["--train", "hub:datasets/org/text"], "is not copied: name held-out text with --eval"),
        (["--train", "story.txt", "--teacher", "nowhere"], "'nowhere' is no path that exists"),
        (
            ["--train", "story.txt", "--use", "byteify", "--target-tokenizer", "org/t"],
            "--target-tokenizer is for --use",
        ),
        (
            ["--train", "story.txt", "--use", "stochastok", "--student", "org/s"],
            "--student is not for --use stochastok",
        ),
        (["a name", "--train", "story.txt"], "'a name' is not a name"),
        (["../up", "--train", "story.txt"], "'../up' is not a name"),
        (["a/b", "--train", "story.txt"], "'a/b' is not a name"),
        (["n" * 300, "--train", "story.txt"], "a name of 300 characters: use at most 120"),
        (["--train", "story.txt", "--text", "body"], "--text body: none of these files has records with fields"),
        (["--train", "table.csv"], "table.csv: .csv would be read as plain text, with its commas"),
        (["--train", "${name}.txt"], "${name}.txt: ${ stands for another value in a recipe: rename it"),
        (["--train", "story.txt", "--teacher", "${name}"], "${name}: ${ stands for another value"),
    ],
)
def test_what_cannot_be_begins_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    (folder / "short.txt").write_text("short")
    (folder / "empty.txt").write_text("")
    (folder / "other.jsonl").write_text('{"body": "x"}\n')
    (folder / "table.csv").write_text("text,label\n" + "some words,1\n" * 2000)
    (folder / "${name}.txt").write_text("some words\n\n" * 2000)
    (folder / "again").mkdir()
    (folder / "again" / "story.txt").write_text("x")
    before = sorted(folder.rglob("*"))
    assert main(["init", *words]) == 2
    assert message in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before


def test_nothing_is_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--train", "story.txt"]) == 0
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(["init", "--train", "story.txt"]) == 2
    assert "first.yaml is there already" in capsys.readouterr().err
    Path("first.yaml").rename("kept.yaml")
    assert main(["init", "--train", "story.txt"]) == 2
    assert "first-data/train/story.jsonl is there already" in capsys.readouterr().err
    assert not Path("first.yaml").exists()
    assert {path for path in folder.rglob("*") if path.is_file()} == {*files, folder / "kept.yaml"} - {
        folder / "first.yaml"
    }


class Terminal(io.StringIO):
    """Answers that somebody types."""

    def isatty(self) -> bool:
        return True


def test_questions_are_asked_for_what_is_not_given(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("byteiffy\nbyteify\nasked\n\n\nstory.txt\n\n"))
    assert main(["init"]) == 0
    out = capsys.readouterr().out
    assert "there is no 'byteiffy' (did you mean 'byteify'?)" in out
    assert "Tokenizer that it shall get" not in out
    assert "Files of text to train on (at least one): " in out, "brackets would promise an answer"
    assert made("asked").stages["sources/tokenizer"].config.tokenizer.bytes


def test_file_names_are_asked_for_as_a_shell_takes_them(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "story.txt").rename("my story.txt")
    monkeypatch.setattr("sys.stdin", Terminal("byteify\nasked\n\n\n'my story.txt\n'my story.txt'\n\n"))
    assert main(["init"]) == 0
    assert "a quote is not closed" in capsys.readouterr().out
    assert (folder / "asked-data" / "train" / "my story.jsonl").is_file()


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a place to which not even root can write")
def test_a_place_where_nothing_can_be_written(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    story = folder / "story.txt"
    monkeypatch.chdir("/proc/self")  # which nobody can write to
    assert main(["init", "--train", str(story)]) == 2
    assert "first.yaml cannot be written: No such file or directory" in capsys.readouterr().err


def test_no_answer_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("transfer\n"))
    assert main(["init"]) == 2
    assert "no answer: nothing was written" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["story.txt"]


@given(count=st.integers(2, 60))
def test_every_document_is_in_one_of_the_parts(count: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("split")
    texts = [f"document {number}" for number in range(count)]
    (directory / "all.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))
    documents = DocumentSet(path="all.jsonl")
    counts = split(documents, directory / "all.jsonl", directory / "train.jsonl", directory / "eval.jsonl")
    parts = [
        [json.loads(line)["text"] for line in (directory / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "eval")
    ]
    assert counts == (len(parts[0]), len(parts[1]))
    assert sorted(parts[0] + parts[1]) == sorted(texts)
    assert len(parts[1]) == max(1, min(6, count // 4), count // 10)


def test_what_is_held_out_is_spread_over_the_text() -> None:
    assert held_out_of(2) == {1}
    assert held_out_of(8) == {2, 6}
    assert held_out_of(19) == {2, 7, 11, 16}
    assert held_out_of(20) == {2, 6, 10, 14, 18}
    assert held_out_of(100) == {5, 15, 25, 35, 45, 55, 65, 75, 85, 95}


def test_both_kinds_of_text_of_one_file_are_held_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = ("Prose. " * 200, "code(); " * 200)
    (folder / "two.txt").write_text("\n\n".join(kind for kind in kinds for _ in range(60)))
    assert main(["init", "--train", "two.txt"]) == 0
    assert "two: 108 documents to train on, 12 held out\ntwo" not in capsys.readouterr().out
    held_out = [json.loads(line)["text"] for line in Path("first-data/eval/two.jsonl").read_text().splitlines()]
    assert [text.count("Prose") > 0 for text in held_out].count(True) == len(held_out) / 2


@pytest.mark.demo
@pytest.mark.parametrize("use", ["transfer", "byteify", "distil"])
def test_the_control_that_a_first_recipe_offers_is_the_same_training_without_a_teacher(folder: Path, use: str) -> None:
    assert main(["init", "mine", "--use", use, "--train", "story.txt"]) == 0
    before, marked, after = (folder / "mine.yaml").read_text().partition("  # control:\n")
    block, evaluate, rest = (marked + after).partition("  evaluate:")
    block = block.replace("  # ", "  ")
    needs = "needs: [init, distill]  # with the control: [init, distill, control]"
    assert needs in rest
    rest = rest.replace(needs, "needs: [init, distill, control]").replace(
        "    # control: control", "    control: control"
    )
    (folder / "mine.yaml").write_text(before + block + evaluate + rest)
    assert main(["validate", "mine.yaml"]) == 0
    recipe = load_recipe(folder / "mine.yaml", ["stages.distill.steps=77"])
    control, distill = (recipe.stages[name].config.model_dump() for name in ("control", "distill"))
    assert {name for name, value in distill.items() if control[name] != value} == {"losses"}
    assert [entry.name for entry in recipe.stages["control"].config.losses] == ["cross_entropy"]
    assert control["steps"] == 77
    assert recipe.stages["evaluate"].config.control == "control"


def test_no_model_is_evaluated_twice(folder: Path) -> None:
    assert main(["init", "mine", "--use", "stochastok", "--train", "story.txt"]) == 0
    assert made("mine").stages["evaluate"].inputs == {
        "models": ("control", "stochastok"),
        "teacher": ("sources/teacher",),
        "documents": ("sources/eval",),
    }


@pytest.mark.slow
@pytest.mark.parametrize("use", USES)
def test_what_each_use_writes_runs_to_its_end(
    folder: Path,
    use: str,
    tiny_tokenizer_dirs: tuple[Path, Path],
    tiny_model_dir: Callable[..., Path],
    capfd: pytest.CaptureFixture[str],
) -> None:
    words = ["--teacher", str(tiny_model_dir(tiny_tokenizer_dirs[0], seed=3))]
    if use == "transfer":
        words += ["--target-tokenizer", str(tiny_tokenizer_dirs[1])]
    if use == "distil":
        words += ["--student", str(tiny_model_dir(tiny_tokenizer_dirs[1], seed=4))]
    assert main(["init", "mine", "--use", use, *words, "--train", "story.txt"]) == 0
    trained = "stochastok" if use == "stochastok" else "distill"
    options = ["--set", f"{trained}.steps=2", "--set", f"{trained}.warmup_steps=1"]
    loose = [] if use == "stochastok" else ["--set", "align.digits=warn"]
    assert main(["run", "mine.yaml", *options, *loose, "--progress", "plain"]) == 0, capfd.readouterr().err
    shown = capfd.readouterr().out
    report = Path("runs/mine/stages/evaluate/out/report.html")
    assert report.is_file()
    assert f"  {report}\n" in shown.replace("evaluate  ", "  ")
    assert f"  runs/mine/stages/{trained}/out\n" in shown
    assert " base " not in (report.parent / "table.txt").read_text(), "the model as it was has the row of the teacher"
    assert "evaluate: evaluate:" not in shown
