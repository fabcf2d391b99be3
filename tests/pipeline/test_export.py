"""``pipeline export``: a finished model as a directory of its own, with a card of recorded facts alone."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import publish
from pipeline.cli import main
from pipeline.errors import PipelineError
from pipeline.planner import make_plan
from pipeline.reading.loading import load_recipe
from pipeline.sharing import exporting
from pipeline.sharing.exporting import write_gguf
from pipeline.sharing.model_card import _code
from pipeline.sharing.pushing import push
from pipeline.sharing.written_paths import as_written
from pipeline.store import Store
from stages.artifacts import Artifact, write_json

RECIPE = """\
name: moved
models:
  teacher: {{model: {models}/teacher}}
  student: {{model: {models}/teacher, tokenizer: {models}/student}}
data:
  train: [{{path: {models}/text.txt}}]
  eval: [{{path: {models}/held_out.txt}}]
stages:
  align: {{uses: align}}
  init: {{uses: init, needs: [align], input: piece_mean}}
  distill: {{uses: distill, needs: [init], steps: 3, losses: [alm, cross_entropy]}}
  evaluate: {{uses: evaluate, needs: [init, distill], initial: init}}
resources:
  distill: {{launcher: slurm, processes: 2, slurm: {{account: secret-project}}}}
"""
METRICS = {
    "retention.teacher.bits_per_byte.text": 1.0,
    "retention.init.bits_per_byte.text": 2.0,
    "retention.distill.bits_per_byte.text": 1.23456,
}


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_tokenizer_dirs: tuple[Path, Path],
    tiny_model_dir: Callable[..., Path],
) -> Path:
    """A directory with a finished run, all of whose results were published without running anything."""
    home = tmp_path_factory.mktemp("home")
    models = home / "private"
    models.mkdir()
    for name, tokenizer, seed in (("teacher", 0, 1), ("student", 1, 2)):
        shutil.copytree(tiny_model_dir(tiny_tokenizer_dirs[tokenizer], seed=seed), models / name)
    for name in ("text", "held_out"):
        (models / f"{name}.txt").write_text(f"Some {name}.")
    kept = home / "runs" / "moved" / "recipe.resolved.yaml"
    kept.parent.mkdir(parents=True)
    kept.write_text(RECIPE.format(models=models))
    plan = make_plan(load_recipe(kept), home / "runs")
    store, results = Store(home / "runs" / "store"), {}
    for stage in plan.stages:
        entry = store.entry(stage.uses, stage.key)
        if entry.done() is not None:
            results[stage.name] = entry.done().result_id
            continue
        upstream = {name: results[name] for name in stage.upstream}
        attempt = publish.begin_attempt(entry, stage.ingredients, upstream)
        out = entry.partial_directory(attempt.number)
        if stage.name in ("sources/teacher", "sources/student"):
            shutil.copytree(models / "teacher", out, dirs_exist_ok=True)
        elif stage.name in ("sources/tokenizer", "init", "distill"):
            shutil.copytree(models / "student", out, dirs_exist_ok=True)
        write_json(attempt.path / "env.json", {"gpus": ["NVIDIA H100"], "host": "not-for-others"})
        write_json(out / "metrics.json", METRICS if stage.name == "evaluate" else {})
        facts = {"ingredients": stage.ingredients, "upstream": upstream, "run": "moved", "seconds": 61.0}
        results[stage.name] = publish.publish(entry, attempt.number, Artifact, **facts).result_id
    return home


@pytest.fixture
def home(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(world)
    return world


@pytest.fixture(scope="module")
def exported(world: Path) -> Path:
    assert main(["export", "moved", "distill", str(world / "exported"), "--runs", str(world / "runs")]) == 0
    return world / "exported"


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_copy_is_the_model_and_nothing_of_its_making(exported: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    names = {path.name for path in exported.iterdir()}
    assert names == {"README.md", "config.json", "generation_config.json", "model.safetensors",
                     "tokenizer.json", "tokenizer_config.json"}  # fmt: skip
    original = exported.parent / "private" / "student"
    ids = AutoTokenizer.from_pretrained(exported)("Some text.", return_tensors="pt").input_ids
    logits = [AutoModelForCausalLM.from_pretrained(path)(ids).logits for path in (exported, original)]
    assert torch.equal(*logits)


def test_the_card_has_what_is_recorded(exported: Path, world: Path) -> None:
    card = (exported / "README.md").read_text(encoding="utf-8")
    key = next((world / "runs" / "store" / "distill").iterdir()).name
    assert front_matter(card) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["tokenferry", "init", "distill", "alm", "cross_entropy"],
    }, "no licence, and no base model that is not on the hub"
    assert "* Base model: `teacher`" in card
    assert "* Teacher: `teacher`" in card
    assert "that of `teacher` was replaced by `student`" in card
    assert "* Text: `text.txt`" in card
    assert "piece_mean: The mean of the pieces' rows (Fast Vocabulary Transfer)" in card
    assert "alm: Approximate likelihood matching of chunks (arXiv 2503.20083)" in card
    assert "| metric | teacher | init | distill |" in card
    assert "| retention: bits_per_byte.text | 1 | 2 | 1.235 |" in card
    assert f"| key | {key}" in card
    assert "| took | 61 s |" in card
    assert "torch 2." in card
    assert "| seed | 0 |" in card
    assert "| GPUs | NVIDIA H100 |" in card
    recipe = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert recipe["stages"]["distill"]["steps"] == 3
    assert recipe["models"]["teacher"]["model"] == "teacher"


def test_the_card_says_nothing_of_the_machine(exported: Path, world: Path) -> None:
    card = (exported / "README.md").read_text(encoding="utf-8")
    assert str(world) not in card
    assert "private" not in card
    assert "secret-project" not in card
    assert "not-for-others" not in card
    assert os.uname().nodename not in card


def test_paths_that_are_relative_in_the_recipe_stay_so(world: Path, tmp_path: Path) -> None:
    """Two files of one name, as ``pipeline init`` makes them, are told apart; what --set gave is cut."""
    shutil.copytree(world / "runs", tmp_path / "runs", symlinks=True)
    written = RECIPE.format(models="./../private").replace(
        "{path: ./../private/held_out.txt}", "{path: /else/where.txt}"
    )
    (tmp_path / "runs" / "moved" / "recipe.yaml").write_text(written)
    assert main(["export", "moved", "distill", str(tmp_path / "new"), "--runs", str(tmp_path / "runs")]) == 0
    card = (tmp_path / "new" / "README.md").read_text(encoding="utf-8")
    assert str(world) not in card
    assert "* Base model: `./../private/teacher`" in card
    assert "* Text: `./../private/text.txt`" in card
    recipe = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert recipe["data"]["train"][0]["path"] == "./../private/text.txt"
    assert recipe["data"]["eval"][0]["path"] == "held_out.txt"
    assert recipe["models"]["student"]["tokenizer"]["file"] == "./../private/student"


def test_the_longest_path_that_fits_is_the_one_that_was_meant(tmp_path: Path) -> None:
    text = (
        "data: {train: [{name: one, path: text.jsonl}, {name: two, path: a/text.jsonl}],"
        " eval: [{path: ../b/text.jsonl}]}\n"
    )
    head = "name: x\nstages: {audit: {uses: audit}}\nmodels:\n"
    models = "  teacher: {model: org/name}\n  student: {model: org/name, tokenizer: bytes}\n"
    kept = tmp_path / "kept.yaml"
    absolute = (
        text.replace("path: ../", "path: /w/").replace("path: a", "path: /w/h/a").replace("path: t", "path: /w/h/t")
    )
    kept.write_text(head + models + absolute)
    recipe = as_written(load_recipe(kept), head + models + text)
    train, held_out = recipe.resolved["data"]["train"], recipe.resolved["data"]["eval"]
    assert [each["path"] for each in (*train, *held_out)] == ["text.jsonl", "a/text.jsonl", "../b/text.jsonl"]
    assert recipe.resolved["models"]["teacher"]["model"] == "org/name"


def test_nothing_in_the_recipe_ends_its_place_in_the_card() -> None:
    assert _code("a: b\n") == "```yaml\na: b\n```\n"
    assert _code("a: '```` <b>'\n") == "`````yaml\na: '```` <b>'\n`````\n"


def test_models_and_data_of_the_hub_are_named_in_the_front_matter(tmp_path: Path) -> None:
    from pipeline.sharing.model_card import _lineage, _metadata

    path = tmp_path / "recipe.yaml"
    path.write_text(
        "name: x\nmodels: {teacher: {model: org/teacher}, student: {model: org/base@v1, tokenizer: bytes}}\n"
        "data: {train: [{path: 'hub:datasets/org/text', stream: true}, {path: here.txt}]}\nstages:\n"
        "  align: {uses: align}\n  init: {uses: init, needs: [align]}\n"
        "  distill: {uses: distill, needs: [init], steps: 1, losses: [alm]}\n"
        "  stochastok: {uses: stochastok, needs: [distill], steps: 1}\n"
    )
    recipe = load_recipe(path)
    chain = _lineage(recipe, "stochastok")
    assert [spec.name for spec in chain] == ["sources/student", "init", "distill", "stochastok"]
    metadata = _metadata(recipe, chain)
    assert metadata["base_model"] == "org/base"
    assert metadata["datasets"] == ["org/text"]


def test_nothing_is_overwritten(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = home / "taken"
    taken.mkdir(exist_ok=True)
    (taken / "mine").write_text("kept")
    assert main(["export", "moved", "distill", "taken"]) == 2
    assert "taken is there already, and nothing is overwritten" in capsys.readouterr().err
    assert [path.name for path in taken.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["moved", "distil", "new"], 2, "moved has no stage called 'distil' (did you mean 'distill'?)"),
        (["moved", "align", "new"], 2, "'align' makes no model"),
        (["mooved", "distill", "new"], 2, "is called 'mooved' (did you mean 'moved'?)"),
        (["moved", "distill", "new", "--public"], 2, "--public is for what is pushed"),
        (["moved", "distill", "new", "--push", "name"], 2, "--push name: expected ORG/NAME"),
        (["moved", "distill", "new", "--push", "org/.."], 2, "--push org/..: Repo id must use"),
        (["moved", "distill", "new", "--push", "../a/b"], 2, "--push ../a/b: Repo id must be in the form"),
        (["moved", "distill", "/proc/new"], 2, "/proc/new cannot be made: No such file or directory"),
    ],
)
def test_what_cannot_be_exported(
    home: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, message: str
) -> None:
    assert main(["export", *words]) == code
    assert message in capsys.readouterr().err
    assert not (home / "new").exists()


def test_an_unfinished_stage_is_not_exported(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(world / "runs", tmp_path / "runs", symlinks=True)
    (entry,) = (tmp_path / "runs" / "store" / "distill").iterdir()
    (entry / "DONE.json").unlink()
    assert main(["export", "moved", "distill", str(tmp_path / "new"), "--runs", str(tmp_path / "runs")]) == 1
    assert "stage 'distill' of moved is not up to date" in (message := capsys.readouterr().err)
    assert "`pipeline resume moved` finishes it" in message


def test_a_damaged_file_is_not_exported(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(world / "runs", tmp_path / "runs", symlinks=True)
    (entry,) = (tmp_path / "runs" / "store" / "distill").iterdir()
    weights = entry / "out.1" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert main(["export", "moved", "distill", str(tmp_path / "new"), "--runs", str(tmp_path / "runs")]) == 1
    assert "model.safetensors is not what was published" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stands_for_the_place_that_it_leads_to(world: Path, tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    assert main(["export", "moved", "distill", str(tmp_path / "link"), "--runs", str(world / "runs")]) == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "model.safetensors").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]


def test_who_is_told_to_stop_leaves_nothing_behind(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(exporting, "_check_loads", lambda copy: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["export", "moved", "distill", str(tmp_path / "new"), "--runs", str(world / "runs")]) == 130
    assert capsys.readouterr().err.endswith("stopped; nothing was changed\n")
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_killed_exports_left_goes_with_the_next(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, ended = platform.node(), subprocess.Popen(["true"])
    ended.wait()
    for left in (f"new.partial-{host}-{ended.pid}", f"new.partial-{host}-{os.getppid()}",
                 f"new.partial-other-{ended.pid}", f"older.partial-{host}-{ended.pid}"):  # fmt: skip
        (tmp_path / left).mkdir()
        (tmp_path / left / "model.safetensors").write_text("half")
    assert main(["export", "moved", "distill", str(tmp_path / "new"), "--runs", str(world / "runs")]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [
            "new",
            f"new.partial-{host}-{os.getppid()}",
            f"new.partial-other-{ended.pid}",
            f"older.partial-{host}-{ended.pid}",
        ]
    ), "only those that certainly nobody writes any more"


def test_gguf_needs_its_converter(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["export", "moved", "distill", "new", "--gguf"]) == 1
    assert "GGUF is written by llama.cpp's convert_hf_to_gguf.py, which is not on PATH" in capsys.readouterr().err
    assert not (home / "new").exists()


def test_the_converter_is_asked_for_a_file_in_the_directory(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    script = tmp_path / "convert.sh"
    script.write_text('echo "$1" > "$3"\n')
    file = write_gguf(["sh", str(script)], model)
    assert file == model / "model.gguf"
    assert file.read_text() == f"{model}\n"
    script.write_text("echo unknown pre-tokenizer >&2; exit 1\n")
    with pytest.raises(PipelineError, match="is complete, but the conversion to GGUF failed:\nunknown pre-tokenizer"):
        write_gguf(["sh", str(script)], model)


class Hub(BaseHTTPRequestHandler):
    """Refuses to create repositories that are there already, and remembers what it was asked."""

    asked: list[tuple[str, dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append((self.path, json.loads(body)))
        self.send_response(409)
        self.send_header("X-Error-Message", "You already created this model repo")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    Hub.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield Hub
    server.shutdown()
    server.server_close()


def test_what_is_pushed_is_private_and_new(hub: type[Hub], tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"is complete, but the hub refused org/name: .*409") as caught:
        push(tmp_path, "org/name", public=False)
    assert "a repository that is there already is never written to" in str(caught.value)
    assert str(caught.value).endswith(f"hf upload org/name {tmp_path} --private")
    ((path, body),) = hub.asked
    assert path == "/api/repos/create"
    assert (body["name"], body["organization"]) == ("name", "org")
    assert body.get("private", False) or body.get("visibility") == "private"


def test_a_push_that_failed_can_be_repeated(
    home: Path, exported: Path, hub: type[Hub], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    (copy / "README.md").write_text((exported / "README.md").read_text(encoding="utf-8") + "\nLicence: MIT\n")
    again = ["export", "moved", "distill", str(copy), "--push", "org/again"]
    assert main(again) == 1
    streams = capsys.readouterr()
    assert f"{copy} is this model already, and is pushed as it is" in streams.err
    assert "the hub refused org/again" in streams.err
    assert hub.asked[-1][1]["name"] == "again"
    assert (copy / "README.md").read_text(encoding="utf-8").endswith("\nLicence: MIT\n")
    asked = len(hub.asked)
    assert main(again[:4]) == 2, "without --push there is nothing to do with it"
    with (copy / "model.safetensors").open("r+b") as file:
        file.write(b"x")
    assert main(again) == 2
    (copy / "README.md").unlink()
    assert main(again) == 2
    assert "is there already, and nothing is overwritten" in capsys.readouterr().err
    assert len(hub.asked) == asked


def test_a_hub_that_cannot_be_reached_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(PipelineError, match="is complete, but pushing it to org/name failed: Connect"):
        push(tmp_path, "org/name", public=False)
