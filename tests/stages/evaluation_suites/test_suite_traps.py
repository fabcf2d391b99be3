"""Trap words: where tokens cross, which pairs control them, and what the section says of each tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from suite_scorers import Answering, uniform
from transformers import AutoTokenizer

from alignment.byte_view import ByteView
from stages.conversion.byte_tokenizer import write_byte_tokenizer
from stages.evaluation.core import Request
from stages.evaluation.sections import SectionContext, Subject
from stages.evaluation.suites.options import TrapsOptions
from stages.evaluation.suites.trap_pairs import draw_pairs, find_traps
from stages.evaluation.suites.trap_words import Pair, crossings, readings
from stages.evaluation.suites.traps import TrapsSection, sections
from stages.evaluation.suites.words import lexicon
from stages.stage import StageError

WORDS = (*lexicon().known, *lexicon().held_out)


@pytest.fixture(scope="module")
def gpt2(gpt2_tokenizer_dir: Path) -> ByteView:
    return ByteView.from_tokenizer(gpt2_tokenizer_dir)


@pytest.fixture(scope="module")
def views(tiny_tokenizer_dirs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, ByteView]:
    directory = tmp_path_factory.mktemp("bytes")
    write_byte_tokenizer(AutoTokenizer.from_pretrained(tiny_tokenizer_dirs[0]), directory)
    small, large = (ByteView.from_tokenizer(path) for path in tiny_tokenizer_dirs)
    return {"teacher": small, "init": large, "distill": large, "bytes": ByteView.from_tokenizer(directory)}


def _section(views: dict[str, ByteView], **options: int) -> TrapsSection:
    context = SectionContext({}, views, (), "init" if "init" in views else None, None, {}, [], 512, None)
    (section,) = sections(TrapsOptions.model_validate({"pairs": 1000, **options}), [], context)
    return section


@pytest.fixture(scope="module")
def section(views: dict[str, ByteView]) -> TrapsSection:
    return _section(views, items=180)


def _report(section: TrapsSection, **scorers: Answering) -> Any:
    results = {}
    for row, scorer in scorers.items():
        answers = section.score(Subject(row, None, None, scorer, None), lambda share: None)
        results[row] = json.loads(json.dumps(answers, allow_nan=False))
    return section.report(results)


@pytest.mark.demo
@pytest.mark.parametrize(
    ("first", "second", "token", "cuts"),
    [
        ("moves", "table", "est", (3, 6)),
        ("cars", "tar", "star", (3,)),
        ("no", "where", "nowhere", ()),
        ("for", "get", "forget", ()),
        ("therapist", "s", "therapists", ()),
        ("top", "end", None, None),
    ],
)
def test_gpt2_s_traps(gpt2, first, second, token, cuts):
    (crossing,) = crossings(gpt2, [Pair(first, second)])
    assert (crossing and crossing.text, crossing and crossing.cuts) == (token, cuts)


@pytest.mark.demo
def test_about_a_sixth_of_glued_pairs_are_traps_for_gpt2(gpt2):
    # evaluation.md §7 has 17.3 % and 0.87 % strict, with another list of words.
    pairs = draw_pairs(WORDS, 2000, Random(1))
    crossed = [found for found in crossings(gpt2, pairs) if found]
    assert 0.12 < len(crossed) / len(pairs) < 0.22
    assert 0.005 < sum(found.text in WORDS for found in crossed) / len(pairs) < 0.04


def test_crossings_are_those_of_the_tokenizer_s_own_offsets(tiny_tokenizer_dirs):
    view = ByteView.from_tokenizer(tiny_tokenizer_dirs[1])
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dirs[1])
    pairs = draw_pairs(WORDS, 300, Random(2))
    for pair, crossing in zip(pairs, crossings(view, pairs), strict=True):
        text = f"Written: {pair.glued}\n"
        border = len("Written: ") + pair.border
        spans = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
        across = [text[start:end].strip() for start, end in spans if start < border < end]
        assert ([crossing.text] if crossing else []) == across


def test_readings_count_every_way_to_read_a_glued_pair():
    words = {"cars", "tar", "car", "star", "nowhere", "no", "where", "now", "here"}
    assert readings(Pair("cars", "tar"), words) == 2
    assert readings(Pair("no", "where"), words) == 3
    assert readings(Pair("moves", "table"), {"moves", "table"}) == 1


def test_controls_are_the_same_words_without_a_crossing_token(views):
    pairs = draw_pairs(WORDS, 1000, Random(3))
    found = find_traps(views["init"], pairs, frozenset(WORDS), 60)
    assert len(found.traps) + found.without_control == 60
    assert len(found.traps) > 40
    assert all(found is not None for found in crossings(views["init"], [trap.pair for trap in found.traps]))
    assert crossings(views["init"], [trap.control for trap in found.traps]) == [None] * len(found.traps)
    assert all(trap.control.first == trap.pair.first != trap.control.second for trap in found.traps)
    seconds = [trap.control.second for trap in found.traps]
    assert set(seconds) <= {pair.second for pair in pairs}
    assert found.strict <= found.crossing <= found.pairs == 1000


def test_the_tempting_cuts_are_offered_and_the_right_one_is_right(section, views):
    questions = section.asked.suite.questions
    for question in questions:
        owner, _, kind = question.groups["pairs"].rpartition("_")
        lines = question.prompt.splitlines()
        glued = next(line for line in reversed(lines) if line.startswith("Written: ")).removeprefix("Written: ")
        assert len(set(question.options)) == 4
        if question.groups["question"] == "cut":
            assert all(option.replace(" ", "") == glued for option in question.options)
            first, second = question.answer.split()
        else:
            known = lines[-2].rpartition(" ")[2]
            first, second = (
                (known, question.answer.strip()) if "first" in lines[-2] else (question.answer.strip(), known)
            )
        assert first + second == glued
        (crossing,) = crossings(views[owner], [Pair(first, second)])
        assert (crossing is None) == (kind == "control")
        if crossing and question.groups["question"] == "cut":
            assert {f" {glued[:cut]} {glued[cut:]}" for cut in crossing.cuts} <= set(question.options)


@pytest.mark.demo
def test_strict_traps_and_others_are_asked_in_the_same_forms_with_answers_at_every_place(gpt2):
    section = _section({"teacher": gpt2}, items=64)
    questions = [q for q in section.asked.suite.questions if "control" not in q.id]
    for kind in ("trap", "strict"):
        of_kind = [q for q in questions if q.groups["pairs"] == f"teacher_{kind}"]
        assert len(of_kind) > 8
        cuts = [q for q in of_kind if q.groups["question"] == "cut"]
        assert abs(2 * len(cuts) - len(of_kind)) <= len(of_kind) // 4
        places = [q.gold for q in of_kind]
        assert max(places.count(place) for place in range(4)) - min(places.count(place) for place in range(4)) <= 2


def test_guessing_scores_chance_and_traps_cost_nothing(section):
    report = _report(section, teacher=Answering(uniform))
    assert report.metrics["teacher.accuracy"] == pytest.approx(0.25)
    assert report.metrics["teacher.cost"] == pytest.approx(0)


def test_the_cost_of_traps_is_that_of_a_model_s_own_tokenizer(section):
    """A model that knows all but the traps of the tokenizer that ``init`` and ``distill`` share."""
    known = {
        (question.prompt, question.answer)
        for question in section.asked.suite.questions
        if question.groups["pairs"] not in ("init_trap", "init_strict")
    }

    def nats(request: Request) -> float:
        return 1.0 if request in known else 2.0 + len(request.continuation) / 100

    report = _report(section, **{row: Answering(nats) for row in ("teacher", "init", "distill")})
    own = report.tables[0].rows
    assert own["teacher"]["cost of traps"].value == 0
    assert own["init"]["controls"].value == 100
    assert own["init"]["cost of traps"].value > 60
    assert own["distill"] == own["init"]


def test_a_tokenizer_without_traps_is_said_to_have_none(section):
    report = _report(section, bytes=Answering(uniform))
    assert "bytes" not in report.tables[0].rows
    assert report.metrics["bytes.rate"] == 0
    assert any(entry.model == "bytes" and "none among 1,000 glued pairs" in entry.why for entry in report.skipped)


def test_questions_are_a_function_of_options_and_tokenizers(views, section):
    again = _section(views, items=180)
    assert again.asked.suite.questions_digest == section.asked.suite.questions_digest
    assert _section(views, items=180, seed=1).asked.suite.questions_digest != section.asked.suite.questions_digest
    fewer = _section({"teacher": views["teacher"]}, items=60)
    assert fewer.asked.suite.settings_digest != section.asked.suite.settings_digest


def test_without_any_trap_the_option_is_refused(views):
    with pytest.raises(StageError, match="no tokenizer has a token across the border of any of 1,000 glued pairs"):
        _section({"teacher": views["bytes"]}, items=8)


def test_too_few_questions_for_the_tokenizers_are_refused(views):
    with pytest.raises(StageError, match="8 questions are too few for 3 tokenizers"):
        _section(views, items=8)
