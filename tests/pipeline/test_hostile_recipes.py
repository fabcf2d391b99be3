"""Recipes that nobody writes by chance: they are refused like any other wrong one, at once and in a line."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.reading.yaml_source import MOST_VALUES
from pipeline.recipe import LONGEST_NAME

BOMB = "name: x\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name: x\nstages: !!python/object/apply:os.system ["touch made"]\n', "r.yaml:2: not valid YAML: could not"),
        ("name: x\nseed: !secret 3\n", "r.yaml:2: not valid YAML: could not determine a constructor for the tag"),
        ("name: x\nstages: " + "[" * 5000 + "]" * 5000, "r.yaml: lists and mappings are nested too deeply"),
        ("name: x\nstages: " + "{a: " * 5000 + "1" + "}" * 5000, "r.yaml: lists and mappings are nested too deeply"),
        (BOMB, f"r.yaml: more than {MOST_VALUES:,} values, counting what aliases (*name) stand for"),
        (f"name: {'n' * 121}\nstages: {{}}\n", f"r.yaml:1: name: a name of 121 characters: use at most {LONGEST_NAME}"),
        ("name: ../../x\nstages: {}\n", "r.yaml:1: name: '../../x' is not a name"),
        ("name: cache\nstages: {}\n", "r.yaml:1: name: 'cache' is where tables that all runs use are kept"),
        (f"name: x\nstages: {{{'s' * 300}: {{uses: align}}}}\n", "a name of 300 characters"),
        ("name: x\nstages: {../up: {uses: align}}\n", "'../up' is not a name"),
    ],
)
def test_a_hostile_recipe_is_refused(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(text)
    began = time.process_time()
    assert main(["plan", "r.yaml"]) == 2
    assert message in capsys.readouterr().err
    assert time.process_time() - began < 10, "10 ** 12 values would take for ever"
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]
