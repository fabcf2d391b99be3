"""Event-set completion against numbers worked by hand and against its literal definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from byte_toys import (
    Texts,
    cut,
    distributions,
    divergence,
    head_of,
    random_vocabulary,
    root_target,
    tables_of,
    truncated,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from losses.escd import completion_groups, completion_loss, escd_loss, root_rows
from losses.predictions import TopKPredictions

TEACHER = [None, b"Bread", b"Breads", b"Break", b"Cat"]
STUDENT = [None, b"Br", b"Cat", b"ead", b"eads", b"eak"]
Q = torch.tensor([[0, 0.4, 0.2, 0.3, 0.1]], dtype=torch.float64)
P = torch.tensor([[0.3, 0.5, 0.2, 0, 0, 0], [0.4, 0, 0, 0.2, 0.3, 0.1], [1, 0, 0, 0, 0, 0]], dtype=torch.float64)
ROOT = 0.4596932804
# Bread and Breads are one event, "Bread...", of mass .6, completed by ead and eads; Break has .3.
CHILD = -0.6 * math.log(0.2 + 0.3) - 0.3 * math.log(0.1)


@pytest.mark.parametrize("child_weight", [1.0, 0.0, 0.25])
def test_the_bread_example(child_weight):
    texts = Texts(TEACHER, STUDENT, [[1]], [[1, 3]])
    rows, _ = texts.rows()
    tables, (_, side, _) = tables_of(TEACHER, STUDENT), texts.sides()
    loss = escd_loss(head_of(Q.expand(2, -1)), head_of(P), rows, tables, scored=side.scored, child_weight=child_weight)
    assert loss.count.item() == 1
    assert loss.total.item() == pytest.approx(ROOT + child_weight * CHILD, abs=1e-9)
    worked = {"child_loss": [CHILD, 1], "branching": [0.9, 1], "completed": [0.9, 0.9], "children": [1, 1]}
    for name, pair in worked.items():
        assert loss.metrics[name].tolist() == pytest.approx(pair)


def groups_of(teacher: list, q: list[float], begun: bytes, student: list, min_mass: float = 1e-4) -> dict:
    """Completions by the bytes that the student is to write: mass of each."""
    tables = tables_of(teacher, student)
    logp = torch.tensor([q], dtype=torch.float64).log()
    groups = completion_groups(logp, torch.tensor([student.index(begun)]), tables, min_mass)
    below = [
        {student[i] for i in tables.student_order[tables.student_start[n] : tables.student_end[n]].tolist()}
        for n in groups.node
    ]
    return {min(tokens, key=len): mass for tokens, mass in zip(below, groups.mass.tolist(), strict=True)}


def test_tokens_that_begin_alike_are_one_group_named_after_the_shortest():
    teacher = [b"xa", b"xab", b"xabc", b"xb", b"x", b"y", b"xa"]
    student = [b"x", b"a", b"ab", b"b", b"y"]
    found = groups_of(teacher, [0.1, 0.2, 0.05, 0.15, 0.3, 0.1, 0.1], b"x", student)
    assert found == {b"a": pytest.approx(0.45), b"b": pytest.approx(0.15)}


def test_a_rare_token_names_no_group_but_counts_in_that_of_another():
    teacher, student = [b"xa", b"xab", b"xabc", b"y"], [b"x", b"a", b"ab", b"y"]
    found = groups_of(teacher, [0.01, 0.5, 0.01, 0.48], b"x", student, min_mass=0.05)
    assert found == {b"ab": pytest.approx(0.51)}


def test_what_no_single_token_completes_is_left_out_and_reported():
    teacher, student = [b"xab", b"xb", b"x"], [b"x", b"a", b"b"]
    assert groups_of(teacher, [0.3, 0.6, 0.1], b"x", student) == {b"b": pytest.approx(0.6)}


def test_completion_sums_tiny_probabilities_beside_large_ones():
    tables = tables_of([b"xa"], [b"x", b"a", b"ab", b"b"])
    groups = completion_groups(torch.zeros(1, 1), torch.tensor([0]), tables, 1e-4)
    child = torch.tensor([[-1e-8, -60.0, -61.0, -20.0]], requires_grad=True)
    loss = completion_loss(groups, child, tables)
    assert loss.item() == pytest.approx(60 - math.log(1 + math.exp(-1)), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss.sum(), child)
    share = 1 / (1 + math.exp(-1))
    assert gradient[0].tolist() == pytest.approx([1, -share, share - 1, 0], abs=1e-6)


def test_white_space_is_withheld_unless_asked_for():
    vocabulary = [None, b" ", b"a", b" a"]
    rows, _ = Texts(vocabulary, vocabulary, [[1, 2, 3]], [[1, 2, 3]]).rows()
    tables = tables_of(vocabulary, vocabulary)
    assert root_rows(rows, tables, whitespace_rows=False).tolist() == [False, True, True]
    assert root_rows(rows, tables, whitespace_rows=True).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), k=st.sampled_from([None, 3, 6]))
def test_the_loss_is_that_of_the_literal_definition(seed, k):
    rng = np.random.default_rng(seed)
    teacher = random_vocabulary(rng, b"ab", 8, [b"c", b"cab", b"ac"])
    student = random_vocabulary(rng, b"ab", 8)
    text = bytes(rng.choice(list(b"ab"), rng.integers(4, 16)).astype(np.uint8))
    texts = Texts(teacher, student, [cut(rng, text, teacher)], [cut(rng, text, student)])
    tables, (theirs, ours, _) = tables_of(teacher, student, [0], [0]), texts.sides()
    q, p = distributions(rng, theirs.ids.numel(), len(teacher)), distributions(rng, ours.ids.numel(), len(student))
    predictions, min_mass = head_of(q), 0.02
    if k is not None:
        best = truncated(q, k)
        predictions, q = TopKPredictions(best["ids"], best["logp"], len(teacher)), best["dense"]

    roots, children = [], []
    teacher_starts = np.cumsum([0, *(len(teacher[i]) for i in texts.teacher_ids[0])]).tolist()
    place = 0
    for t, a in enumerate(texts.student_ids[0]):
        if place in teacher_starts[:-1]:
            row = q[teacher_starts.index(place)].tolist()
            roots.append(divergence(root_target(teacher, student, row, [0], [0]), student, p[t].tolist(), [0]))
            if t + 1 < len(texts.student_ids[0]):
                children.append(literal_child(teacher, student, row, student[a], p[t + 1].tolist(), min_mass))
        place += len(student[a])
    rows, _ = texts.rows()
    loss = escd_loss(predictions, head_of(p), rows, tables, scored=ours.scored, min_mass=min_mass, child_weight=0.5)
    assert loss.count.item() == len(roots)
    assert loss.total.item() == pytest.approx(sum(roots) + 0.5 * sum(children), rel=1e-7, abs=1e-9)


def literal_child(teacher: list, student: list, q: list[float], a: bytes, p: list[float], min_mass: float) -> float:
    """The completion cross-entropy after ``a``."""
    events = {t for i, t in enumerate(teacher) if t and len(t) > len(a) and t.startswith(a) and q[i] >= min_mass}
    total = 0.0
    for event in events:
        if any(event != other and event.startswith(other) for other in events):
            continue
        mass = sum(q[i] for i, t in enumerate(teacher) if t and t.startswith(event))
        completed = sum(p[i] for i, u in enumerate(student) if u and u.startswith(event[len(a) :]))
        if completed:
            total -= mass * math.log(completed)
    return total
