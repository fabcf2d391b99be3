"""BPM and ESCD as the engine builds them: from two tokenizers, with their tables kept on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from alignment.byte_view import ByteView
from stages.objectives import LossEntry
from stages.training.data.batch import Batch, collate
from stages.training.data.windows import Side, Window
from stages.training.objectives import ModelFacts, Pair, build_terms

VOCABULARY = [None, b" a", b"a", b"b", b" "]


def pair_of(cache: Path | None) -> Pair:
    view = ByteView.from_token_bytes(VOCABULARY)
    facts = ModelFacts(Path("model"), view, {"eos": 0}, 4, 2, torch.zeros(5, 4))
    return Pair(facts, facts, cache, seed=0)


def batch_of(teacher: list[int], student: list[int]) -> Batch:
    """The text "ab b" after a special token; each token is a chunk and stands for one byte of the text."""
    sides = [Side(*torch.tensor([[0, *ids], [-1, 0, 1, 2, 3], [0, 1, 1, 1, 1]]).numpy()) for ids in (teacher, student)]
    return collate([Window(student=sides[1], teacher=sides[0], num_chunks=4)])


@pytest.mark.parametrize("name", ["bpm", "escd"])
def test_a_space_that_one_tokenizer_puts_before_the_text_leaves_that_token_out(name, tmp_path):
    (term,) = build_terms([LossEntry.model_validate(name)], pair_of(tmp_path))
    units = {
        (first, second): term.objective.statistics(batch_of([first, 3, 4, 3], [second, 3, 4, 3]), None).tolist()
        for first in (1, 2)
        for second in (1, 2)
    }
    # The third token is white space, which is withheld.
    assert units == {(1, 1): [3], (2, 2): [3], (1, 2): [2], (2, 1): [2]}


def test_the_table_of_a_pair_is_built_once(tmp_path):
    entries = [LossEntry.model_validate("bpm"), LossEntry.model_validate("escd")]
    build_terms(entries, pair_of(tmp_path))
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    build_terms(entries, pair_of(tmp_path))
    assert file.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    "entry",
    [
        {"bpm": {"whitespace": True}},
        {"escd": {"min_mass": 0}},
        {"escd": {"min_mass": 1}},
        {"escd": {"child_weight": -1}},
    ],
)
def test_options_out_of_range_are_refused(entry):
    with pytest.raises(ValidationError):
        LossEntry.model_validate(entry)
