"""X-Token, MinED and CDM in the engine: which positions they compare, their tables, and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from objective_world import World, evaluate, hidden_states, make_world, signals
from tokenizers import Tokenizer, normalizers
from transformers import AutoTokenizer

from losses.chunks import aligned_rows
from stages.stage import StageError
from stages.training.objectives import Objective

NAMES = ("xtoken", "mined", "cdm")


@pytest.fixture(scope="module")
def pair(tiny_tokenizer_dirs) -> World:
    return make_world(*tiny_tokenizer_dirs)


def gradient(world: World, objective: Objective) -> torch.Tensor:
    """Gradient of the first window's loss in the student's hidden states: [1, T, D]."""
    batch = world.batch(world.windows[:1])
    hidden = hidden_states(world, batch, "student", seed=2).requires_grad_()
    return torch.autograd.grad(evaluate(world, objective, batch, student_hidden=hidden).total, hidden)[0]


@pytest.mark.parametrize("name", ["xtoken", "cdm"])
def test_one_to_one_compares_only_chunks_of_one_token(pair, name):
    batch = pair.batch()
    rows = aligned_rows(batch.teacher, batch.student, batch.num_chunks)
    assert 0 < rows.one_to_one.sum() < len(rows.chunk)
    assert evaluate(pair, pair.build(name), batch).count == len(rows.chunk)
    assert evaluate(pair, pair.build(name, chunks="one_to_one"), batch).count == rows.one_to_one.sum()


@pytest.mark.parametrize("variant", ["p_kl", "h_kl"])
def test_the_chain_rule_teaches_every_token_of_a_chunk(tiny_tokenizer_dirs, variant):
    pair = make_world(*reversed(tiny_tokenizer_dirs))  # the student's tokens are the shorter ones
    student = pair.batch(pair.windows[:1]).student
    same_chunk = (student.chunk[0, 1:] == student.chunk[0, :-1]) & (student.chunk[0, 1:] >= 0)
    later = same_chunk.nonzero().squeeze(1)  # positions that predict a chunk's second token or a later one
    assert len(later) > 0
    taught = gradient(pair, pair.build("xtoken", variant=variant))[0, later].abs().sum(-1)
    assert (taught > 0).all()
    untaught = gradient(pair, pair.build("xtoken", variant=variant, chunks="one_to_one"))[0, later]
    assert untaught.abs().max() == 0


def test_h_kl_between_equal_models_is_zero(tiny_tokenizer_dirs):
    world = make_world(tiny_tokenizer_dirs[0], tiny_tokenizer_dirs[0], width=5)
    batch = world.batch()
    same = hidden_states(world, batch, "teacher", seed=1)
    hidden = same.clone().requires_grad_()
    loss = evaluate(
        world, world.build("xtoken", variant="h_kl"), batch, teacher_hidden=same, student_hidden=hidden
    ).total
    (found,) = torch.autograd.grad(loss, hidden)
    assert float(loss.detach()) == pytest.approx(0, abs=1e-9)
    assert found.abs().max() < 1e-9


def test_h_kl_refuses_a_truncated_teacher_before_the_student_runs(pair):
    objective = pair.build("xtoken", variant="h_kl")
    batch = pair.batch()
    hidden = hidden_states(pair, batch, "teacher", seed=1)
    teacher = signals(pair, batch, "teacher", objective.teacher_reads, hidden, top_k=8)
    with pytest.raises(StageError, match="use `variant: p_kl`"):
        objective.statistics(batch, teacher)


@pytest.mark.parametrize("name", NAMES)
def test_tables_are_built_once_for_a_pair_and_its_options(pair, tmp_path, name):
    world = replace(pair, pair=replace(pair.pair, cache=tmp_path))
    fresh = evaluate(pair, pair.build(name), pair.batch()).total
    world.build(name)
    (path,) = tmp_path.iterdir()
    written = path.stat().st_mtime_ns
    assert torch.equal(evaluate(world, world.build(name), world.batch()).total, fresh)
    assert path.stat().st_mtime_ns == written
    swapped = replace(pair, pair=replace(world.pair, teacher=pair.pair.student, student=pair.pair.teacher))
    swapped.build(name)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_options_of_cdm_enter_its_table(pair, tmp_path):
    world = replace(pair, pair=replace(pair.pair, cache=tmp_path))
    world.build("cdm")
    world.build("cdm", max_distance=0.1)
    world.build("cdm", candidates=2)
    world.build("cdm", top_k=5, temperature=3.0)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("name", NAMES)
def test_a_tokenizer_that_lower_cases_alone_is_refused(tiny_tokenizer_dirs, pair, tmp_path, name):
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dirs[1])
    backend: Tokenizer = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Lowercase()
    tokenizer.save_pretrained(tmp_path)
    lower = make_world(tmp_path, tmp_path).pair.student
    with pytest.raises(StageError, match=f"losses.{name}.*lower-cases"):
        replace(pair, pair=replace(pair.pair, student=lower)).build(name)
