"""Every command that prints facts prints them for programs too: one JSON object with a version, alone on stdout."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import toys

from pipeline.cli import command_parser, main
from pipeline.commands import COMMANDS

RECIPE = """\
name: counting
stages:
  count: {uses: count, steps: 3}
  lengths: {uses: evaluation, needs: [count]}
"""

PRINT_FACTS: dict[str, tuple[str, str]] = {
    "plan": ("recipe.yaml", "stages"),
    "status": ("counting", "runs"),
    "compare": ("counting other", "runs"),
    "graph": ("recipe.yaml", "stages"),
    "validate": ("recipe.yaml", "checked"),
    "track": ("sync --runs none", "runs"),
    "show": ("recipe.yaml --sources", "sources"),
    "ls": ("runs", "runs"),
    "clean": ("", "leftovers"),
    "verify": ("", "results"),
    "env": ("", "versions"),
}
"""Command -> its arguments, and a key of what it prints."""

ELSEWHERE = {
    "audit": "tests/pipeline/test_audit_command.py",
    "card": "tests/pipeline/test_card_command.py",
    "mixture": "tests/pipeline/test_card_command.py",
}
"""Commands that need tokenizers -> where their --json is tested."""

PRINT_NO_FACTS = {
    "demo": "runs a recipe",
    "init": "writes a recipe",
    "run": "its facts are those of `plan` before it and `status` after it",
    "resume": "as `run`",
    "sweep": "as `run`",
    "logs": "prints a file as it is",
    "slurm": "prints a script",
    "export": "writes a directory",
    "unlock": "removes a lease",
    "ui": "becomes a server",
    "completion": "prints a script",
}
"""Command -> why it has no --json."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs."""
    path = tmp_path_factory.mktemp("json")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setenv("PYTHONPATH", str(Path(toys.__file__).parent))
        patch.setenv("MLFLOW_TRACKING_URI", "nosuch://server")
        (path / "recipe.yaml").write_text(RECIPE)
        assert main(["run", "recipe.yaml"]) == 0
        assert main(["run", "recipe.yaml", "--set", "name=other"]) == 0
    return path


def test_every_command_is_here_once() -> None:
    assert sorted([*PRINT_FACTS, *ELSEWHERE, *PRINT_NO_FACTS]) == sorted(COMMANDS)


@pytest.mark.parametrize("command", PRINT_FACTS)
def test_facts_are_one_object_with_a_version(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    words, key = PRINT_FACTS[command]
    capsys.readouterr()
    assert main([command, *words.split(), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["schema_version"] >= 1
    assert key in answer


@pytest.mark.parametrize("command", [*ELSEWHERE, *PRINT_NO_FACTS])
def test_the_others_have_the_option_or_a_reason(command: str) -> None:
    (subcommands,) = [action for action in command_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    assert ("--json" in subcommands.choices[command]._option_string_actions) == (command in ELSEWHERE)
    if command in ELSEWHERE:
        text = (Path(__file__).parents[2] / ELSEWHERE[command]).read_text(encoding="utf-8")
        assert "--json" in text
        assert command in text


@pytest.mark.parametrize("words", ["plan none.yaml --json", "status none --json", "compare none --json"])
def test_what_is_wrong_is_not_mixed_into_it(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.chdir(folder)
    assert main(words.split()) == 2
    answer = capsys.readouterr()
    assert answer.out == ""
    assert "none" in answer.err
