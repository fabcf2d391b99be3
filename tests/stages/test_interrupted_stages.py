"""A stage that is stopped and run again gives the bytes of one that was not.

Kinds of stages that train or score have this proved beside their own tests: distil, StochasTok, evaluate, generate,
score, hypernet. Here are the others, stopped whenever they ask whether they should.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from stages.align import Align
from stages.audit import AuditStage
from stages.document_source import DocumentsSource
from stages.import_scores import ImportScores
from stages.init import Init
from stages.sources import ModelConfigSource
from stages.stage import StageContext, StageInterrupted
from stages.tokenizer import TokenizerStage

TEXTS = [f"The dog no. {number} is naïve, and sleeps on {number * 7} boxes." for number in range(12)]

Inputs = Mapping[str, Path]


class Patience:
    """Answers ``should_stop`` with yes at question number ``number``, and counts the questions."""

    def __init__(self, number: int | None = None) -> None:
        self.number = number
        self.asked = 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked == self.number


def attempt(stage: Any, options: Mapping[str, Any], inputs: Inputs, work: Path, out: Path, stop: Patience) -> None:
    for directory in (work, out):
        directory.mkdir(parents=True, exist_ok=True)
    made = {name: {name: path} for name, path in inputs.items()}
    stage().run(StageContext(stage.Config(**options), made, work, out, should_stop=stop, cache=work.parent / "cache"))


def published(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def check(stage: Any, options: Mapping[str, Any], inputs: Inputs, root: Path) -> int:
    """Stop a stage at its first, second, a middle and its last question; returns how many it asks."""
    patience = Patience()
    attempt(stage, options, inputs, root / "plain" / "work", root / "plain" / "out", patience)
    expected = published(root / "plain" / "out")
    stage.output.verify(root / "plain" / "out")
    for number in sorted({1, 2, (patience.asked + 1) // 2, patience.asked} & set(range(1, patience.asked + 1))):
        place = root / f"stopped-{number}"
        with pytest.raises(StageInterrupted):
            attempt(stage, options, inputs, place / "work", place / "out.1", Patience(number))
        attempt(stage, options, inputs, place / "work", place / "out.2", Patience())
        assert published(place / "out.2") == expected, f"stopped at question {number} of {patience.asked}"
    return patience.asked


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def inputs(
    tmp_path_factory: pytest.TempPathFactory,
    texts: Path,
    tiny_tokenizer_dirs: tuple[Path, Path],
    tiny_model_dir: Callable[..., Path],
) -> dict[str, Path]:
    """What the stages here may read, by the name of the input."""
    root = tmp_path_factory.mktemp("inputs")
    numbers = itertools.count()

    def made(stage: Any, inputs: Inputs, **options: Any) -> Path:
        place = root / str(next(numbers))
        attempt(stage, options, inputs, place / "work", place / "out", Patience())
        return place / "out"

    student, tokenizer = tiny_model_dir(tiny_tokenizer_dirs[0]), tiny_tokenizer_dirs[1]
    return {
        "student": student,
        "tokenizer": tokenizer,
        "config": made(ModelConfigSource, {}, model=str(student)),
        "documents": made(DocumentsSource, {}, documents=[{"path": str(texts)}]),
        "alignment": made(Align, {"student": student, "tokenizer": tokenizer}),
    }


def test_documents(texts: Path, tmp_path: Path) -> None:
    assert check(DocumentsSource, {"documents": [{"path": str(texts)}]}, {}, tmp_path) > 0


def test_audit(inputs: Inputs, tmp_path: Path) -> None:
    read = {"teacher": inputs["config"], "student": inputs["config"]}
    read |= {name: inputs[name] for name in ("tokenizer", "documents")}
    assert check(AuditStage, {}, read, tmp_path) > 0


@pytest.mark.slow  # every attempt loads its model again in a process of its own
def test_init(inputs: Inputs, tmp_path: Path) -> None:
    read = {name: inputs[name] for name in ("student", "tokenizer", "alignment")}
    assert check(Init, {"input": {"method": "fvt"}}, read, tmp_path) > 0


def test_tokenizer(inputs: Inputs, tmp_path: Path) -> None:
    options = {"make": {"method": "bpe", "vocab_size": 300}}
    read = {name: inputs[name] for name in ("student", "documents")}
    assert check(TokenizerStage, options, read, tmp_path) > 0


def test_import_scores(inputs: Inputs, tmp_path: Path) -> None:
    cuts = [[text[:4], text[4:9], text[9:]] for text in TEXTS]
    records = [
        {"text": text, "logprobs": {"tokens": cut, "token_logprobs": [None, -1.5, -0.25 * number]}}
        for number, (text, cut) in enumerate(zip(TEXTS, cuts, strict=True))
    ]
    served = tmp_path / "served.jsonl"
    served.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    assert check(ImportScores, {"path": str(served)}, {"documents": inputs["documents"]}, tmp_path) >= len(TEXTS)
