"""The sections ``next_byte`` and ``exact_bytes`` over tiny models of two tokenizers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from alignment.byte_view import ByteView
from alignment.tokenizer_facts import load_tokenizer
from stages.evaluation.core import Request, ignore
from stages.evaluation.exact_bytes import bits, next_byte
from stages.evaluation.exact_bytes.passages import passages
from stages.evaluation.exact_bytes.scorer import ExactByteScorer
from stages.evaluation.scoring import load_model
from stages.evaluation.sections import SectionContext, Subject
from stages.evaluation.text_start import TextStart
from stages.evaluation.token_scorer import TokenScorer
from stages.evaluation.windows import Document
from stages.stage import StageError, StageInterrupted

DOCUMENTS = [
    Document("prose/0", "prose", "The quick fox sleeps where two boundaries meet, and the dog jumps on."),
    Document("prose/1", "prose", "Lazy dogs sleep; foxes don't.\n\nAnd so on."),
    Document("german/0", "german", "Im Wald steht ein naïves Häuschen, 東京 liegt weit weg 🙂."),
]


@pytest.fixture(scope="module")
def subjects(tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]) -> dict[str, Subject]:
    small, large = tiny_tokenizer_dirs
    directories = {
        "teacher": tiny_model_dir(small, seed=0),
        "same": None,
        "other": tiny_model_dir(large, seed=1, tied=False),
    }
    directories["same"] = directories["teacher"]
    return {name: subject(name, directory) for name, directory in directories.items()}


def subject(name: str, directory: Path) -> Subject:
    model, tokenizer = load_model(directory), load_tokenizer(directory, trust_remote_code=False)
    view = ByteView.from_tokenizer(tokenizer)
    scorer = TokenScorer(name, model, view, TextStart.of(tokenizer, view), batch_tokens=512)
    return Subject(name, directory, view, scorer, model)


def context(subjects: Mapping[str, Subject], **changed: Mapping[str, str]) -> SectionContext:
    return SectionContext(
        paths={name: found.path for name, found in subjects.items()},
        views={name: found.view for name, found in subjects.items()},
        trained_domains=(),
        initial="other",
        control=None,
        changed={name: changed.get(name, {}) for name in subjects},
        conversations=(),
        batch_tokens=512,
        cache=None,
    )


def results(section: Any, subjects: Mapping[str, Subject]) -> dict[str, Any]:
    """What the section has of every model, through JSON as the stage keeps it."""
    return {
        name: json.loads(json.dumps(section.score(found, ignore), allow_nan=False)) for name, found in subjects.items()
    }


def test_a_model_is_at_no_distance_from_itself_and_another_at_some(subjects):
    (section,) = next_byte.sections(next_byte.NextByteOptions(positions=40), DOCUMENTS, context(subjects))
    report = section.report(results(section, subjects))
    rows = report.tables[0].rows
    assert rows["same"]["KL to teacher"].value == 0
    assert rows["same"]["same first"].value == 100
    assert rows["other"]["KL to teacher"].value > 0.01
    assert rows["other"]["KL to teacher"].too_few == 3, "documents, however many positions"
    assert "KL to teacher" not in rows["teacher"]
    expected = []
    scorer = ExactByteScorer.of_subject(subjects["other"], batch_tokens=512)
    for passage, ends in section.asked:
        data = passage.text.encode()
        for end, logp in zip(ends, scorer.next_byte([data[:end] for end in ends]), strict=True):
            expected.append(-logp[data[end]] / math.log(2))
    assert rows["other"]["own byte"].value == pytest.approx(np.mean(expected), rel=1e-5)
    assert report.facts["positions"] == 40
    assert set(report.bars[0].values["other"]) == {"prose", "german"}
    assert report.metrics["other.kl_nats"] == rows["other"]["KL to teacher"].value
    assert "valid ones only" in report.about


def test_places_are_drawn_by_the_seed_and_asked_of_all_models_alike(subjects):
    def places(seed: int) -> list[tuple[str, tuple[int, ...]]]:
        options = next_byte.NextByteOptions(positions=10, seed=seed)
        (section,) = next_byte.sections(options, DOCUMENTS, context(subjects))
        return [(passage.document, tuple(ends)) for passage, ends in section.asked]

    assert places(0) == places(0) != places(1)
    assert sum(len(ends) for _, ends in places(0)) == 10


def test_divergence_is_that_of_the_definition():
    reference = np.log(np.array([[0.5, 0.25, 0.25]]))
    assert next_byte.divergence(reference, reference)[0] == 0
    other = np.log(np.array([[0.25, 0.5, 0.25]]))
    assert next_byte.divergence(reference, other)[0] == pytest.approx(0.25 * math.log(2))
    with np.errstate(divide="ignore"):
        never = np.log(np.array([[0.5, 0.5, 0.0]]))
    assert next_byte.divergence(reference, never)[0] == pytest.approx(
        0.25 * math.log(0.5) + 0.25 * (math.log(0.25) + 30)
    )
    assert next_byte.divergence(never, reference)[0] == pytest.approx(0.5 * math.log(2))


def test_without_the_teacher_there_is_no_divergence(subjects):
    (section,) = next_byte.sections(next_byte.NextByteOptions(positions=8), DOCUMENTS, context(subjects))
    report = section.report(results(section, {"other": subjects["other"]}))
    assert [column.name for column in report.tables[0].columns] == ["own byte"]
    assert report.bars == ()


def test_documents_that_some_tokenizer_changes_are_left_out_for_all_and_listed(subjects):
    about = context(subjects, other={"prose/1": "byte 4", "german/0": "byte 1"})
    for module, options in ((next_byte, next_byte.NextByteOptions(positions=8)), (bits, bits.ExactBytesOptions())):
        (section,) = module.sections(options, DOCUMENTS, about)
        report = section.report(results(section, {"teacher": subjects["teacher"]}))
        assert {entry.what for entry in report.skipped} == {"document prose/1", "document german/0"}
        assert all("other" in entry.why for entry in report.skipped)
        nothing_left = {document.id: "byte 0" for document in DOCUMENTS}
        with pytest.raises(StageError, match="no document that the tokenizers of all models spell"):
            module.sections(options, DOCUMENTS, context(subjects, other=nothing_left))


def test_passages_are_whole_characters_of_all_bytes():
    cut = passages(DOCUMENTS, 7)
    assert "".join(passage.text for passage in cut) == "".join(document.text for document in DOCUMENTS)
    assert max(len(passage.text.encode()) for passage in cut) <= 7


def test_exact_bits_are_at_most_canonical_ones_and_cost_little_more(subjects):
    options = bits.ExactBytesOptions(passage_bytes=24, passages=4)
    (section,) = bits.sections(options, DOCUMENTS, context(subjects))
    found = results(section, subjects)
    report = section.report(found)
    for row in subjects:
        assert all(
            left <= right + 1e-6 for left, right in zip(found[row]["exact"], found[row]["canonical"], strict=True)
        )
        exact, canonical, gap, work = report.tables[0].rows[row].values()
        assert 0 < exact.value < canonical.value
        assert gap.value == pytest.approx(canonical.value - exact.value)
        assert work.value < 3
        assert report.facts["forward passes"][row] <= 4
    texts = [passage.text for passage in section.passages]
    scores = subjects["other"].scorer.score([Request("", text) for text in texts])
    assert found["other"]["canonical"] == pytest.approx([score.nats for score in scores], rel=1e-4)
    assert report.metrics["other.bits_per_byte"] == report.tables[0].rows["other"]["exact"].value


def test_several_models_as_one_are_refused_and_an_interruption_goes_through(subjects):
    (section,) = bits.sections(bits.ExactBytesOptions(), DOCUMENTS, context(subjects))
    several = Subject("both", None, None, subjects["other"].scorer, None)
    with pytest.raises(StageError, match="both is not one model"):
        section.score(several, ignore)

    def stop(share: float) -> None:
        raise StageInterrupted("stopped")

    with pytest.raises(StageInterrupted):
        section.score(subjects["other"], stop)


@pytest.mark.parametrize(
    ("options", "value"),
    [
        (next_byte.NextByteOptions, {"positions": 1}),
        (next_byte.NextByteOptions, {"context_bytes": 8}),
        (next_byte.NextByteOptions, {"estimator": "most"}),
        (next_byte.NextByteOptions, {"seed": -1}),
        (bits.ExactBytesOptions, {"passages": 0}),
        (bits.ExactBytesOptions, {"passage_bytes": 15}),
    ],
)
def test_options_out_of_range_are_refused(options, value):
    with pytest.raises(ValidationError):
        options(**value)
