from __future__ import annotations

import numpy as np
import pytest
from vocab_toys import byte_level

from alignment.byte_models import byte_model
from alignment.byte_view import ByteView
from alignment.projection import MAX_ENTRIES, Projection, piece_weights, projection
from alignment.vocab import align_vocabularies

WORDS = [(b"t", b"h"), (b"th", b"e"), (b" ", b"the"), (b"2", b"0"), (b"20", b"1")]
SPLITS = [(b"t", b"h"), (b"i", b"n"), (b"in", b"g"), (b"th", b"ing")]


def matrix_of(student, teacher, **roles) -> tuple[Projection, ByteView, ByteView]:
    """The projection between two tokenizers, and their views."""
    ours, theirs = ByteView.from_tokenizer(student), ByteView.from_tokenizer(teacher)
    swapped = {"source_roles": roles.get("target_roles"), "target_roles": roles.get("source_roles")}
    student_tokens = align_vocabularies(theirs, ours, model=byte_model(teacher, theirs), **roles)
    teacher_tokens = align_vocabularies(ours, theirs, model=byte_model(student, ours), **swapped)
    return projection(student_tokens, teacher_tokens), ours, theirs


def row(matrix: Projection, ours: ByteView, theirs: ByteView, token: bytes) -> dict[bytes | None, float]:
    """The entries of one student token, by the teacher's bytes."""
    (student,) = (index for index in range(ours.vocab_size) if ours.token_bytes(index) == token)
    entries = matrix.student == student
    return {
        theirs.token_bytes(column): weight
        for column, weight in zip(matrix.teacher[entries].tolist(), matrix.weight[entries].tolist(), strict=True)
    }


@pytest.mark.parametrize(
    ("count", "weights"),
    [
        (1, [1]),
        (2, [0.9090909091, 0.0909090909]),
        (3, [0.9009009009, 0.0900900901, 0.0090090090]),
        (4, [0.9000900090, 0.0900090009, 0.0090009001, 0.0009000900]),
        (7, [0.9000900090, 0.0900090009, 0.0090009001, 0.0009000900]),
    ],
)
def test_the_weights_of_the_paper(count, weights):
    assert piece_weights(count) == pytest.approx(weights, abs=1e-9)


def test_a_token_that_both_have_is_carried_whole():
    matrix, ours, theirs = matrix_of(byte_level(WORDS), byte_level(SPLITS))
    # Although it is also a piece of the teacher's "thing", which the student lacks.
    assert row(matrix, ours, theirs, b"th") == {b"th": 1.0}


def test_a_token_that_the_teacher_lacks_goes_to_its_pieces():
    matrix, ours, theirs = matrix_of(byte_level(WORDS), byte_level(SPLITS))
    assert row(matrix, ours, theirs, b"201") == pytest.approx(
        {b"2": 0.9009009, b"0": 0.0900901, b"1": 0.0090090}, abs=1e-6
    )
    assert row(matrix, ours, theirs, b" the") == pytest.approx(
        {b" ": 0.9009009, b"th": 0.0900901, b"e": 0.0090090}, abs=1e-6
    )


def test_a_token_that_the_teacher_lacks_goes_to_what_it_is_a_piece_of_too():
    # The student spells the teacher's "abcd" as "ab" + "cd"; the teacher spells the student's "ab" as "a" + "b".
    student = byte_level([(b"a", b"b"), (b"c", b"d")])
    teacher = byte_level([(b"b", b"c"), (b"a", b"bc"), (b"abc", b"d")])
    matrix, ours, theirs = matrix_of(student, teacher)
    # "ab" is the first of two pieces of both "abc" and "abcd"; ties keep the order of ids.
    assert row(matrix, ours, theirs, b"ab") == pytest.approx(
        {b"a": 10 / 31, b"abc": 10 / 31, b"abcd": 10 / 31, b"b": 1 / 31}
    )
    assert list(row(matrix, ours, theirs, b"ab")) == [b"a", b"abc", b"abcd", b"b"]
    # Where more than four entries meet, the largest stay: the second piece "d" is as large as that of "abcd" is.
    assert row(matrix, ours, theirs, b"cd") == pytest.approx({b"c": 10 / 12, b"d": 1 / 12, b"abcd": 1 / 12})


def test_rows_add_up_to_one_with_at_most_four_entries_in_order():
    student = byte_level([(b"a", b"b"), (b"ab", b"c"), (b"abc", b"d"), (b"abcd", b"e"), (b"e", b"f")])
    matrix, ours, _ = matrix_of(student, byte_level([(b"a", b"e"), (b"ae", b"f"), (b"b", b"c")]))
    counts = np.bincount(matrix.student, minlength=ours.vocab_size)
    assert counts.max() == MAX_ENTRIES
    assert counts.min() == 1
    assert np.bincount(matrix.student, weights=matrix.weight) == pytest.approx(np.ones(ours.vocab_size))
    same_row = matrix.student[1:] == matrix.student[:-1]
    assert (np.diff(matrix.student) >= 0).all()
    assert (np.diff(matrix.weight)[same_row] <= 0).all()


def test_special_tokens_go_by_their_roles():
    student, teacher = byte_level([], specials=("<end>", "<other>")), byte_level([], specials=("</s>",))
    ends = {"source_roles": {"eos": 256}, "target_roles": {"eos": 256}}
    matrix, _, _ = matrix_of(student, teacher, **ends)
    assert matrix.teacher[matrix.student == 256].tolist() == [256]
    assert not (matrix.student == 257).any()


def test_a_vocabulary_is_projected_onto_itself_by_the_identity():
    matrix, ours, _ = matrix_of(byte_level(WORDS), byte_level(WORDS))
    assert matrix.student.tolist() == matrix.teacher.tolist() == list(range(ours.vocab_size))
    assert (matrix.weight == 1).all()
