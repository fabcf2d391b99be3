"""Continuations of held-out documents: which prompts, what counts as a match, and what is shown."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from stages.evaluation.generations import GenerationOptions, common_bytes, sections
from stages.evaluation.sections import SectionContext, Subject
from stages.evaluation.windows import Document
from stages.stage import StageError

CONTEXT = SectionContext(
    paths={}, views={}, trained_domains=(), initial="init", control=None, changed={}, conversations=(), batch_tokens=64,
    cache=None,
)  # fmt: skip
OPTIONS = GenerationOptions(prompts=2, prompt_bytes=12, max_bytes=10, match_bytes=4)
DOCUMENTS = [
    Document("a/0", "a", "The prompt is one and the rest goes on."),
    Document("a/1", "a", "Short text."),
    Document("a/2", "a", "Another one: 東京 is far away."),
    Document("a/3", "a", "A third that is not wanted any more."),
    Document("b/0", "b", "In domain b there is one document."),
]


class Canned:
    """Writes what it was given."""

    name = "canned"

    def __init__(self, texts: list[str | None]) -> None:
        self.texts = texts

    def generate(self, prompts: Any, *, max_bytes: int, stop: Any = (), watch: Any = None) -> list[str | None]:
        return self.texts


def subject(*texts: str | None) -> Subject:
    return Subject("model", None, None, Canned(list(texts)), None)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [("", "", 0), ("abc", "abd", 2), ("abc", "abc", 3), ("abc", "abcd", 3), ("é", "è", 1), ("東x", "東y", 3)],
)
def test_common_bytes(first: str, second: str, expected: int) -> None:
    assert common_bytes(first, second) == common_bytes(second, first) == expected


def test_prompts_are_the_first_documents_of_each_domain_that_go_on_long_enough() -> None:
    (section,) = sections(OPTIONS, DOCUMENTS, CONTEXT)
    report = section.report({"teacher": section.score(subject("", "", ""), lambda share: None)})
    items = [(item.id, item.prompt, item.gold) for item in report.items]
    assert items == [
        ("a/0", "The prompt", " is one an"),
        ("a/2", "Another one:", " 東京 is"),
        ("b/0", "In domain b", " there is "),
    ]
    # A continuation is cut between characters; documents that are too short are counted.
    assert [(entry.what, entry.model) for entry in report.skipped] == [("short documents", None)]
    assert report.facts["prompts"] == 3


def test_matches_and_differences_are_those_of_the_bytes() -> None:
    (section,) = sections(OPTIONS, DOCUMENTS, CONTEXT)
    results = {
        "teacher": [" is one", " 東", "x"],
        "init": [" is two", " 京", "x"],
        "distill": [" is one an", " 東京", " there"],
    }
    report = section.report(results)
    (table,) = report.tables
    exact = {row: cells["exact match"].value for row, cells in table.rows.items()}
    assert exact == pytest.approx({"teacher": 200 / 3, "init": 100 / 3, "distill": 100.0})
    text = {row: cells["bytes as in the text"].value for row, cells in table.rows.items()}
    # init agrees in ` is ` and in the space: 東 is e6 9d b1 and 京 e4 ba ac.
    assert text == pytest.approx({"teacher": 11 / 3, "init": 5 / 3, "distill": 23 / 3})
    teacher = {row: cells.get("bytes as the teacher") for row, cells in table.rows.items()}
    assert teacher["teacher"] is None
    assert teacher["init"].value == pytest.approx((4 + 1 + 1) / 3)
    assert teacher["distill"].value == pytest.approx((7 + 4 + 0) / 3)
    assert table.differences["initial"]["distill"]["exact match"].value == pytest.approx(200 / 3)
    assert table.differences["teacher"]["init"]["exact match"].value == pytest.approx(-100 / 3)
    assert report.metrics["distill.exact_match"] == pytest.approx(100.0)
    assert report.items[2].correct == {"teacher": False, "init": False, "distill": True}
    assert [(sample.prompt, sample.gold) for sample in report.samples] == [
        ("The prompt", " is one an"),
        ("In domain b", " there is "),
    ]
    assert report.samples[0].continuations["distill"] == " is one an"


def test_a_prompt_that_one_model_cannot_be_asked_counts_for_none_and_is_listed() -> None:
    (section,) = sections(OPTIONS, DOCUMENTS, CONTEXT)
    report = section.report({"teacher": [" is one an", None, "x"], "init": ["x", "x", " there"]})
    assert report.tables[0].rows["teacher"]["exact match"].value == pytest.approx(50.0)
    assert report.tables[0].rows["init"]["exact match"].value == pytest.approx(50.0)
    assert report.facts["prompts"] == 2
    assert ("prompt a/2", "teacher") in [(entry.what, entry.model) for entry in report.skipped]
    assert report.items[1].correct == {"teacher": None, "init": False}
    assert "no room" in report.items[1].problems["teacher"]


def test_a_model_that_can_be_asked_little_is_skipped_itself() -> None:
    (section,) = sections(OPTIONS, DOCUMENTS, CONTEXT)
    with pytest.raises(StageError, match=r"2 of 3 prompts cannot be asked: .* lower prompt_bytes"):
        section.score(subject(None, "text", None), lambda share: None)
    assert section.score(subject("x", None, "y"), lambda share: None) == ["x", None, "y"]


def test_bad_options_and_too_short_documents_are_refused() -> None:
    with pytest.raises(ValidationError, match="match_bytes 20 is more than max_bytes 10"):
        GenerationOptions(max_bytes=10, match_bytes=20)
    with pytest.raises(StageError, match=r"no document of data.eval goes on for 4 bytes after a prompt of up to 12"):
        sections(OPTIONS, DOCUMENTS[1:2], CONTEXT)
