"""Held-out text in the training text: found by brute force and by hashes alike, counted, and never dropped silently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.reading.loading import load_recipe
from stages.document_sets import DocumentSet
from stages.document_streams import count_files, write_streams
from stages.evaluate import EvaluateConfig
from stages.evaluation.overlap import compare_with_training, find_overlap
from stages.evaluation.overlap_options import OverlapOptions
from stages.evaluation.overlap_report import Overlap
from stages.evaluation.shared_passages import Passages, Words, rolling_hashes
from stages.evaluation.windows import Conversation, Document
from stages.stage import StageContext, StageError, StageInterrupted

SHARED = (
    "Four score and seven years ago our fathers brought forth on this continent a new nation, conceived in liberty."
)
OWN = "A completely different sentence that nobody has ever trained a model on, we may hope, until it was written here."


def _train(directory: Path, texts: list[str], **more: Any) -> Path:
    directory.mkdir(exist_ok=True)
    records = [{"id": f"train/{n}", "domain": "train", "weight": 1.0, "text": text} for n, text in enumerate(texts)]
    if more:
        records.append({"id": "train/more", "domain": "train", "weight": 1.0, **more})
    lines = (json.dumps(record) for record in records)
    (directory / "documents.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return directory


def _find(training: Path, documents: list[Any], **options: Any) -> Overlap:
    return find_overlap(OverlapOptions(**options), documents, training, progress=lambda line: None, check=lambda: None)


@given(st.lists(st.integers(0, 2), max_size=80), st.integers(1, 60))
@settings(max_examples=200, deadline=None)
def test_runs_have_the_same_hash_exactly_where_they_are_the_same(symbols, size):
    runs = [tuple(symbols[start : start + size]) for start in range(len(symbols) - size + 1)]
    hashes = rolling_hashes(np.array(symbols, np.uint8), size).tolist()
    assert len(hashes) == len(runs)
    assert len(set(zip(runs, hashes, strict=True))) == len(set(runs)) == len(set(hashes))


@given(
    st.lists(st.binary(max_size=40).map(lambda data: bytes(byte % 3 for byte in data)), min_size=1, max_size=3),
    st.lists(st.binary(max_size=60).map(lambda data: bytes(byte % 3 for byte in data)), max_size=3),
    st.integers(1, 9),
)
@settings(max_examples=200, deadline=None)
def test_covered_symbols_are_those_of_a_brute_force_search(held_out, training, size):
    passages = Passages([np.frombuffer(text, np.uint8) for text in held_out], size)
    for text in training:
        passages.look_in(np.frombuffer(text, np.uint8))
    for number, text in enumerate(held_out):
        expected = [False] * len(text)
        for start in range(len(text) - size + 1):
            if any(text[start : start + size] in other for other in training):
                expected[start : start + size] = [True] * size
        assert passages.covered(number).tolist() == expected


def test_other_runs_of_the_same_hash_are_not_found(monkeypatch):
    monkeypatch.setattr(
        "stages.evaluation.shared_passages.rolling_hashes",
        lambda symbols, size: np.zeros(max(0, len(symbols) - size + 1), dtype=np.uint64),
    )
    passages = Passages([np.array([1, 2, 3, 4]), np.array([2, 3, 9])], 2)
    passages.look_in(np.array([7, 2, 3, 8]))
    assert passages.covered(0).tolist() == [False, True, True, False]
    assert passages.covered(1).tolist() == [True, True, False]


def test_words_are_compared_without_case_and_with_their_bytes():
    words = Words()
    numbers, places = words.learn("Straße: the THE straße")
    assert numbers.tolist() == [1, 2, 2, 1]
    assert places.tolist() == [[0, 7], [9, 12], [13, 16], [17, 24]]
    assert [run.tolist() for run in words.known("the other STRASSE, the STRAßE")] == [[2], [2, 1]]


def test_a_passage_of_bytes_counts_from_its_length_on(tmp_path):
    text = "x" * 10 + SHARED[:50] + "y" * 40
    training = _train(tmp_path / "train", [f"before {SHARED[:50]} after"])
    (finding,) = _find(training, [Document("a", "prose", text)], bytes=50).findings
    assert finding.found == {"bytes": 50, "words": 0}
    assert finding.share == 0.5
    (finding,) = _find(training, [Document("a", "prose", text)], bytes=51).findings
    assert finding.found["bytes"] == 0


def test_a_passage_of_words_counts_whatever_stands_between_them(tmp_path):
    shouted = SHARED.upper().replace(" ", "\n- ")
    training = _train(tmp_path / "train", [f"Introduction {shouted} end"])
    (finding,) = _find(training, [Document("a", "prose", f"{OWN} {SHARED}")]).findings
    # The whole sentence but its full stop, from a word's first byte to another's last.
    assert finding.found == {"bytes": 0, "words": len(SHARED) - 1}


def test_conversations_and_training_conversations_are_compared_by_what_they_say(tmp_path):
    training = _train(
        tmp_path / "train", [], messages=[{"role": "user", "content": [{"type": "text", "text": SHARED}]}]
    )
    held_out = Conversation("c", "chat", [{"role": "user", "content": "Hi"}, {"role": "x", "content": SHARED}], None)
    found = _find(training, [held_out])
    assert found.findings[0].found["bytes"] == len(SHARED)
    assert (found.training_documents, found.training_bytes) == (1, len(SHARED))


def test_streamed_sets_are_read_where_they_lie_and_not_from_their_sample(tmp_path):
    lines = "\n".join(json.dumps({"text": text}) for text in (OWN, SHARED))
    (tmp_path / "set.jsonl").write_text(lines + "\n", encoding="utf-8")
    streamed = DocumentSet(path=str(tmp_path / "set.jsonl"), name="train", stream=True, sample_documents=1)
    training = _train(tmp_path / "train", [OWN])
    write_streams(training, [count_files(streamed, tmp_path / "set.jsonl", lambda content: None)])
    found = _find(training, [Document("a", "prose", SHARED)])
    assert found.training_documents == 2
    assert found.findings[0].share == 1.0
    (tmp_path / "set.jsonl").unlink()
    with pytest.raises(StageError, match=r"overlap: .* is gone"):
        _find(training, [Document("a", "prose", SHARED)])


@pytest.fixture
def mixed(tmp_path: Path) -> tuple[Path, list[Document]]:
    training = _train(tmp_path / "train", [SHARED, "Something else entirely."])
    documents = [
        Document("speech/0", "speech", SHARED),
        Document("speech/1", "speech", OWN),
        Document("novel/0", "novel", f"{OWN * 9} {SHARED[:60]}"),
    ]
    return training, documents


def test_report_keeps_all_and_warns(mixed):
    training, documents = mixed
    found = _find(training, documents)
    report = found.report()
    assert found.kept(documents) == documents
    assert report.skipped == ()
    assert "1 of 3 held-out documents are training text to 20% or more: speech/0 (100%)" in report.warnings[0]
    shares, counts = report.tables
    assert shares.rows["50 bytes"]["speech"].value == pytest.approx(100 * len(SHARED) / (len(SHARED) + len(OWN)))
    assert {name: row["all"].value for name, row in counts.rows.items()} == {"with any passage": 2, "20% or more": 1}
    assert [item.id for item in report.items] == ["speech/0", "novel/0"]
    assert report.metrics["speech.documents"] == 1
    json.dumps(report.to_json(), allow_nan=False)


def test_exclude_leaves_out_and_lists(mixed):
    training, documents = mixed
    found = _find(training, documents, action="exclude")
    assert [document.id for document in found.kept(documents)] == ["speech/1", "novel/0"]
    assert [entry.what for entry in found.report().skipped] == ["document speech/0"]
    stricter = _find(training, documents, action="exclude", share=0.01)
    assert [document.id for document in stricter.kept(documents)] == ["speech/1"]


def test_refuse_names_the_documents(mixed):
    training, documents = mixed
    with pytest.raises(StageError, match=r"1 of 3 held-out documents .*: speech/0 \(100%\)\. Remove them"):
        _find(training, documents, action="refuse").kept(documents)
    assert _find(training, documents[1:], action="refuse").kept(documents[1:]) == documents[1:]


def test_nothing_left_and_an_interruption_are_said(mixed, tmp_path):
    training, documents = mixed
    ctx = StageContext(None, {"training": {"sources/train": training}}, tmp_path, tmp_path)
    with pytest.raises(StageError, match="none is left to evaluate"):
        compare_with_training(ctx, OverlapOptions(action="exclude"), documents[:1])
    ctx.should_stop = lambda: True
    with pytest.raises(StageInterrupted):
        compare_with_training(ctx, OverlapOptions(), documents)


def test_the_training_text_is_an_input_only_where_it_is_wanted():
    assert EvaluateConfig().wanted_inputs == frozenset()
    recipe = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
    inputs = load_recipe(recipe, ["stages.evaluate.overlap=report"]).stages["evaluate"].inputs
    assert inputs["training"] == ("sources/train",)
    assert "training" not in load_recipe(recipe).stages["evaluate"].inputs
    assert EvaluateConfig.model_validate({"overlap": "report"}).wanted_inputs == {"training"}
    assert EvaluateConfig.model_validate({"overlap": {"action": "refuse", "share": 0.5}}).overlap.share == 0.5


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("drop", "'report', 'exclude' or 'refuse'"),
        ({"share": 0}, "share"),
        ({"words": 1}, "words"),
        ({"bytes": 7}, "bytes"),
    ],
)
def test_options_out_of_range_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        OverlapOptions.model_validate(value)
