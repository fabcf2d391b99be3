"""The suites inside the evaluate stage, with real models of two tokenizers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.evaluate import Evaluate
from stages.stage import StageContext

SUITES = {
    "langgame": {"items": 23},
    "cute": {"items": 8, "tasks": ["spell", "ins_word"], "shots": 8, "forms": ["choice"]},
    "addition": {"items": 4, "digits": [2], "unseen_digits": [], "shots": 1},
}


@pytest.fixture(scope="module")
def report(
    tiny_tokenizer_dirs: tuple[Path, Path],
    tiny_model_dir: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("evaluate")
    for name in ("work", "out", "documents"):
        (directory / name).mkdir()
    record = {"id": "prose/0", "domain": "prose", "weight": 1.0, "text": "Lazy dogs sleep; foxes do not."}
    (directory / "documents" / "documents.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    teacher, student = (tiny_model_dir(tokenizer, seed=seed) for seed, tokenizer in enumerate(tiny_tokenizer_dirs))
    ctx = StageContext(
        config=Evaluate.Config.model_validate({"suites": SUITES, "initial": "init"}),
        inputs={
            "models": {"init": student},
            "teacher": {"sources/teacher": teacher},
            "documents": {"sources/eval": directory / "documents"},
        },
        work=directory / "work",
        out=directory / "out",
    )
    Evaluate().run(ctx)
    return json.loads((ctx.out / "report.json").read_text(encoding="utf-8")) | {
        "metrics": json.loads((ctx.out / "metrics.json").read_text(encoding="utf-8")),
        "table": (ctx.out / "table.txt").read_text(encoding="utf-8"),
    }


def _section(report: dict[str, Any], name: str) -> dict[str, Any]:
    (section,) = (section for section in report["sections"] if section["name"] == name)
    return section


def test_every_suite_is_a_section_with_all_models(report):
    for name in SUITES:
        section = _section(report, name)
        assert set(section["tables"][0]["rows"]) == {"teacher", "init"}
        assert set(section["tables"][0]["differences"]["teacher"]) == {"init"}
        assert section["tables"][0]["title"] in report["table"]


def test_every_question_is_listed_with_every_model_s_answer(report):
    items = _section(report, "langgame")["items"]
    assert len(items) == 23
    for item in items:
        assert item["gold"] in item["prompt"]
        assert set(item["answers"]) == {"teacher", "init"}
        for answer in item["answers"].values():
            assert answer in item["prompt"]


def test_metrics_say_what_the_tables_say(report):
    key = _section(report, "langgame")["tables"][0]["rows"]["init"]
    assert report["metrics"]["langgame.init.accuracy"] == pytest.approx(key["accuracy"]["value"] / 100)


def test_prompts_that_a_model_has_no_room_for_count_as_wrong(report):
    # Eight solved examples are more than the 512 positions of the tiny models, whose tokens are little more than bytes.
    section = _section(report, "cute")
    row = section["tables"][0]["rows"]["init"]
    listed = [item for item in section["items"] if "init" in item["problems"]]
    assert len(listed) == row["not answered"]["value"] > 0
    assert {item["problems"].get("init", "").split(":")[0] for item in section["items"]} == {"", "too_long"}
    assert any("init could not be asked" in line for line in section["warnings"])


def test_what_was_written_is_in_the_report(report):
    written = [item for item in _section(report, "addition")["items"] if item["groups"]["form"] == "generation"]
    assert len(written) == 4
    assert all(isinstance(item["answers"]["teacher"], str) for item in written)
