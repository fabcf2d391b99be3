from __future__ import annotations

import itertools
import math

import pytest
from ideal_models import MarkovTexts, TokenChain, byte_pair_encoding, three_letters, worked_example

from alignment.byte_models import ByteModel
from alignment.byte_view import ByteView
from alignment.cover_encodings import CoverEncodings, NotASubset, decomposition_tree

A, B, AB = range(3)  # of the worked example
MERGES = ["b+c", "a+b", "ab+a", "a+bc", "c+c", "bc+a"]


def byte_covers(view: ByteView, encode: ByteModel) -> CoverEncodings:
    spellings = {token: view.token_bytes(token) for token in range(view.vocab_size)}
    return CoverEncodings(spellings, lambda symbols: encode(bytes(symbols)))


@pytest.fixture(scope="module")
def example() -> tuple[MarkovTexts, TokenChain, CoverEncodings]:
    view, encode = byte_pair_encoding("ab", ["a+b"])
    texts = worked_example()
    return texts, texts.through(encode, view.vocab_size), byte_covers(view, encode)


def test_the_induced_token_chain_is_that_of_the_specification(example):
    _, chain, _ = example
    start, after_a, after_b = ([math.exp(logp) for logp in chain.log_probs(tokens)] for tokens in ((), (A,), (B,)))
    assert start == pytest.approx([3 / 10, 2 / 5, 3 / 10])
    assert after_a == pytest.approx([1 / 2, 0, 1 / 2])
    assert after_b == pytest.approx([3 / 20, 7 / 10, 3 / 20])


@pytest.mark.parametrize(
    ("text", "expected"), [("a", {(A,), (AB,)}), ("aa", {(A, A), (A, AB)}), ("ab", {(AB,)}), ("", {()})]
)
def test_the_coverings_of_the_worked_example(example, text, expected):
    coverings = example[2].coverings(text.encode())
    assert len(coverings) == len(expected)
    assert set(coverings) == expected


def test_the_lemma_holds_for_all_62_strings(example):
    texts, chain, covers = example
    strings = ["".join(letters) for length in range(1, 6) for letters in itertools.product("ab", repeat=length)]
    assert len(strings) == 62
    for string in strings:
        assert sum(chain.probability(c) for c in covers.coverings(string.encode())) == pytest.approx(
            texts.probability(string), abs=1e-12
        )
        assert math.exp(covers.log_probability(string.encode(), chain.log_probs)) == pytest.approx(
            texts.probability(string), abs=1e-12
        )


def test_the_next_byte_is_exact_where_the_naive_way_is_biased(example):
    _, chain, covers = example
    assert covers.next_symbols(b"a", chain.log_probs)[ord("b")] == pytest.approx(0.5)
    assert chain.log_probs((A,))[B] == -math.inf


def test_what_no_text_begins_with_has_no_probability(example):
    _, chain, covers = example
    assert covers.coverings(b"x") == []
    assert covers.log_probability(b"x", chain.log_probs) == -math.inf


def test_bits_per_byte_of_the_marginal_and_of_the_canonical_encoding(example):
    _, chain, covers = example
    assert -covers.log_probability(b"aa", chain.log_probs) / math.log(2) / 2 == pytest.approx(0.8685, abs=1e-4)
    canonical = chain.log_probs(())[A] + chain.log_probs((A,))[A]
    assert -canonical / math.log(2) / 2 == pytest.approx(1.3685, abs=1e-4)


def test_next_bytes_of_a_larger_encoding_are_those_of_the_texts():
    view, encode = byte_pair_encoding("abc", MERGES)
    texts = three_letters()
    chain, covers = texts.through(encode, view.vocab_size), byte_covers(view, encode)
    for length in range(4):
        for letters in itertools.product("abc", repeat=length):
            prefix = "".join(letters)
            found = covers.next_symbols(prefix.encode(), chain.log_probs)
            exact = {letter: texts.probability(prefix + letter) / texts.probability(prefix) for letter in "abc"}
            assert found == pytest.approx({ord(letter): p for letter, p in exact.items()}, abs=1e-12)


@pytest.mark.parametrize("kept", [0, 1, 2, 4])
def test_next_tokens_of_a_smaller_vocabulary_are_those_of_the_texts(kept):
    """Student tokens as symbols: their exact distribution is that of the texts as the student cuts them."""
    teacher, teacher_encode = byte_pair_encoding("abc", MERGES)
    student, student_encode = byte_pair_encoding("abc", MERGES[:kept])
    texts = three_letters()
    chain = texts.through(teacher_encode, teacher.vocab_size)
    exact = texts.through(student_encode, student.vocab_size)
    covers = CoverEncodings(
        {token: student_encode(teacher.token_bytes(token)) for token in range(teacher.vocab_size)},
        lambda symbols: teacher_encode(b"".join(student.token_bytes(symbol) for symbol in symbols)),
    )
    prefixes = {tuple(student_encode(text.encode())[:length]) for text in texts.texts for length in range(3)}
    assert len(prefixes) > 10
    for prefix in prefixes:
        assert math.exp(covers.log_probability(prefix, chain.log_probs)) == pytest.approx(exact.probability(prefix))
        expected = {u: math.exp(logp) for u, logp in enumerate(exact.log_probs(prefix)) if logp > -math.inf}
        assert covers.next_symbols(prefix, chain.log_probs) == pytest.approx(expected)


def decompose(student: ByteView, teacher: ByteView, encode: ByteModel, **options):
    return decomposition_tree(student, teacher, encode, student_roles={}, teacher_roles={}, **options)


def test_teacher_tokens_decompose_by_the_students_merges_and_the_tree_is_kept(tmp_path):
    teacher, _ = byte_pair_encoding("abc", MERGES)
    student, encode = byte_pair_encoding("abc", MERGES[:2])
    tree = decompose(student, teacher, encode, directory=tmp_path)
    for token in range(teacher.vocab_size):
        node, pieces = int(tree.whole[token]), []
        while node:
            pieces.insert(0, int(tree.symbols[node]))
            node = int(tree.parents[node])
        assert pieces == encode(teacher.token_bytes(token))
    (kept,) = tmp_path.iterdir()
    assert decompose(student, teacher, encode, directory=tmp_path).tokens.tolist() == tree.tokens.tolist()
    assert kept.name.startswith("decompositions-")


def test_a_vocabulary_that_is_no_subset_is_refused():
    teacher, _ = byte_pair_encoding("abc", MERGES)
    student, encode = byte_pair_encoding("abc", ["c+b", "a+b"])
    with pytest.raises(NotASubset, match=r"1 of the student's 5 tokens are no tokens of the teacher.*b'cb'"):
        decompose(student, teacher, encode)


def test_a_teacher_token_that_the_student_cannot_spell_is_refused():
    teacher, _ = byte_pair_encoding("abc", MERGES)
    student, encode = byte_pair_encoding("ab", [])
    with pytest.raises(NotASubset, match=r"5 of the teacher's 9 tokens cannot be spelled.*b'c'"):
        decompose(student, teacher, encode)
