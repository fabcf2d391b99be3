"""Retention of what is not one model of tokens: scored by requests, like any ensemble."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment.byte_view import ByteView
from stages.evaluation.core import Request, TextScore, ignore
from stages.evaluation.retention import Retention
from stages.evaluation.sections import SectionContext, Subject
from stages.evaluation.text_start import TextStart
from stages.evaluation.token_scorer import TokenScorer
from stages.evaluation.windows import Document
from stages.stage import StageError

DOCUMENTS = [
    Document("prose/0", "prose", "The quick fox sleeps where two boundaries meet, and the dog jumps on."),
    Document("prose/1", "prose", "Ein naïves Häuschen, 東京 liegt weit weg 🙂."),
]


class Recorded:
    """A scorer that remembers what it was asked, and may have problems."""

    name = "recorded"

    def __init__(self, scorer: TokenScorer, problem_at: int | None = None) -> None:
        self.scorer = scorer
        self.problem_at = problem_at
        self.requests: list[Request] = []

    def score(self, requests: Sequence[Request], watch=ignore) -> list[TextScore]:
        self.requests += requests
        scores = self.scorer.score(requests, watch)
        if self.problem_at is not None:
            scores[self.problem_at] = replace(scores[self.problem_at], problem="crosses_boundary")
        return scores


@pytest.fixture(scope="module")
def teacher(tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]) -> Subject:
    directory = tiny_model_dir(tiny_tokenizer_dirs[1], seed=5, tied=False)
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    view = ByteView.from_tokenizer(tokenizer)
    scorer = TokenScorer("teacher", model, view, TextStart.of(tokenizer, view), batch_tokens=200)
    return Subject("teacher", directory, view, scorer, model)


@pytest.fixture
def retention(teacher: Subject) -> Retention:
    context = SectionContext(
        paths={"teacher": teacher.path},
        views={"teacher": teacher.view},
        trained_domains=(),
        initial=None,
        control=None,
        changed={"teacher": {}},
        conversations=(),
        batch_tokens=200,
        cache=None,
    )
    return Retention(DOCUMENTS, context, window_bytes=40)


def test_an_ensemble_is_asked_for_the_same_bytes_after_the_same_bytes(retention: Retention, teacher: Subject) -> None:
    recorded = Recorded(teacher.scorer)
    ensemble = replace(teacher, name="both", path=None, view=None, scorer=recorded, model=None)
    results = {"teacher": retention.score(teacher, ignore), "both": retention.score(ensemble, ignore)}
    report = retention.report(results)
    for document, entry in zip(DOCUMENTS, report.data["documents"], strict=True):
        scores = entry["models"]
        assert scores["both"]["bytes"] == scores["teacher"]["bytes"]
        assert scores["both"]["chunks"] == 0
        asked = [request for request in recorded.requests if request.context + request.continuation in document.text]
        assert sum(len(request.continuation.encode()) for request in asked) == scores["both"]["bytes"]
        assert all(len((request.context + request.continuation).encode()) <= 40 for request in asked)
    bits = {row: cells["prose"].value for row, cells in report.tables[0].rows.items()}
    # The same model: windows that begin inside a word may be spelled otherwise on their own, and little else differs.
    assert bits["both"] == pytest.approx(bits["teacher"], rel=0.05)
    assert set(report.tables[1].rows) == {"teacher"}
    assert report.tables[0].differences["teacher"]["both"]["prose"].value == pytest.approx(
        bits["both"] - bits["teacher"]
    )


def test_an_ensemble_with_windows_that_have_no_score_is_skipped(retention: Retention, teacher: Subject) -> None:
    ensemble = replace(teacher, name="both", scorer=Recorded(teacher.scorer, problem_at=1), model=None)
    with pytest.raises(StageError, match=r"1 of \d+ windows have no score: the first crosses_boundary"):
        retention.score(ensemble, ignore)
