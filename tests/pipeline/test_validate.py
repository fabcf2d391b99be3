"""``pipeline validate``: every check that its help names, offline, and against a hub of our own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.commands import validate
from pipeline.reading.loading import load_recipe
from pipeline.reading.notes import notes

REPOSITORY = Path(__file__).parents[2]
RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))
COMMIT = "0123456789abcdef0123456789abcdef01234567"
RECIPE = """\
name: words
stages:
  one: {uses: source-documents, documents: [{path: ./a.txt}]}
  two: {uses: source-documents, documents: [{path: ./a.txt, weight: 2}]}
"""
TRAINING = """\
name: words
models: {teacher: {model: ./a.txt}, student: {model: ./a.txt, tokenizer: ./a.txt}}
data: {train: [{path: ./a.txt}]}
stages:
  align: {uses: align}
  init: {uses: init, needs: [align]}
  distill: {uses: distill, needs: [init], losses: [alm], steps: 1, batch_windows: 1, window_tokens: 8}
"""
ON_THE_HUB = RECIPE.replace("./a.txt", "hub:datasets/org/open", 1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a recipe whose stages need neither torch nor other stages."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "a.txt").write_text("some words")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


WRONG = {
    "schema": (RECIPE, ("weight", "wieght"), "recipe.yaml:4: stages.two.documents[0].wieght: unknown key (did you"),
    "losses": (
        TRAINING,
        ("[alm]", "[hidden_states], teacher_signal: scores"),
        "recipe.yaml:7: stages.distill: losses[0].hidden_states needs the teacher's",
    ),
    "graph": (
        RECIPE,
        ("one: {", "one: {needs: [two], "),
        "recipe.yaml:3: stages.one.needs: 'two' makes a 'documents' artifact, which",
    ),
    "launching": (
        RECIPE,
        ("stages:\n", "resources: {one: {launcher: torchrun, processes: 2}}\nstages:\n"),
        "recipe.yaml:2: resources.one: this stage runs in one process, not in 2; use launcher: local",
    ),
    "references": (RECIPE, ("./a.txt", "./b.txt"), "recipe.yaml:3: stages.one.documents[0].path: "),
}
"""Check -> a recipe that passes it, a change after which it does not, and what is said then. Others are below."""


@pytest.mark.parametrize("check", WRONG)
def test_every_check_that_validate_names_is_made(folder: Path, capsys: pytest.CaptureFixture[str], check: str) -> None:
    recipe, change, expected = WRONG[check]
    (folder / "recipe.yaml").write_text(recipe.replace(*change, 1))
    assert main(["validate", "recipe.yaml"]) == 2
    assert expected in capsys.readouterr().err
    (folder / "recipe.yaml").write_text(recipe)
    assert main(["validate", "recipe.yaml"]) == 0
    assert check in capsys.readouterr().out


def test_the_disk_is_checked_by_earlier_results(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["validate", "recipe.yaml"]) == 0
    assert "references and disk are right (2 stages)" in capsys.readouterr().out
    assert not list((folder / "runs").glob("store")), "nothing was run"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nosuch://server")
    assert main(["run", "recipe.yaml", "--until", "one"]) == 0
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 90, 10))  # bytes
    assert main(["validate", "recipe.yaml"]) == 1
    assert "runs has 10 bytes free; by earlier results of their kinds" in capsys.readouterr().err


BOTH = (
    TRAINING.replace("data: {train: [{path: ./a.txt}]}", "data: {train: [{path: ./a.txt}], eval: [{path: ./b.txt}]}")
    + "  evaluate: {uses: evaluate, needs: [init, distill], initial: init}\n"
)
ON_THE_HUB_TWICE = "{path: hub:datasets/org/text, stream: true}"


@pytest.mark.parametrize(
    ("train", "held_out", "shared"),
    [
        ("{path: ./a.txt}", "{path: ./b.txt}", None),
        ("{path: ./a.txt}", "{path: ./folder/../a.txt}", "./folder/../a.txt"),
        ("{path: ./a.txt}", "{path: ., name: all}", "."),
        ("{path: ., name: all}", "{path: b.txt}", "b.txt"),
        (ON_THE_HUB_TWICE, ON_THE_HUB_TWICE, "hub:datasets/org/text"),
        (ON_THE_HUB_TWICE, "{path: hub:datasets/org/text@v2, stream: true}", None),
        (ON_THE_HUB_TWICE, "{path: hub:datasets/org/text, stream: true, split: test}", None),
    ],
)
def test_text_that_is_trained_on_and_held_out_is_noted(
    folder: Path, capsys: pytest.CaptureFixture[str], train: str, held_out: str, shared: str | None
) -> None:
    (folder / "recipe.yaml").write_text(BOTH)
    (folder / "b.txt").write_text("other words")
    recipe = load_recipe(Path("recipe.yaml"), [f"data.train=[{train}]", f"data.eval=[{held_out}]"])
    expected = f"data.train[0] and data.eval[0] share text ({shared}): what is measured on it is of text that was "
    assert notes(recipe) == ([] if shared is None else [f"{expected}trained on"])


def test_notes_are_shown_by_validate_and_plan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "recipe.yaml").write_text(BOTH.replace("b.txt", "a.txt"))
    for command in ("validate", "plan"):
        assert main([command, "recipe.yaml"]) == 0
        assert "note: data.train[0] and data.eval[0] share text (./a.txt)" in capsys.readouterr().out
        assert main([command, "recipe.yaml", "--json"]) == 0
        (note,) = json.loads(capsys.readouterr().out)["notes"]
        assert note.startswith("data.train[0] and data.eval[0] share text")


def test_text_that_no_stage_measures_on_is_not_held_out(folder: Path) -> None:
    text = TRAINING.replace("data: {train: [{path: ./a.txt}]}", "data: {train: [{path: a.txt}], eval: [{path: a.txt}]}")
    (folder / "recipe.yaml").write_text(text)
    assert notes(load_recipe(Path("recipe.yaml"))) == ["no stage reads data.eval"]


def test_that_align_decides_on_numbers_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "recipe.yaml").write_text(TRAINING)
    said = "not checked: digits: whether the tokenizers cut numbers alike is for align to see, when run"
    assert main(["validate", "recipe.yaml"]) == 0
    assert said in capsys.readouterr().out
    assert main(["validate", "recipe.yaml", "--set", "align.digits=warn"]) == 0
    assert said not in capsys.readouterr().out


@pytest.mark.parametrize("file", ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"])
def test_a_file_of_weights_is_no_model(folder: Path, capsys: pytest.CaptureFixture[str], file: str) -> None:
    (folder / file).write_text("{}")
    (folder / "recipe.yaml").write_text(TRAINING.replace("./a.txt", f"./{file}", 1))
    assert main(["validate", "recipe.yaml"]) == 2
    expected = f"recipe.yaml:2: models.teacher.model: ./{file} has a model's weights alone: name the directory"
    assert expected in capsys.readouterr().err


def test_places_are_shown_without_steps_up(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "below").mkdir()
    monkeypatch.chdir(folder / "below")
    (folder / "recipe.yaml").write_text(RECIPE.replace("./a.txt", "no/such/place"))
    assert main(["validate", "../recipe.yaml"]) == 2
    assert f"'no/such/place' is no path that exists under {folder} and no hub" in capsys.readouterr().err


def test_validate_names_its_checks_and_no_others() -> None:
    listed = validate.EPILOG[validate.EPILOG.index("checks, all") :].split("\n\n")[0].splitlines()[1:]
    assert [line.split()[0] for line in listed] == [*WRONG, "hub", "disk"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid_offline(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_connection(*arguments: object) -> None:
        raise AssertionError("it opens a connection")

    monkeypatch.setattr("socket.socket.connect", no_connection)
    assert main(["validate", str(path), "--runs", str(tmp_path), "--json"]) == 0, capsys.readouterr().err
    answer = json.loads(capsys.readouterr().out)
    assert answer["schema_version"] == 1
    assert not [note for note in answer["notes"] if "share text" in note]
    given = set(re.findall(r"hub:[\w./-]+", re.sub(r"#.*", "", path.read_text(encoding="utf-8"))))
    assert given <= answer["hub"].keys()
    assert ("hub" in answer["not_checked"]) == bool(answer["hub"]), "it says what it did not look at"
    assert {*answer["checked"], *answer["not_checked"]} >= {*WRONG, "disk"}


class _Hub(BaseHTTPRequestHandler):
    """As much of the hub as answers for ``org/open``, ``org/gated`` (listed, but closed) and nothing else."""

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        repository = "/".join(path.split("/")[3:5])
        if repository not in ("org/open", "org/gated"):
            self._answer(404, error="RepoNotFound")
        elif repository == "org/gated" and path.endswith("/auth-check"):
            self._answer(403, error="GatedRepo")
        elif "/revision/" in path and not path.endswith(("/revision/main", f"/revision/{COMMIT}")):
            self._answer(404, error="RevisionNotFound")
        else:
            self._answer(200, {"id": repository, "sha": COMMIT})

    def _answer(self, status: int, body: object = None, error: str | None = None) -> None:
        data = json.dumps(body or {}).encode()
        self.send_response(status)
        if error:
            self.send_header("X-Error-Code", error)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def command(folder: Path, endpoint: str, *options: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the client reads where the hub is when it is imported."""
    environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "cache"), "PYTHONPATH": str(REPOSITORY)}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-m", "pipeline", "validate", "recipe.yaml", *options],
        env={**inherited, **environment}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_the_hub_is_asked_only_online(folder: Path, hub: str) -> None:
    (folder / "recipe.yaml").write_text(ON_THE_HUB)
    offline = command(folder, "http://127.0.0.1:9")
    assert offline.returncode == 0, offline.stderr
    assert "not checked: hub: 1 references were not followed, 0 of them are in the local cache" in offline.stdout
    online = command(folder, hub, "--online")
    assert online.returncode == 0, online.stderr
    assert f"hub:datasets/org/open: commit {COMMIT}\n" in online.stdout
    assert "references and hub are right" in online.stdout
    snapshot = folder / "cache" / "hub" / "datasets--org--open"
    (snapshot / "snapshots" / COMMIT).mkdir(parents=True)
    (snapshot / "refs").mkdir()
    (snapshot / "refs" / "main").write_text(COMMIT)
    cached = command(folder, "http://127.0.0.1:9", "--json")
    assert json.loads(cached.stdout)["hub"] == {"hub:datasets/org/open": COMMIT}


def test_all_that_is_wrong_on_the_hub_is_said_at_once(folder: Path, hub: str) -> None:
    wrong = ("org/gated", "org/missing", "org/open@v9", "org/open@main")
    paths = ", ".join(f"{{path: 'hub:datasets/{name}'}}" for name in wrong)
    (folder / "recipe.yaml").write_text(
        f"name: words\nstages:\n  one: {{uses: source-documents, documents: [{paths}]}}\n"
    )
    answer = command(folder, hub, "--online")
    assert answer.returncode == 2
    place = "recipe.yaml:3: stages.one.documents"
    assert answer.stderr.splitlines() == [
        f"{place}[0].path: hub:datasets/org/gated: the repository is gated: accept its terms at "
        f"{hub}/datasets/org/gated and log in with `hf auth login`",
        f"{place}[1].path: hub:datasets/org/missing: the hub shows no such dataset repository: check the name; a "
        "private one needs `hf auth login`",
        f"{place}[2].path: hub:datasets/org/open@v9: the repository has no revision 'v9'",
    ]


def test_a_hub_that_does_not_answer(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(ON_THE_HUB)
    answer = command(folder, "http://127.0.0.1:9", "--online")
    assert answer.returncode == 2
    assert "the hub at http://127.0.0.1:9 cannot be reached" in answer.stderr


@pytest.mark.parametrize("text", ["hub:org", "hub:org/name@", "package:x", "nowhere/at/all"])
def test_the_form_of_a_reference_is_checked_offline(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (folder / "recipe.yaml").write_text(RECIPE.replace("./a.txt", f"'{text}'", 1))
    assert main(["validate", "recipe.yaml"]) == 2
    assert f"stages.one.documents[0].path: {text!r}" in capsys.readouterr().err
