"""Misspelled text as a section: scorers whose cost is known, and nothing dropped in silence."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from stages.evaluation.core import Problem, Request, TextScore, Watch, ignore
from stages.evaluation.robustness.excerpts import choose_excerpts
from stages.evaluation.robustness.noise import Noise, sections
from stages.evaluation.robustness.options import NoiseOptions
from stages.evaluation.sections import SectionContext, SectionReport, Subject
from stages.evaluation.windows import Document
from stages.stage import StageError

PROSE = (
    "Several careful readers gathered around the library before noon, because somebody had promised an unusual "
    "lecture about ancient rivers and their hidden harbours. Nobody expected the speaker to arrive on foot, carrying "
    "nothing but a wooden ladder and seven letters written by sailors long ago."
)
DOCUMENTS = [Document(f"prose/{number}", "prose", PROSE[number * 20 :]) for number in range(3)]


class Scorer:
    """Says for each request what ``nats`` makes of it."""

    name = "scorer"

    def __init__(self, nats: Callable[[Request], float | Problem]) -> None:
        self._nats = nats

    def score(self, requests: Sequence[Request], watch: Watch = ignore) -> list[TextScore]:
        found = [self._nats(request) for request in requests]
        watch(1.0)
        return [
            TextScore(math.nan, 1, 0, False, value) if isinstance(value, str) else TextScore(value, 1, 1, False)
            for value in found
        ]

    def generate(
        self, prompts: Sequence[str], *, max_bytes: int, stop: Sequence[str] = (), watch: Watch = ignore
    ) -> list[str | None]:
        raise AssertionError("nothing is to be written")


def uniform_over_bytes(request: Request) -> float:
    return 8 * math.log(2) * len(request.continuation.encode())


def _section(**options: Any) -> Noise:
    defaults = {"questions": 6, "excerpts": 3, "excerpt_bytes": 120, "severities": [0.5, 1.0]}
    context = SectionContext({}, {}, (), "init", None, {}, [], 512, None)
    (section,) = sections(NoiseOptions.model_validate(defaults | options), DOCUMENTS, context)
    return section


def _report(section: Noise, **scorers: Callable[[Request], float | Problem]) -> SectionReport:
    results = {}
    for row, nats in scorers.items():
        told: list[float] = []
        found = section.score(Subject(row, None, None, Scorer(nats), None), told.append)
        assert told == sorted(told)
        assert told[-1] == pytest.approx(1.0)
        results[row] = json.loads(json.dumps(found, allow_nan=False))
    return section.report(results)


def _answers(section: Noise, perturbation: str | None = None) -> set[tuple[str, str]]:
    """Prompts with their right answers, of all questions or of one perturbation."""
    questions = section._questions.suite.questions
    return {(q.prompt, q.answer) for q in questions if perturbation in (None, q.groups["perturbation"])}


def test_a_uniform_byte_model_pays_for_the_bytes_that_come_and_go():
    section = _section(perturbations=["case", "delete", "duplicate"], severities=[1.0])
    row = _report(section, teacher=uniform_over_bytes).tables[0].rows["teacher"]
    excerpts = choose_excerpts(DOCUMENTS, 3, 120, purpose="noise", seed=0)
    size = sum(len(excerpt.text) for excerpt in excerpts)
    words = sum(sum(len(word.strip(".,")) >= 4 for word in excerpt.text.split()) for excerpt in excerpts)
    assert row["case"].value == pytest.approx(0)
    assert row["duplicate"].value == pytest.approx(100 * words / size)
    assert row["delete"].value == pytest.approx(-100 * words / size)
    assert row["all at 1"].value == pytest.approx(0, abs=1e-9)


def test_accuracy_that_misspellings_take_away_is_lost():
    section = _section(perturbations=["duplicate", "case"])
    clean, all_ = _answers(section, "clean"), _answers(section)

    def knows_clean_text(request: Request) -> float:
        return 1.0 if request in clean else 2.0

    def knows(request: Request) -> float:
        return 1.0 if request in all_ else 2.0

    report = _report(section, teacher=knows, init=knows_clean_text)
    lost = report.tables[1].rows
    assert lost["teacher"]["duplicate"].value == pytest.approx(0)
    # A tie of four is right in a quarter of the cases.
    assert lost["init"]["duplicate"].value == pytest.approx(75)
    assert report.metrics["init.accuracy_lost.all_at_1"] == pytest.approx(0.75)


def test_a_model_that_knows_nothing_loses_nothing():
    section = _section(perturbations=["swap"])
    right = _answers(section)

    def wrong(request: Request) -> float:
        return 2.0 if request in right else 1.0

    report = _report(section, teacher=wrong)
    assert report.tables[1].rows["teacher"] == {}
    assert report.curves[1].lines == {}


def test_rows_are_compared_with_the_teacher_and_the_initial_model():
    report = _report(
        _section(perturbations=["duplicate"]),
        teacher=uniform_over_bytes,
        init=lambda request: 1 + uniform_over_bytes(request),
        distill=lambda request: 2 * uniform_over_bytes(request),
    )
    differences = report.tables[0].differences
    assert set(differences) == {"teacher", "initial"}
    assert differences["teacher"]["distill"]["duplicate"].value == pytest.approx(0)
    assert differences["teacher"]["init"]["duplicate"].value < 0
    assert report.curves[0].lines["teacher"][0] == (0.0, 0.0)


def test_an_excerpt_that_cannot_be_scored_counts_for_no_model_and_is_listed():
    section = _section(perturbations=["homoglyph"], severities=[1.0])

    def ascii_alone(request: Request) -> float | Problem:
        if request.context == "" and not request.continuation.isascii():
            return "not_representable"
        return uniform_over_bytes(request)

    report = _report(section, teacher=uniform_over_bytes, init=ascii_alone)
    assert report.tables[0].rows == {}
    assert [(entry.model, entry.why.split(";")[0]) for entry in report.skipped] == [
        ("init", "not_representable, in 1 of 2 versions")
    ] * 3
    assert report.facts["excerpts scored"] == 0
    # The questions were asked all the same.
    assert set(report.tables[2].rows) == {"teacher", "init"}


def test_the_options_of_a_question_are_alike_and_its_versions_share_them():
    section = _section(perturbations=["swap", "ocr"])
    questions = section._questions.suite.questions
    clean = questions[:6]
    assert len(questions) == 6 * 5
    for number, question in enumerate(questions):
        assert question.options == clean[number % 6].options
        assert len({len(option) for option in question.options}) == 1
        assert len(set(question.options)) == 4
    for question in clean:
        assert f"{question.prompt}{question.answer}" in PROSE
        assert len(question.prompt.encode()) <= 120
    assert "different ones" not in "".join(_report(section, teacher=uniform_over_bytes).warnings)


def test_text_without_words_is_refused():
    context = SectionContext({}, {}, (), None, None, {}, [], 512, None)
    with pytest.raises(StageError, match=r"noise: data\.eval has no plain text with words"):
        sections(NoiseOptions(), [Document("n/0", "n", "12 34 56 78")], context)


def test_excerpts_come_from_every_domain_and_are_whole_words():
    documents = [*DOCUMENTS, Document("code/0", "code", "x = 1\n" * 200), Document("zh/0", "zh", "東京" * 200)]
    found = choose_excerpts(documents, 8, 100, purpose="test", seed=3)
    assert [excerpt.domain for excerpt in found[:3]] == ["prose", "code", "zh"]
    assert len({excerpt.text for excerpt in found}) == len(found) == 8
    for excerpt in found:
        assert 0 < len(excerpt.text.encode()) <= 100
        source = next(document.text for document in documents if excerpt.id.startswith(document.id))
        assert excerpt.text in source
        if excerpt.domain == "prose":
            assert f" {excerpt.text} " in f" {PROSE} " or f" {excerpt.text}\n" in PROSE
    assert found == choose_excerpts(documents, 8, 100, purpose="test", seed=3)
    assert found != choose_excerpts(documents, 8, 100, purpose="test", seed=4)
