"""Tokenizers and cost as a section of the evaluation's report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evaluation_world import context, run, write_documents

from alignment.byte_view import ByteView
from stages.evaluation.cards import CardOptions, Cards
from stages.evaluation.sections import Subject
from stages.evaluation.windows import Document
from stages.stage import StageError

TEXTS = {"prose": ["The quick brown fox jumps.", "Tokens are byte strings."], "code": ["def add(left, right):\n"]}
POSITIONS = 512  # of the tiny models


@pytest.fixture(scope="module")
def evaluated(
    tiny_tokenizer_dirs: tuple[Path, Path],
    tiny_model_dir: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The output of an evaluation of a teacher and one model of another tokenizer."""
    directory = tmp_path_factory.mktemp("evaluate")
    documents = write_documents(directory / "documents", TEXTS)
    teacher, student = (tiny_model_dir(tokenizer, seed=seed) for seed, tokenizer in enumerate(tiny_tokenizer_dirs))
    ctx = context(directory, documents, teacher, {"init": student}, card={}, initial="init")
    run(ctx)
    return ctx.out


@pytest.fixture(scope="module")
def section(evaluated: Path) -> dict[str, Any]:
    report = json.loads((evaluated / "report.json").read_text(encoding="utf-8"))
    (found,) = (section for section in report["sections"] if section["name"] == "card")
    return found


def test_tokens_and_costs_of_every_model(section, evaluated, tiny_tokenizer_dirs):
    texts = [text for group in TEXTS.values() for text in group]
    size = sum(len(text.encode()) for text in texts)
    tokenizers, costs = section["tables"]
    metrics = json.loads((evaluated / "metrics.json").read_text(encoding="utf-8"))
    for row, directory in zip(("teacher", "init"), tiny_tokenizer_dirs, strict=True):
        tokens = sum(len(encoding.ids) for encoding in ByteView.from_tokenizer(directory).encode_batch(texts))
        assert tokenizers["rows"][row]["tokens per byte"]["value"] == pytest.approx(tokens / size)
        assert tokenizers["rows"][row]["bytes per token"]["value"] == pytest.approx(size / tokens)
        assert tokenizers["rows"][row]["coverage"]["value"] == 100
        assert 0 < tokenizers["rows"][row]["Rényi efficiency"]["value"] < 1
        assert costs["rows"][row]["forward passes per byte"] == tokenizers["rows"][row]["tokens per byte"]
        assert costs["rows"][row]["context"]["value"] == POSITIONS
        assert costs["rows"][row]["context of text"]["value"] == pytest.approx(POSITIONS * size / tokens)
        assert metrics[f"card.{row}.tokens_per_byte"] == pytest.approx(tokens / size)
        assert math.isfinite(metrics[f"card.{row}.renyi_efficiency"])


def test_differences_are_paired_over_documents(section):
    rows, differences = (section["tables"][0][key] for key in ("rows", "differences"))
    change = differences["teacher"]["init"]["bytes per token"]
    values = [rows[row]["bytes per token"]["value"] for row in ("init", "teacher")]
    assert change["value"] == pytest.approx(values[0] - values[1])
    assert (change["low"], change["high"], change["too_few"]) == (None, None, 3)


def test_bytes_per_token_by_domain(section, tiny_tokenizer_dirs):
    (code,) = TEXTS["code"]
    tokens = len(ByteView.from_tokenizer(tiny_tokenizer_dirs[0]).encode(code).ids)
    assert section["bars"][0]["values"]["teacher"]["code"]["value"] == pytest.approx(len(code) / tokens)
    assert set(section["bars"][0]["values"]["init"]) == set(TEXTS)


def test_the_page_has_the_section(evaluated):
    assert "Tokenizers and cost" in (evaluated / "report.html").read_text(encoding="utf-8")


def test_several_tokenizers_have_no_card():
    with pytest.raises(StageError, match="tokenizers of their own"):
        Cards([], {}).score(Subject("both", None, None, None, None), lambda share: None)


def test_text_without_a_word_has_no_fertility(tiny_tokenizer_dirs):
    cards = Cards([Document("a/0", "a", "...")], {})
    view = ByteView.from_tokenizer(tiny_tokenizer_dirs[0])
    result = cards.score(Subject("one", None, view, None, None), lambda share: None)
    row = cards.report({"one": json.loads(json.dumps(result, allow_nan=False))}).tables[0].rows["one"]
    assert "fertility" not in row
    assert row["tokens per byte"].value == 1
    assert "context" not in cards.report({"one": result}).tables[1].rows["one"]


def test_there_is_nothing_to_choose():
    with pytest.raises(ValueError, match="Extra inputs"):
        CardOptions.model_validate({"alpha": 2})
