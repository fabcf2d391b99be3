"""The suites inside the evaluate stage, with real models of two tokenizers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evaluation_world import context, run, section, write_documents

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
    documents = write_documents(directory / "documents", {"prose": ["Lazy dogs sleep; foxes do not."]})
    teacher, student = (tiny_model_dir(tokenizer, seed=seed) for seed, tokenizer in enumerate(tiny_tokenizer_dirs))
    ctx = context(directory, documents, teacher, {"init": student}, suites=SUITES, initial="init")
    return run(ctx) | {
        "metrics": json.loads((ctx.out / "metrics.json").read_text(encoding="utf-8")),
        "table": (ctx.out / "table.txt").read_text(encoding="utf-8"),
    }


def test_every_suite_is_a_section_with_all_models(report):
    for name in SUITES:
        found = section(report, name)
        assert set(found["tables"][0]["rows"]) == {"teacher", "init"}
        assert set(found["tables"][0]["differences"]["teacher"]) == {"init"}
        assert found["tables"][0]["title"] in report["table"]


def test_every_question_is_listed_with_every_model_s_answer(report):
    items = section(report, "langgame")["items"]
    assert len(items) == 23
    for item in items:
        assert item["gold"] in item["prompt"]
        assert set(item["answers"]) == {"teacher", "init"}
        for answer in item["answers"].values():
            assert answer in item["prompt"]


def test_metrics_say_what_the_tables_say(report):
    key = section(report, "langgame")["tables"][0]["rows"]["init"]
    assert report["metrics"]["langgame.init.accuracy"] == pytest.approx(key["accuracy"]["value"] / 100)


def test_prompts_that_a_model_has_no_room_for_count_as_wrong(report):
    # Eight solved examples are more than the 512 positions of the tiny models, whose tokens are little more than bytes.
    found = section(report, "cute")
    row = found["tables"][0]["rows"]["init"]
    listed = [item for item in found["items"] if "init" in item["problems"]]
    assert len(listed) == row["not answered"]["value"] > 0
    assert {item["problems"].get("init", "").split(":")[0] for item in found["items"]} == {"", "too_long"}
    assert any("init could not be asked" in line for line in found["warnings"])


def test_what_was_written_is_in_the_report(report):
    written = [item for item in section(report, "addition")["items"] if item["groups"]["form"] == "generation"]
    assert len(written) == 4
    assert all(isinstance(item["answers"]["teacher"], str) for item in written)
