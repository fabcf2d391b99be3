"""A data set of the hub is read to its end though the connection breaks, or ends with what to do about it."""

from __future__ import annotations

import json
import re

import pytest
from hub_world import Fault, Outcome, Repository, read_all, serving

from stages.documents import DocumentProblem
from stages.hub_rows import HubRows

PATIENCE_SECONDS = 0.5
ILL = 507  # neither library repeats a request that was answered so


def _lines(first: int, count: int, letters: int = 10) -> bytes:
    texts = (f"{number} " + "x" * letters for number in range(first, first + count))
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


# The library asks for JSON lines ten or so megabytes at a time: the first file is three requests.
LONG = {"data/train-0.jsonl": _lines(0, 5600, 5000), "data/train-1.jsonl": _lines(5600, 400)}
SHORT = {"data/train-0.jsonl": _lines(0, 30), "data/train-1.jsonl": _lines(30, 10)}


def _breaks_in_the_middle() -> Fault:
    """Twice at the second piece of the first file, once at the third, once at the second file."""
    answers = {"data/train-0.jsonl": iter([ILL, ILL, None, ILL]), "data/train-1.jsonl": iter([ILL])}

    def fault(file: str, start: int) -> int | None:
        first_piece = file == "data/train-0.jsonl" and start == 0
        return None if first_piece else next(answers.get(file, iter(())), None)

    return fault


def _cannot_be_opened_by_the_training() -> Fault:
    """The source stage opens a data set twice, to count and to read the sample; each asks for the card twice."""
    answers = iter([None] * 4 + [ILL] * 3)
    return lambda file, start: next(answers, None) if file == "README.md" else None


@pytest.fixture(scope="module")
def repositories() -> dict[str, Repository]:
    return {
        "org/breaks": Repository(LONG, _breaks_in_the_middle()),
        "org/goes": Repository(SHORT, lambda file, start: ILL if "train-1" in file else None),
        "org/forbidden": Repository(SHORT, lambda file, start: 403 if "train-1" in file else None),
        "org/damaged": Repository(SHORT | {"data/train-1.jsonl": b'{"text": "30 \n'}),
        "org/opened-again": Repository(SHORT, _cannot_be_opened_by_the_training()),
    }


@pytest.fixture(scope="module")
def read(repositories: dict[str, Repository], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    documents = {name: 6000 if each.files is LONG else 40 for name, each in repositories.items()}
    with serving(repositories) as address:
        return read_all(address, tmp_path_factory.mktemp("hub"), documents | {"org/absent": 40}, PATIENCE_SECONDS)


def _breaks(outcome: Outcome) -> list[str]:
    return [line for line in outcome.said if "the connection broke" in line]


def test_reading_goes_on_at_the_record_that_was_due_and_says_every_break_once(read):
    outcome = read["org/breaks"]
    assert outcome.numbers == list(range(6000)), "no record is left out, none comes twice"
    assert outcome.error == ""
    records = [int(re.search(r"broke at record ([\d,]+) ", line)[1].replace(",", "")) for line in _breaks(outcome)]
    assert len(records) == 3, "the first break took two attempts"
    assert 1 < records[0] < records[1] < records[2] == 5601
    assert outcome.said[-1].startswith("note: org/breaks: the connection broke at record 5,601 (Server error '507")


def test_a_hub_that_stays_away_ends_the_stage_with_the_record_and_the_way_on(read):
    outcome = read["org/goes"]
    assert outcome.numbers == list(range(30))
    assert len(_breaks(outcome)) == 1
    assert outcome.error.startswith("org/goes: the connection broke at record 31 (Server error '507")
    assert "the same command goes on" in outcome.error
    assert outcome.transient
    assert outcome.seconds >= 0.25, "it was tried again, with growing pauses"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("org/forbidden", "org/forbidden: cannot be read on from record 31: 403 Forbidden"),
        ("org/damaged", "org/damaged: cannot be read on from record 31: JSON parse error"),
        ("org/absent", "org/absent: the data set cannot be streamed: "),
    ],
)
def test_what_waiting_does_not_mend_is_said_at_once(read, name, said):
    assert read[name].error.startswith(said)
    assert not read[name].transient
    assert _breaks(read[name]) == []


def test_a_data_set_that_cannot_be_opened_for_a_moment_is_waited_for(read):
    outcome = read["org/opened-again"]
    assert outcome.numbers == list(range(40))
    assert [line.split(" (")[0] for line in _breaks(outcome)] == [
        "note: org/opened-again: the connection broke at record 1"
    ]


def test_offline_nothing_is_waited_for():
    rows = HubRows("org/name", None, None, "train")
    with pytest.raises(DocumentProblem, match=r"org/name: the data set cannot be streamed: .*[Oo]ffline"):
        next(rows.read(1, pytest.fail))
