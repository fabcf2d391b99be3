"""Traps, cut prompts, random segmentations, misspellings and overlap inside the evaluate stage, with real models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evaluation_world import context, run, section, write_documents
from transformers import AutoTokenizer

from stages.conversion.byte_tokenizer import write_byte_tokenizer

KINDS = ["swap", "duplicate", "spacing"]
OPTIONS = {
    "traps": {"items": 48, "pairs": 1000, "shots": 1},
    "prompt_boundary": {"positions": 6, "context_bytes": 80, "characters": 8, "exact_bytes": True},
    "invariance": {"excerpts": 4, "excerpt_bytes": 120, "segmentations": 2, "proportion": 0.5},
    "noise": {"questions": 4, "excerpts": 2, "excerpt_bytes": 80, "perturbations": KINDS, "severities": [0.5, 1.0]},
    "overlap": "exclude",
    "initial": "init",
}
PROSE = (
    "The quick foxes sleep where several boundaries meet, and lonely dogs jumped on without a second thought. Nobody "
    "remembers whether those tokens were split before, but bytes were always there, under every letter and token."
)
CODE = "def subtract_numbers(left, right):\n    return compute(left) - right\n\nprint(subtract_numbers(345, twelve))\n"
SEEN = "This document was read in training, word for word, and it must not be evaluated as if it had not been."
TEXTS = {"prose": [PROSE, SEEN], "code": [CODE], "chinese": ["東京在日本的東部，人口很多。" * 6]}


@pytest.fixture(scope="module")
def report(
    tiny_tokenizer_dirs: tuple[Path, Path],
    tiny_model_dir: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """The teacher, a student of another tokenizer, and one of bytes."""
    directory = tmp_path_factory.mktemp("evaluate")
    documents = write_documents(directory / "eval", TEXTS)
    seen = [f"Before it. {SEEN} After it.", "Something else."]
    training = write_documents(directory / "train", {"seen": seen})
    (directory / "bytes").mkdir()
    write_byte_tokenizer(AutoTokenizer.from_pretrained(tiny_tokenizer_dirs[0]), directory / "bytes")
    tokenizers = (*tiny_tokenizer_dirs, directory / "bytes")
    teacher, student, of_bytes = (tiny_model_dir(tokenizer, seed=seed) for seed, tokenizer in enumerate(tokenizers))
    models = {"init": student, "bytes": of_bytes}
    ctx = context(directory, documents, teacher, models, training=training, **OPTIONS)
    return run(ctx) | {
        "metrics": json.loads((ctx.out / "metrics.json").read_text(encoding="utf-8")),
        "page": (ctx.out / "report.html").read_text(encoding="utf-8"),
    }


def test_every_option_has_a_section_on_the_page(report):
    names = [section["name"] for section in report["sections"]]
    assert names == ["overlap", "retention", "traps", "prompt_boundary", "invariance", "noise"]
    for found in report["sections"]:
        assert found["title"] in report["page"]


def test_an_overlapping_document_is_left_out_everywhere_and_listed(report):
    overlap = section(report, "overlap")
    assert [entry["what"] for entry in overlap["skipped"]] == ["document prose/1"]
    assert section(report, "retention")["facts"]["documents"] == "3 of 3"
    assert report["metrics"]["overlap.prose.documents"] == 1
    assert report["metrics"]["overlap.code.documents"] == 0


def test_a_byte_model_loses_nothing_at_a_cut(report):
    row = section(report, "prompt_boundary")["tables"][0]["rows"]["bytes"]
    assert set(row) == {"all", "space", "word", "identifier", "chinese"}
    assert all(measure["value"] == 0.0 for measure in row.values())
    others = section(report, "prompt_boundary")["tables"][0]["rows"]["init"]
    assert others["all"]["value"] != 0.0


def test_a_byte_model_has_the_same_bits_on_both_routes(report):
    tables = {table["title"]: table["rows"]["bytes"] for table in section(report, "prompt_boundary")["tables"]}
    by_tokens = tables["Continuation of a cut prompt by the tokens of both parts"]
    exact = tables["Continuation of a cut prompt by its exact bytes"]
    for kind, measure in by_tokens.items():
        assert measure["value"] == pytest.approx(exact[kind]["value"], abs=1e-4)


def test_a_byte_model_has_no_other_segmentation_and_no_traps(report):
    (entry,) = section(report, "invariance")["skipped"]
    assert (entry["what"], entry["model"]) == ("invariance", "bytes")
    assert "a text has one segmentation" in entry["why"]
    assert set(section(report, "invariance")["tables"][0]["rows"]) == {"teacher", "init"}
    traps = section(report, "traps")
    assert [entry["model"] for entry in traps["skipped"] if entry["what"] == "traps of its tokenizer"] == ["bytes"]
    assert set(traps["tables"][0]["rows"]) == {"teacher", "init"}
    assert traps["tables"][1]["rows"]["bytes"]["crossing"]["value"] == 0.0
    # It is asked the others' traps all the same.
    assert set(traps["tables"][2]["rows"]) == {"teacher", "init", "bytes"}


def test_misspelled_text_has_a_table_of_every_kind(report):
    noise = section(report, "noise")
    assert set(noise["tables"][0]["rows"]["init"]) == {"all at 0.5", "all at 1", *KINDS}
    assert set(noise["tables"][0]["differences"]) == {"teacher", "initial"}
    assert noise["facts"]["words changed"]["duplicate at 1"] == 1.0
    assert len(noise["items"]) == 4 * (1 + 2 * len(KINDS))
