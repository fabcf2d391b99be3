"""Training items of suites as documents."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

from stages.evaluation.suites.registry import make_suite
from stages.evaluation.suites.words import lexicon
from stages.stage import StageContext, StageInterrupted
from stages.suite_documents import SuiteDocuments
from stages.training.data.documents import TrainingDocuments

REPOSITORY = Path(__file__).parents[3]
SUITES = {"langgame": {"items": 60}, "cute": {"items": 26, "shots": 2}, "addition": {"items": 30, "shots": 0}}


def _context(directory: Path, suites: object, **options: object) -> StageContext:
    for name in ("work", "out"):
        (directory / name).mkdir()
    config = SuiteDocuments.Config.model_validate({"suites": suites, **options})
    return StageContext(config=config, inputs={}, work=directory / "work", out=directory / "out")


def test_documents_are_prompts_and_answers_as_they_are_scored(tmp_path):
    ctx = _context(tmp_path, SUITES, weight=0.5)
    SuiteDocuments().run(ctx)
    SuiteDocuments.output.verify(ctx.out)
    documents = list(TrainingDocuments(ctx.out))
    assert len(documents) == 116
    suites = {name: make_suite(name, options, "train") for name, options in ctx.config.suites.chosen().items()}
    questions = [question for suite in suites.values() for question in suite.questions]
    for document, question in zip(documents, questions, strict=True):
        data = document.text.encode()
        assert data[: document.context_bytes].decode() == question.prompt
        ending = suites[document.domain].ending
        assert data[document.context_bytes :].decode() == question.answer + ending
        assert document.weight == 0.5
    assert documents[0].id == "langgame/train/0"


def test_the_manifest_says_what_was_written(tmp_path):
    ctx = _context(tmp_path, SUITES)
    SuiteDocuments().run(ctx)
    manifest = json.loads((ctx.out / "manifest.json").read_text(encoding="utf-8"))
    data = (ctx.out / "documents.jsonl").read_bytes()
    assert manifest["sha256"] == hashlib.sha256(data).hexdigest()
    assert {name: facts["documents"] for name, facts in manifest["domains"].items()} == {
        "langgame": 60,
        "cute": 26,
        "addition": 30,
    }
    texts = [json.loads(line)["text"] for line in data.decode().splitlines()]
    assert manifest["bytes"] == sum(len(text.encode()) for text in texts)
    assert manifest["suites"]["addition"]["settings"]["split"] == "train"


def test_it_stops_when_it_is_asked_to(tmp_path):
    ctx = _context(tmp_path, ["langgame"])
    ctx.should_stop = lambda: True
    with pytest.raises(StageInterrupted):
        SuiteDocuments().run(ctx)


def test_too_few_items_are_refused_while_a_recipe_is_read(tmp_path):
    with pytest.raises(ValueError, match=r"langgame\.items: 5 questions are fewer than the 6 kinds .* give 6 or more"):
        _context(tmp_path, {"langgame": {"items": 5}})


def test_the_word_list_is_the_one_that_the_texts_give(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "recipes" / "data")
    sys.modules.pop("build_words", None)
    import build_words

    words = lexicon()
    assert sorted((*words.known, *words.held_out)) == build_words.word_list()


def test_the_words_are_those_that_results_were_made_with():
    words = lexicon()
    assert words.digest == "7c6c0f8492e68e7ad5ff49fb638fa32d0591581fd8db0b7831646909d9ff5880"
    assert (len(words.known), len(words.held_out)) == (1578, 553)
    assert set(words.known).isdisjoint(words.held_out)


def test_every_letter_is_twice_in_some_known_and_in_some_held_out_word():
    for letter in "abcdefghijklmnopqrstuvwxyz":
        for words in (lexicon().known, lexicon().held_out):
            assert any(word.count(letter) > 1 for word in words), letter
