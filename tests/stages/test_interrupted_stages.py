"""A stage that is stopped, or killed, and run again gives the bytes of one that was not.

Kinds of stages that train or score have this proved beside their own tests. Here are the others, stopped whenever they
ask whether they should, and killed between any two changes of the file system. ``PROOFS`` names the test of each kind.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from kill_points import killed_at

from stages import STAGES
from stages.align import Align
from stages.audit import AuditStage
from stages.document_source import DocumentsSource
from stages.import_scores import ImportScores
from stages.init import Init
from stages.sources import ModelConfigSource, ModelSource, TokenizerSource
from stages.stage import StageContext, StageInterrupted
from stages.suite_documents import SuiteDocuments
from stages.tokenizer import TokenizerStage

HERE = "tests/stages/test_interrupted_stages.py"
PROOFS = {
    "model": f"{HERE}::test_model",
    "source-model": f"{HERE}::test_model",
    "source-model-config": f"{HERE}::test_model_config",
    "source-tokenizer": f"{HERE}::test_source_tokenizer",
    "source-documents": f"{HERE}::test_documents",
    "audit": f"{HERE}::test_audit",
    "tokenizer": f"{HERE}::test_tokenizer",
    "align": f"{HERE}::test_align",
    "hypernet": "tests/stages/test_stage_hypernet.py::test_a_resumed_run_ends_where_an_uninterrupted_one_does",
    "init": f"{HERE}::test_init",
    "generate": "tests/stages/test_stage_generate.py::test_a_stopped_run_goes_on_after_its_last_whole_batch",
    "score": "tests/stages/training/test_stage_score.py::test_an_interrupted_stage_repeats_unfinished_shards_only",
    "import-scores": f"{HERE}::test_import_scores",
    "distill": "tests/stages/training/test_training_engine.py::"
    "test_an_interrupted_run_ends_bitwise_like_an_uninterrupted_one",
    "stochastok": "tests/stages/training/test_random_splits.py::test_workers_and_interruptions_make_no_difference",
    "suite-documents": f"{HERE}::test_suite_documents",
    "evaluate": "tests/stages/test_evaluation_stage.py::test_an_interrupted_evaluation_goes_on_with_the_next_section",
}
"""Kind of stage -> the test that shows it. Whoever adds a kind writes the test, and its line."""

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


def check_kills(stage: Any, options: Mapping[str, Any], inputs: Inputs, root: Path, stride: int) -> None:
    """Kill a stage at every ``stride``-th change of the file system, and run it again with what it left in ``work`` and
    in the cache of all stages."""

    def begin(place: Path) -> None:
        attempt(stage, options, inputs, place / "work", place / "out", Patience())

    begin(root / "plain")
    expected = published(root / "plain" / "out")
    for number in itertools.count(1, stride):
        place = root / f"killed-{number}"
        place.mkdir()
        point = killed_at(lambda place=place: begin(place), number, place)
        if point is None:
            break
        shutil.rmtree(place / "out", ignore_errors=True)  # the next attempt has another
        begin(place)
        assert published(place / "out") == expected, f"killed at {point}"
    assert number > 1, "the hook sees what the stage writes"


def test_every_kind_of_stage_has_a_proof() -> None:
    kinds = {name for name, place in STAGES.items() if place.startswith("stages.")}  # others are toys of tests
    assert PROOFS.keys() == kinds
    for kind, proof in PROOFS.items():
        file, name = proof.split("::")
        text = (Path(__file__).parents[2] / file).read_text(encoding="utf-8")
        assert re.search(rf"^def {name}\(", text, re.M), kind


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
    options = {"documents": [{"path": str(texts)}]}
    assert check(DocumentsSource, options, {}, tmp_path) > 0
    check_kills(DocumentsSource, options, {}, tmp_path / "kills", 1)


def test_suite_documents(tmp_path: Path) -> None:
    options = {"suites": {"langgame": {"items": 12}, "addition": {"items": 20}}}
    assert check(SuiteDocuments, options, {}, tmp_path) == 2
    check_kills(SuiteDocuments, options, {}, tmp_path / "kills", 1)


def test_model(inputs: Inputs, tmp_path: Path) -> None:
    check_kills(ModelSource, {"model": str(inputs["student"])}, {}, tmp_path, 4)


def test_model_config(inputs: Inputs, tmp_path: Path) -> None:
    check_kills(ModelConfigSource, {"model": str(inputs["student"])}, {}, tmp_path, 2)


def test_source_tokenizer(inputs: Inputs, tmp_path: Path) -> None:
    check_kills(TokenizerSource, {"tokenizer": str(inputs["tokenizer"])}, {}, tmp_path, 2)


@pytest.mark.parametrize("smaller", [False, True])
def test_align(inputs: Inputs, tmp_path: Path, smaller: bool, tiny_tokenizer_dirs: tuple[Path, Path]) -> None:
    """Tables of another size than the student's, larger and as large."""
    read = {"student": inputs["student"], "tokenizer": tiny_tokenizer_dirs[0 if smaller else 1]}
    check_kills(Align, {}, read, tmp_path, 3)


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
