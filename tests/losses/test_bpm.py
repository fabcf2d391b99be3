"""Byte-prefix marginalisation against the worked vectors of the specification and against its literal definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from byte_toys import (
    Target,
    Texts,
    cut,
    distributions,
    divergence,
    head_of,
    interior_target,
    random_vocabulary,
    root_target,
    spanning_target,
    tables_of,
    truncated,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from losses.bpm import bpm_loss, rows_with_target
from losses.byte_rows import byte_rows
from losses.byte_targets import ByteTargets, interior_targets, root_targets, target_divergence
from losses.predictions import TopKPredictions

SEEDS = st.integers(0, 2**32 - 1)


def logp_of(vocabulary: list, q: dict) -> Tensor:
    """One row of log-probabilities; what ``q`` does not name is unknown."""
    return torch.tensor([[q.get(token, 0.0) for token in vocabulary]], dtype=torch.float64).log()


def named(targets: ByteTargets, student: list) -> dict[str | bytes, float]:
    """The masses of one row that are not 0."""
    masses = dict(zip(student, targets.cells[0].tolist(), strict=True))
    masses |= {name: float(getattr(targets, name)[0]) for name in ("residual", "special", "uncovered")}
    return {name: mass for name, mass in masses.items() if mass > 1e-12}


def approximately(**masses: float) -> dict:
    return {
        (name if name in ("residual", "special", "uncovered") else name.encode()): pytest.approx(mass, abs=1e-9)
        for name, mass in masses.items()
    }


def after(student: list, q: dict, prefix: bytes, limit: int = 99, *, complete: bool = False) -> ByteTargets:
    """The target after ``prefix``, which must begin a token of ``q``."""
    teacher = list(q)
    token = next(i for i, data in enumerate(teacher) if data.startswith(prefix))
    number = torch.tensor([token, len(prefix), limit])[:, None]
    return interior_targets(logp_of(teacher, q), *number, tables_of(teacher, student), complete=complete)


def test_vector_1_at_a_common_boundary():
    student = [b"a", b"at", b"ate", b"bit", b"the", b"an"]
    q = {b"the": 0.38, b"then": 0.22, b"they": 0.12, b"a": 0.10, b"an": 0.08, b"zq": 0.10}
    targets = root_targets(logp_of(list(q), q), tables_of(list(q), student), complete=True)
    assert named(targets, student) == approximately(the=0.72, a=0.10, an=0.08, residual=0.10)
    assert targets.log_support.tolist() == [0.0]


def test_vector_2_truncated_and_with_special_tokens():
    # Ids 4 and 5 of the teacher have no bytes: a control token, and one that ends the text, as the student's id 3 does.
    teacher, student = [b"a", b"ab", b"abc", b"c", None, None], [b"a", b"b", b"ab", None]
    logp = torch.tensor([[0.1, 0.2, 0.15, 0.05, 0.03, 0.07]], dtype=torch.float64).log()
    targets = root_targets(logp, tables_of(teacher, student, [5], [3]), complete=False)
    expected = approximately(a=0.1, ab=0.35, residual=0.05, special=0.03, uncovered=0.4)
    assert named(targets, [*student[:3], "stop"]) == expected | {"stop": pytest.approx(0.07)}
    assert float(targets.complement[0]) == pytest.approx(0.48)


def test_a_stop_without_a_counterpart_is_special_mass():
    logp = torch.tensor([[0.9, 0.1]], dtype=torch.float64).log()
    targets = root_targets(logp, tables_of([b"a", None], [b"a"], teacher_stop=[1]), complete=True)
    assert named(targets, [b"a"]) == approximately(a=0.9, special=0.1)


def test_vector_3_digits():
    student = [b"1", b"2", b"3", b"7"]
    q = {b"12": 0.6, b"13": 0.1, b"1": 0.1, b"7": 0.2}
    head = root_targets(logp_of(list(q), q), tables_of(list(q), student), complete=True)
    assert named(head, student) == {b"1": pytest.approx(0.8), b"7": pytest.approx(0.2)}
    inner = after(student, q, b"1", complete=True)
    assert named(inner, student) == {
        b"2": pytest.approx(0.75),
        b"3": pytest.approx(0.125),
        "residual": pytest.approx(0.125),
    }
    assert inner.log_support.exp().tolist() == pytest.approx([0.8])

    known = after(student, q | {b"7": 0.1}, b"1")
    ninths = {b"2": 6 / 9, b"3": 1 / 9, "residual": 1 / 9, "uncovered": 1 / 9}
    assert named(known, student) == pytest.approx(ninths, abs=1e-9)
    assert known.log_support.exp().tolist() == pytest.approx([0.9])


def test_vector_3_a_prefix_without_support_has_no_target():
    student = [b"1", b"2", b"3", b"7"]
    targets = after(student, {b"12": 0.8, b"7": 0.2, b"9": 0.0}, b"9")
    assert targets.log_support.tolist() == [-math.inf]
    assert named(targets, student) == {}
    assert target_divergence(targets, torch.full((1, 4), 0.25).double().log()).tolist() == [0.0]


@pytest.mark.parametrize(
    ("prefix", "limit", "masses"),
    [
        (b"a", 99, {"bcd": 2 / 3, "bc": 1 / 3}),
        (b"a", 2, {"bc": 1.0}),
        (b"", 2, {"bc": 0.25, "residual": 0.75}),
    ],
)
def test_vector_4_a_limit_on_the_students_tokens(prefix, limit, masses):
    student = [b"b", b"bc", b"bcd", b"x"]
    q = {b"abcd": 0.5, b"abc": 0.25, b"bcd": 0.25}
    assert named(after(student, q, prefix, limit, complete=True), student) == approximately(**masses)


def test_vector_5_sentencepiece_to_byte_level():
    student = [b" ", b"  ", b" the", b"\n", b"\xc3", b"\xa9", "é".encode()]
    q = {b" the": 0.5, b"    ": 0.2, b"\xc3": 0.2, "é".encode(): 0.1}
    targets = root_targets(logp_of(list(q), q), tables_of(list(q), student), complete=True)
    expected = {b" the": 0.5, b"  ": 0.2, b"\xc3": 0.2, "é".encode(): 0.1}
    assert named(targets, student) == pytest.approx(expected, abs=1e-9)
    inner = after(student, q, b"\xc3", complete=True)
    assert named(inner, student) == pytest.approx({b"\xa9": 1 / 3, "residual": 2 / 3}, abs=1e-9)
    assert inner.log_support.exp().tolist() == pytest.approx([0.3])


def test_vector_6_white_space_is_withheld_but_for_newlines():
    vocabulary = [None, b" ", b"\t ", b"\n", b"a", b" a"]
    texts = Texts(vocabulary, vocabulary, [[1, 4, 2, 3, 5]], [[1, 4, 2, 3, 5]])
    rows, _ = texts.rows()
    tables = tables_of(vocabulary, vocabulary)
    kept = rows_with_target(rows, tables, whitespace_rows=False)
    assert [vocabulary[i] for i in rows.student_id[kept]] == [b"a", b"\n", b" a"]
    assert rows_with_target(rows, tables, whitespace_rows=True).all()


def test_vector_8_through_the_whole_objective():
    """The specification's interior target is that of "Breads"; with "Bread" in the text, "eads" counts as "ead"."""
    teacher = [None, b"Bread", b"Breads", b"Break", b"Cat"]
    student = [None, b"Br", b"Cat", b"ead", b"eads", b"eak"]
    texts = Texts(teacher, student, [[1]], [[1, 3]])
    q = torch.tensor([[0, 0.4, 0.2, 0.3, 0.1]] * 2, dtype=torch.float64)
    # What is left of the student's mass is on the special token; nothing looks at the last row.
    p = [[0.3, 0.5, 0.2, 0, 0, 0], [0.4, 0, 0, 0.2, 0.3, 0.1], [1, 0, 0, 0, 0, 0]]
    (rows, line), (_, side, _) = texts.rows(), texts.sides()
    student_head = head_of(torch.tensor(p, dtype=torch.float64))
    loss = bpm_loss(head_of(q), student_head, rows, line, tables_of(teacher, student), scored=side.scored)
    interior = 6 / 9 * math.log(6 / 9 / 0.2) + 3 / 9 * math.log(3 / 9 / 0.1)
    assert loss.count.item() == 2
    assert loss.total.item() == pytest.approx(0.4596932804 + interior, abs=1e-9)


@pytest.mark.parametrize(("child", "interior"), [([0.2, 0.3, 0.1], 0.6895266681), ([0.1, 0.5, 0.1], 0.8840752764)])
def test_vector_8(child, interior):
    teacher, student = [b"Bread", b"Breads", b"Break", b"Cat"], [b"Br", b"Cat", b"ead", b"eads", b"eak"]
    tables = tables_of(teacher, student)
    logp = torch.tensor([[0.4, 0.2, 0.3, 0.1]], dtype=torch.float64).log()
    p = torch.tensor([[0.5, 0.2, 0.3, 1e-20, 1e-20]], dtype=torch.float64).log()
    assert target_divergence(root_targets(logp, tables, complete=True), p).item() == pytest.approx(
        0.4596932804, abs=1e-9
    )
    number = torch.tensor([1, 2, 4])[:, None]  # the text's token is "Breads"
    inner = interior_targets(logp, *number, tables, complete=True)
    p = torch.tensor([[1 - sum(child), 1e-20, *child]], dtype=torch.float64).log()
    assert target_divergence(inner, p).item() == pytest.approx(interior, abs=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# Against the literal definition


def literal_targets(texts: Texts, text: int, q: Tensor, stops: tuple[list[int], list[int]]) -> list[Target | None]:
    """What the definition gives for each student token of one text; ``q`` [T, V_T] are the teacher's predictions."""
    teacher, student = texts.teacher, texts.student
    ids = texts.teacher_ids[text]
    size = [1 if teacher[i] is None else len(teacher[i]) for i in ids]
    ends = np.cumsum(size).tolist()
    sizes = [1 if student[i] is None else len(student[i]) for i in texts.student_ids[text]]
    student_ends = np.cumsum(sizes).tolist()
    rows = [q[t].tolist() for t in range(len(ids))]
    found: list[Target | None] = []
    for length, end in zip(sizes, student_ends, strict=True):
        start = end - length
        index = next(i for i, e in enumerate(ends) if e > start)
        offset, rest = start - (ends[index] - size[index]), ends[index] - start
        support = 1.0
        if offset == 0:
            target = root_target(teacher, student, rows[index], *stops)
        elif length > rest or ends[index] in student_ends:
            target_and_support = interior_target(teacher, student, rows[index], teacher[ids[index]][:offset], rest)
            if target_and_support is None:
                found.append(None)
                continue
            target, support = target_and_support
        else:
            found.append(None)
            continue
        if length > rest:
            target = spanning_target(target, support, teacher, student, rows, ids, index, offset)
        found.append(target)
    return found


def random_texts(rng: np.random.Generator, *, same: bool = False) -> Texts:
    """Two texts over {a, b, space}, each with a special token at its end, in random vocabularies and segmentations.

    The teacher's vocabulary has letters that the student has no token for.
    """
    teacher = random_vocabulary(rng, b"ab ", 8, [b"c", b"cab", b"ac", None])
    student = teacher if same else random_vocabulary(rng, b"ab ", 8, [None])
    texts = [bytes(rng.choice(list(b"ab "), rng.integers(4, 16)).astype(np.uint8)) for _ in range(2)]
    teacher_ids = [[*cut(rng, text, teacher), 0] for text in texts]
    student_ids = teacher_ids if same else [[*cut(rng, text, student), 0] for text in texts]
    return Texts(teacher, student, teacher_ids, student_ids)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, k=st.sampled_from([None, 2, 5]), whitespace_rows=st.booleans())
def test_the_loss_is_that_of_the_literal_definition(seed, k, whitespace_rows):
    rng = np.random.default_rng(seed)
    texts = random_texts(rng)
    stops = [0], [0, len(texts.student) - 1]
    tables = tables_of(texts.teacher, texts.student, *stops)
    teacher, student, _ = texts.sides()
    q = distributions(rng, teacher.ids.numel(), len(texts.teacher))
    p = distributions(rng, student.ids.numel(), len(texts.student))
    predictions = head_of(q)
    if k is not None:
        best = truncated(q, k)
        predictions, q = TopKPredictions(best["ids"], best["logp"], len(texts.teacher)), best["dense"]

    total, units, exact = 0.0, 0, 0
    for text, ids in enumerate(texts.student_ids):
        targets = literal_targets(texts, text, q.view(*teacher.ids.shape, -1)[text], stops)
        rows = p.view(*student.ids.shape, -1)[text]
        for place, (target, token) in enumerate(zip(targets, ids, strict=True)):
            blank = (texts.student[token] or b"x").strip(b" ") == b""
            if target is not None and (whitespace_rows or not blank):
                mass = sum(target.cells.values()) + target.complement
                assert mass == pytest.approx(1, abs=1e-9)
                total += divergence(target, texts.student, rows[place].tolist(), stops[1])
                units, exact = units + 1, exact + target.exact
    rows, line = texts.rows()
    loss = bpm_loss(predictions, head_of(p), rows, line, tables, scored=student.scored, whitespace_rows=whitespace_rows)
    assert loss.total.item() == pytest.approx(total, rel=1e-7, abs=1e-9)
    if k is None:  # a truncated teacher may leave a counted row without support
        assert loss.count.item() == units
        assert loss.metrics["exact"].tolist() == [exact, units]
    numerator, denominator = loss.metrics["mass"].tolist()
    assert numerator == pytest.approx(denominator, abs=1e-5)
    shares = sum(loss.metrics[name][0] for name in ("token_coverage", "withheld", "excluded"))
    assert shares == loss.metrics["token_coverage"][1] == student.scored.sum()
    assert loss.total.item() >= -1e-9


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_one_tokenizer_gives_the_ordinary_divergence(seed):
    rng = np.random.default_rng(seed)
    texts = random_texts(rng, same=True)
    # No token occurs twice and none has no bytes but the stop, so that every token is a cell of its own.
    unique = list(dict.fromkeys(texts.teacher))
    renamed = [[unique.index(texts.teacher[i]) for i in ids] for ids in texts.teacher_ids]
    texts = Texts(unique, unique, renamed, renamed)
    side, _, _ = texts.sides()
    q, p = (distributions(rng, side.ids.numel(), len(unique)) for _ in range(2))
    rows, line = texts.rows()
    tables = tables_of(unique, unique, [0], [0])
    loss = bpm_loss(head_of(q), head_of(p), rows, line, tables, scored=side.scored, whitespace_rows=True)
    scored = side.scored.flatten().nonzero().squeeze(1) - 1
    assert loss.count.item() == len(scored)
    assert loss.total.item() == pytest.approx((q[scored] * (q[scored] / p[scored]).log()).sum().item(), rel=1e-9)
    assert loss.metrics["exact"].tolist() == loss.metrics["token_coverage"].tolist() == [len(scored)] * 2


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_a_truncated_teacher_gives_lower_bounds_that_grow_with_k(seed):
    rng = np.random.default_rng(seed)
    texts = random_texts(rng)
    tables = tables_of(texts.teacher, texts.student, [0], [0])
    rows, _ = texts.rows()
    inner = rows.at(~rows.root)
    q = distributions(rng, len(rows.student), len(texts.teacher))
    q_inner = q[: len(inner.student)]
    place = inner.teacher_id, inner.offset, inner.remaining
    previous = [torch.zeros(()), torch.zeros(())]
    for k in (1, 3, 8, len(texts.teacher)):
        known = truncated(q, k)["dense"].log(), truncated(q_inner, k)["dense"].log()
        targets = (
            root_targets(known[0], tables, complete=False),
            interior_targets(known[1], *place, tables, complete=False),
        )
        for i, target in enumerate(targets):
            assert (target.columns >= previous[i] - 1e-12).all()
            mass = target.columns.sum(-1) + target.uncovered
            torch.testing.assert_close(mass, torch.ones_like(mass))
            previous[i] = target.columns


def test_an_improbable_prefix_has_its_full_target():
    teacher, student = [b"xa", b"xb", b"y"], [b"x", b"a", b"b", b"y"]
    logp = torch.tensor([[-300.0, -301.0, 0.0]])
    number = torch.tensor([0, 1, 1])[:, None]
    targets = interior_targets(logp, *number, tables_of(teacher, student), complete=True)
    share = 1 / (1 + math.exp(-1))
    assert targets.cells[0].tolist() == pytest.approx([0, share, 1 - share, 0], abs=1e-6)
    assert targets.log_support.item() == pytest.approx(-300 - math.log(share), rel=1e-6)


def test_a_student_without_another_token_learns_what_it_can_write():
    targets = ByteTargets(torch.tensor([[0.3, 0.6, 0.1, 0.0]]), torch.zeros(1), torch.zeros(1))
    logp = torch.tensor([[1 / 3, 2 / 3]]).log().requires_grad_()
    loss = target_divergence(targets, logp)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    assert gradient.isfinite().all()


def test_a_space_that_one_tokenizer_invents_leaves_its_chunk_out():
    vocabulary = [None, b" a", b"a", b"b"]
    texts = Texts(vocabulary, vocabulary, [[2, 3, 3]], [[2, 3, 3]])
    teacher, student, chunks = texts.sides()
    # The student's first token is " a" for the text "a".
    student = student._replace(ids=student.ids.index_fill(1, torch.tensor([1]), 1), lengths=student.lengths.clone())
    student.lengths[0, 1] = 2
    rows, _ = byte_rows(teacher, student, chunks)
    assert rows.student.tolist() == [2, 3]
    assert rows.root.all()
    # Where both invent it, nothing is lost.
    rows, _ = byte_rows(student, student, chunks)
    assert rows.student.tolist() == [1, 2, 3]


def test_candidates_do_not_read_across_text_that_is_left_out():
    teacher, student = [None, b"a", b"b"], [None, b"a", b"b", b"ab", b"abab"]
    texts = Texts(teacher, student, [[1, 2, 2, 1, 2]], [[3, 2, 3]])
    *sides, chunks = texts.sides()
    # Without the rejected "b" in the middle the text would go on as "abab".
    sides = [side._replace(chunk=side.chunk.masked_fill(side.chunk == 1, -1)) for side in sides]
    rows, line = byte_rows(*sides, chunks)
    loss = bpm_loss(
        head_of(torch.full((6, 3), 1 / 3)),
        head_of(torch.full((4, 5), 1 / 5)),
        rows,
        line,
        tables_of(teacher, student),
        scored=sides[1].scored,
    )
    # Of the teacher's third on "a" a ninth is on "ab", a third is on "b", and the rest on the special token.
    row = sum(mass * math.log(5 * mass) for mass in (2 / 9, 1 / 9, 1 / 3)) + 1 / 3 * math.log(5 / 6)
    assert loss.count.item() == 2
    assert loss.total.item() == pytest.approx(2 * row, abs=1e-9)
