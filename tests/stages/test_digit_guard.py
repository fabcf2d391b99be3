"""A target that cuts numbers otherwise than the student: refused unless wanted, and the ways out that are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizer_world import ENGLISH, byte_level, documents, make
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from alignment.vocab import VocabAlignment
from stages.align import Align
from stages.artifacts import AlignmentArtifact
from stages.stage import StageContext, StageError

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Callable[..., Path]) -> Path:
    """A model whose tokenizer cuts numbers after every digit."""
    return tiny_model_dir(byte_level(tmp_path_factory.mktemp("student"), digits="single"))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that cuts numbers wherever its merges do."""
    return byte_level(tmp_path_factory.mktemp("target"))


def align(directory: Path, student: Path, tokenizer: Path, **options: Any) -> str:
    """Run the stage: what it told."""
    directory.mkdir()
    told: list[str] = []
    inputs = {"student": {"student": student}, "tokenizer": {"target": tokenizer}}
    Align().run(
        StageContext(config=Align.Config(**options), inputs=inputs, work=directory, out=directory, progress=told.append)
    )
    AlignmentArtifact.verify(directory)
    return "\n".join(told)


def test_a_clash_is_refused_by_default_with_three_ways_out(tmp_path: Path, student: Path, target: Path) -> None:
    with pytest.raises(StageError) as caught:
        align(tmp_path / "align", student, target)
    message = str(caught.value)
    assert "the student cuts numbers after every digit, the target wherever its merges do" in message
    assert "1. choose a target tokenizer" in message
    assert "2. if this target cuts numbers less than the student's own, make one of it that cuts them alike" in message
    assert "`digits: {uses: tokenizer, make: keep_digits}`" in message
    assert "3. if numbers do not matter, write `digits: warn`" in message
    assert not (tmp_path / "align" / "alignment.npz").exists()


def test_the_first_way_out_is_no_clash(tmp_path: Path, student: Path) -> None:
    assert "warning" not in align(tmp_path / "align", student, student)


def test_the_second_way_out_works_as_the_message_says(tmp_path: Path, student: Path, target: Path) -> None:
    stage = yaml.safe_load("{uses: tokenizer, make: keep_digits}")
    data = documents(tmp_path / "data", [ENGLISH])
    made = make(tmp_path / "made", student, data, stage["make"], target=target)
    assert "warning" not in align(tmp_path / "align", student, made.directory)
    align(tmp_path / "plain", student, target, digits="ignore")
    kept, plain = (VocabAlignment.load(tmp_path / name / "alignment.npz") for name in ("align", "plain"))
    assert kept.match.tolist() == plain.match.tolist()  # every token that was shared still is


def test_the_third_way_out_warns(tmp_path: Path, student: Path, target: Path) -> None:
    assert "warning: the student cuts numbers after every digit" in align(
        tmp_path / "align", student, target, digits="warn"
    )
    assert "warning" not in align(tmp_path / "ignored", student, target, digits="ignore")


@pytest.mark.parametrize("policy", ["refuse", "warn"])
def test_what_cannot_be_found_out_is_told_and_not_refused(tmp_path: Path, student: Path, policy: str) -> None:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "it": 1, "was": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[UNK]")
    words.save_pretrained(tmp_path / "words")
    told = align(tmp_path / "align", student, tmp_path / "words", digits=policy)
    assert "warning: the target does not encode digits exactly" in told


def test_the_quickstart_says_that_it_wants_the_clash() -> None:
    recipe = yaml.safe_load(QUICKSTART.read_text(encoding="utf-8"))
    assert recipe["stages"]["align"] == {"uses": "align", "digits": "warn"}
