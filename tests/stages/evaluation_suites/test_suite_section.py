"""A suite as a section: models that do not read score chance, and nothing is dropped in silence."""

from __future__ import annotations

import json
from typing import Any

import pytest
from suite_scorers import Answering, uniform, uniform_over_bytes

from stages.evaluate import Evaluate
from stages.evaluation.core import Request
from stages.evaluation.sections import SectionReport, Subject
from stages.evaluation.suites.options import SuitesOptions
from stages.evaluation.suites.registry import SUITES, make_suite
from stages.evaluation.suites.section import SuiteSection
from stages.stage import StageError


@pytest.fixture(scope="module")
def all_sections() -> dict[str, SuiteSection]:
    options = SuitesOptions.model_validate(
        {"langgame": {"items": 23 * 8}, "cute": {"items": 28 * 8}, "addition": {"items": 17 * 8}}
    )
    references = {"teacher": "teacher", "initial": "init", "control": "control"}
    return {
        name: SuiteSection(make_suite(name, chosen, "test"), references) for name, chosen in options.chosen().items()
    }


def _score(section: SuiteSection, scorer: Answering) -> dict[str, Any]:
    """The section's answers, as they come back from a file."""
    told: list[float] = []
    answers = section.score(Subject("model", None, None, scorer, None), told.append)
    assert told[-1] == pytest.approx(1.0)
    assert told == sorted(told)
    return json.loads(json.dumps(answers, allow_nan=False))


def _report(section: SuiteSection, **scorers: Answering) -> SectionReport:
    return section.report({name: _score(section, scorer) for name, scorer in scorers.items()})


def _key(report: SectionReport, row: str) -> dict[str, float]:
    return {name: measure.value for name, measure in report.tables[0].rows[row].items()}


def _right(section: SuiteSection) -> set[tuple[str, str]]:
    return {(question.prompt, question.answer) for question in section.suite.questions}


def _written(section: SuiteSection) -> dict[str, str]:
    return {question.prompt: question.answer for question in section.suite.questions}


@pytest.mark.parametrize("name", SUITES)
def test_a_model_without_preference_scores_chance_exactly(name, all_sections):
    section = all_sections[name]
    key = _key(_report(section, teacher=Answering(uniform)), "teacher")
    assert key["accuracy"] == pytest.approx(100 * section.suite.chance)
    assert key["score"] == pytest.approx(0, abs=1e-9)
    assert key["ties"] == 100


@pytest.mark.parametrize(("name", "measure"), [("langgame", "accuracy per byte"), ("addition", "accuracy")])
def test_a_uniform_byte_model_scores_chance_per_byte(name, measure, all_sections):
    key = _key(_report(all_sections[name], teacher=Answering(uniform_over_bytes)), "teacher")
    assert key[measure] == pytest.approx(25)
    assert key["right answer"] == pytest.approx(8)


@pytest.mark.parametrize("name", SUITES)
def test_a_model_that_prefers_the_first_option_scores_chance(name, all_sections):
    section = all_sections[name]
    firsts = {(question.prompt, question.options[0]) for question in section.suite.questions}
    scorer = Answering(lambda request: 1.0 if request in firsts else 2.0)
    key = _key(_report(section, teacher=scorer), "teacher")
    assert key["accuracy"] == pytest.approx(100 * section.suite.chance, abs=2)
    assert key["ties"] < 1  # of a question that is there twice, with options in another order


@pytest.mark.parametrize("name", SUITES)
def test_a_model_that_knows_is_right_and_one_that_echoes_is_wrong(name, all_sections):
    section = all_sections[name]
    right, written = _right(section), _written(section)
    knows = Answering(lambda request: 1.0 if request in right else 2.0, lambda prompt: written[prompt] + "\n")
    echoes = Answering(lambda request: 2.0 if request in right else 1.0, lambda prompt: prompt[-20:])
    report = _report(section, teacher=knows, init=echoes, control=knows)
    assert _key(report, "teacher")["accuracy"] == 100
    assert _key(report, "init")["accuracy"] == 0
    if "generation" in section.suite.forms:
        assert _key(report, "teacher")["exact match"] == 100
        assert _key(report, "init")["exact match"] == 0
    differences = report.tables[0].differences
    assert set(differences) == {"teacher", "initial", "control"}
    assert set(differences["teacher"]) == {"init", "control"}
    lost = differences["teacher"]["init"]["accuracy"]
    assert (lost.value, lost.low, lost.high) == (-100, -100, -100)
    same = differences["teacher"]["control"]["accuracy"]
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert report.metrics["teacher.accuracy"] == 1
    assert report.metrics["init.score"] < 0


def test_what_the_model_is_asked_is_the_prompt_and_each_option(all_sections):
    section = all_sections["langgame"]
    scorer = Answering(uniform)
    _score(section, scorer)
    expected = [Request(question.prompt, option) for question in section.suite.questions for option in question.options]
    assert scorer.asked == expected
    assert scorer.limits == []


def test_answers_have_room_and_end_with_the_line(all_sections):
    section = all_sections["cute"]
    scorer = Answering(uniform)
    _score(section, scorer)
    longest = max(len(question.answer.encode()) for question in section.suite.questions)
    assert max(limit for limit, _ in scorer.limits) > longest
    assert {stop for _, stop in scorer.limits} == {("\n",)}


def test_questions_that_cannot_be_asked_are_counted_and_listed(all_sections):
    section = all_sections["langgame"]
    right = _right(section)
    questions = section.suite.questions
    broken = {(questions[n].prompt, questions[n].options[-1]) for n in range(0, len(questions), 4)}

    def nats(request: Request) -> float | str:
        return "crosses_boundary" if request in broken else 1.0 if request in right else 2.0

    report = _report(section, teacher=Answering(nats))
    count = len(section.suite.questions)
    listed = [item for item in report.items if item.problems]
    assert len(listed) == len(range(0, count, 4))
    assert all(item.correct == {"teacher": None} for item in listed)
    assert all(item.problems["teacher"].startswith("crosses_boundary: '") for item in listed)
    key = _key(report, "teacher")
    assert key["not answered"] == len(listed)
    assert key["accuracy"] == pytest.approx(100 * (1 - len(listed) / count))
    assert any(f"teacher could not be asked {len(listed)} of {count}" in line for line in report.warnings)


def test_what_could_not_be_written_is_counted_too(all_sections):
    section = all_sections["addition"]
    report = _report(section, teacher=Answering(uniform, lambda prompt: None))
    assert _key(report, "teacher")["not answered"] == len(section.suite.questions)
    assert any("no_answer" in line for line in report.warnings)


def test_a_model_like_guessing_is_named(all_sections):
    section = all_sections["langgame"]
    right = _right(section)
    knows = Answering(lambda request: 1.0 if request in right else 2.0)
    report = _report(section, teacher=knows, init=Answering(uniform))
    assert [line for line in report.warnings if "guessing" in line] == [
        "LangGame: init cannot be told from guessing (chance 25.0 % is within the interval of its accuracy)"
    ]


def test_groups_have_tables_whose_questions_are_all_questions(all_sections):
    report = _report(all_sections["langgame"], teacher=Answering(uniform))
    titles = [table.title for table in report.tables]
    assert titles == [
        "LangGame: all 184 questions",
        "LangGame: accuracy by stratum",
        "LangGame: accuracy per byte by stratum",
        "LangGame: accuracy by type",
        "LangGame: accuracy per byte by type",
    ]
    for table in report.tables[1:]:
        assert sum(int(column.note.split()[0]) for column in table.columns) == 184
    assert "Chance is 25.0 %" in report.about
    assert report.facts["distinct_questions"] == 184
    assert len(report.facts["settings_sha256"]) == len(report.facts["questions_sha256"]) == 64


def test_answers_to_other_questions_are_refused(all_sections):
    section = all_sections["langgame"]
    answers = _score(section, Answering(uniform)) | {"questions": "0" * 64}
    with pytest.raises(StageError, match="kept answers of init are to other questions"):
        section.report({"init": answers})


def test_a_missing_reference_leaves_out_its_differences_alone(all_sections):
    report = _report(all_sections["langgame"], init=Answering(uniform), distill=Answering(uniform))
    assert set(report.tables[0].differences) == {"initial"}


def test_sections_rely_on_what_they_ask(all_sections):
    assert all_sections["langgame"].relies_on == {"score_continuations"}
    assert all_sections["cute"].relies_on == {"score_continuations", "generate"}


def test_the_report_is_plain_data(all_sections):
    for section in all_sections.values():
        report = _report(section, teacher=Answering(uniform, lambda prompt: "1"))
        json.dumps(report.to_json(), allow_nan=False)


@pytest.mark.parametrize("value", [["langgame", "cute"], {"langgame": {}, "cute": {}}])
def test_suites_may_be_named_alone(value):
    assert list(SuitesOptions.model_validate(value).chosen()) == ["langgame", "cute"]


@pytest.mark.parametrize(
    ("value", "message"),
    [({}, "no suite is named; there are langgame"), (["langame"], "langame"), ({"cute": {"tasks": []}}, "tasks")],
)
def test_what_names_no_suite_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        SuitesOptions.model_validate(value)


@pytest.mark.parametrize(
    ("suite", "options", "least"),
    [
        # 6 types of question in 3 strata, and 5 in the fourth
        ("langgame", {}, 23),
        # orth on known and held-out words; 7 tasks on letters with random ones too; 5 tasks on sentences
        ("cute", {}, 28),
        ("cute", {"tasks": ["orth"]}, 2),
        # 4 x 4 pairs of lengths but for one digit and one digit, and 2 unseen lengths
        ("addition", {}, 17),
        ("addition", {"digits": [3], "unseen_digits": [], "grouping": ["left", "right"]}, 2),
    ],
)
def test_fewer_questions_than_kinds_of_them_are_refused_before_anything_runs(suite, options, least):
    assert Evaluate.Config(suites={suite: {**options, "items": least}}).suites.chosen()[suite].items == least
    with pytest.raises(ValueError, match=f"{suite}.items: {least - 1} questions .* give {least} or more"):
        Evaluate.Config(suites={suite: {**options, "items": least - 1}})
    with pytest.raises(StageError, match=f"suites.{suite}.items"):
        make_suite(suite, SuitesOptions.model_validate({suite: {**options, "items": 1}}).chosen()[suite], "test")


def test_every_suite_has_options_and_a_module():
    assert set(SUITES) == set(SuitesOptions.model_fields)
    for name, options in SuitesOptions.model_validate(list(SUITES)).chosen().items():
        assert make_suite(name, options, "test").name == name


def test_accuracy_per_byte_is_left_out_where_options_have_the_same_length(all_sections):
    assert "accuracy per byte" not in _key(_report(all_sections["addition"], teacher=Answering(uniform)), "teacher")
    assert "accuracy per byte" in _key(_report(all_sections["cute"], teacher=Answering(uniform)), "teacher")


def test_repeated_questions_are_warned_of():
    options = SuitesOptions.model_validate(
        {"addition": {"items": 900, "digits": [1, 2], "unseen_digits": [], "forms": ["choice"]}}
    ).chosen()["addition"]
    section = SuiteSection(make_suite("addition", options, "test"), {})
    assert section.suite.distinct_questions < 800
    assert any(
        f"only {section.suite.distinct_questions} of 900" in line
        for line in _report(section, teacher=Answering(uniform)).warnings
    )


def test_one_form_alone_has_its_measures_alone():
    options = SuitesOptions.model_validate({"addition": {"items": 17, "forms": ["generation"]}}).chosen()["addition"]
    section = SuiteSection(make_suite("addition", options, "test"), {})
    scorer = Answering(uniform_over_bytes, lambda prompt: "1")
    report = _report(section, teacher=scorer)
    assert set(_key(report, "teacher")) == {"exact match", "right answer", "not answered"}
    assert {continuation for _, continuation in scorer.asked} == {q.answer for q in section.suite.questions}
