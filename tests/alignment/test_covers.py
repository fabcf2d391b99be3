from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from covers_world import GPT_2, LLAMA_3, NO_CUTS, World, byte_pair, coverings, splitting
from hypothesis import given, settings
from hypothesis import strategies as st
from ideal_models import worked_example
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from toy_tokenizers import END, fast

from alignment.byte_view import ByteView, InexactEncoding
from alignment.cover_encodings import CoverEncodings
from alignment.covers import Covers
from alignment.covers_text import NotText

A, B, AB = range(3)


@pytest.fixture(scope="module")
def example() -> Covers:
    tokenizer = byte_pair("ab", ["a+b"])
    return Covers(tokenizer, ByteView.from_tokenizer(tokenizer))


@pytest.mark.parametrize(
    ("text", "expected"), [("a", {(A,), (AB,)}), ("aa", {(A, A), (A, AB)}), ("ab", {(AB,)}), ("b", {(B,)})]
)
def test_the_coverings_of_the_worked_example(example, text, expected):
    found = coverings(example.tree(text.encode()))
    assert len(found) == len(expected)
    assert set(found) == expected


def test_the_lemma_holds_for_all_62_strings(example):
    texts = worked_example()
    chain = texts.through(lambda data: example.view.encode(data.decode()).ids.tolist(), 3)
    strings = ["".join(letters) for length in range(1, 6) for letters in itertools.product("ab", repeat=length)]
    assert len(strings) == 62
    for string in strings:
        covered = sum(chain.probability(ids) for ids in coverings(example.tree(string.encode())))
        assert covered == pytest.approx(texts.probability(string), abs=1e-12)
    marginal = sum(chain.probability(ids) for ids in coverings(example.tree(b"aa")))
    assert -math.log2(marginal) / 2 == pytest.approx(0.8685, abs=1e-4)


def test_the_trunk_ends_where_no_token_could_lie_across(example):
    tree = example.tree(b"abba")  # only the last a may be the beginning of a longer token
    assert tree.trunk == (AB, B)
    assert tree.start == 3
    assert [node.path for node in tree.nodes] == [(), (A,)]
    assert example.tree(b"abb").trunk == (AB, B)


MERGES = ["b+c", "a+b", "ab+a", "a+bc", "c+c", "bc+a"]


@st.composite
def merge_lists(draw: st.DrawFn) -> list[str]:
    entries, merges = ["a", "b", "c"], []
    for _ in range(draw(st.integers(1, 8))):
        left, right = draw(st.sampled_from(entries)), draw(st.sampled_from(entries))
        if len(left + right) <= 5 and f"{left}+{right}" not in merges:
            merges.append(f"{left}+{right}")
            entries += [left + right] if left + right not in entries else []
    return draw(st.permutations(merges)) if draw(st.booleans()) else merges


@settings(max_examples=20, deadline=None)
@given(merge_lists())
def test_any_merges_give_the_coverings_that_encoding_again_finds(merges):
    """Also merges in an order that makes parts later than wholes."""
    tokenizer = byte_pair("abc", merges)
    view = ByteView.from_tokenizer(tokenizer)
    covers = Covers(tokenizer, view)
    assert covers.method == "merges"
    spellings = {token: view.token_bytes(token) for token in np.flatnonzero(view.byte_lengths).tolist()}
    oracle = CoverEncodings(spellings, lambda symbols: view.encode(bytes(symbols).decode()).ids.tolist())
    for letters in itertools.product("abc", repeat=3):
        prefix = "".join(letters).encode()
        found = coverings(covers.tree(prefix))
        assert len(found) == len(set(found))
        assert set(found) == set(oracle.coverings(prefix))


TEXT_MERGES = [
    *("a+a", "\n+\n", " + ", "  +  ", " +a", " a+a", "'+s", "s+a", "0+0", "00+0", " +0", "\n+ ", " +\n"),
    *("'+'", "s+s", "a+'", "a+0", "000+0", "aa+a"),
]
WORLDS = {
    "no cuts": (NO_CUTS, "a 0", 6),
    "spaces as GPT-2 cuts them": (GPT_2, "a \n", 6),
    "contractions as GPT-2 cuts them": (GPT_2, "as' ", 5),
    "digits as GPT-2 cuts them": (GPT_2, "a0 ", 6),
    "spaces as Llama 3 cuts them": (splitting(LLAMA_3), "a \n", 6),
    "contractions as Llama 3 cuts them": (splitting(LLAMA_3), "as' ", 5),
    "digits as Llama 3 cuts them": (splitting(LLAMA_3), "a0 ", 6),
    "digits in threes from the right": (splitting(r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))|[^\p{N}]+"), "a0", 7),
}


@pytest.fixture(scope="module", params=WORLDS)
def world(request: pytest.FixtureRequest) -> World:
    pre_tokenizer, alphabet, length = WORLDS[request.param]
    return World(byte_pair("as' \n0", TEXT_MERGES, pre_tokenizer), alphabet, length)


def test_what_texts_begin_with_is_what_their_coverings_add_up_to(world):
    assert world.covers.method.startswith("merges")
    for prefix in world.prefixes(3):
        assert world.covered(prefix) == pytest.approx(world.probability(prefix), abs=1e-12), prefix


def test_the_next_byte_and_the_end_are_those_of_the_texts(world):
    for prefix in [*world.prefixes(3), *list(world.texts)[::97]]:
        assert world.next_bytes(prefix) == pytest.approx(world.true_next_bytes(prefix), abs=1e-12), prefix


def test_a_sequence_may_be_valid_that_is_not_the_encoding_of_what_it_spells():
    """GPT-2 leaves the last of several line ends to a pre-token of its own where a word follows."""
    tokenizer = byte_pair("a\n", ["\n+\n"], GPT_2)
    view = ByteView.from_tokenizer(tokenizer)
    newline, two = 1, 2
    assert view.encode("\n\n").ids.tolist() == [two]
    assert view.encode("\n\na").ids.tolist()[:2] == [newline, newline]
    nodes = {node.path: node for node in Covers(tokenizer, view).tree(b"\n\n").nodes}
    assert nodes[newline, newline].following.tolist() == [True, False, False, False]
    assert nodes[two,].following.tolist() == [False, True, True, False]
    assert [nodes[two,].may_end, nodes[newline, newline].may_end] == [True, False]


def test_whole_pre_tokens_need_no_merges():
    """Llama 3 takes a pre-token from the vocabulary where no merges would make it."""
    tokenizer = byte_pair("ab ", [" +a"], splitting(LLAMA_3), ignore_merges=True, extra=[" ab", "bab"])
    world = World(tokenizer, "ab ", 6)
    made_by_none = {world.view.encode(text).ids.tolist()[0] for text in (" ab", "bab")}
    assert {world.view.token_bytes(token) for token in made_by_none} == {b" ab", b"bab"}
    for prefix in world.prefixes(4):
        assert world.next_bytes(prefix) == pytest.approx(world.true_next_bytes(prefix), abs=1e-12), prefix


def test_prefixes_may_end_inside_characters():
    world = World(byte_pair("aé中 ", ["a+a", " +a", "a+é", "é+é"], GPT_2), "aé中 ", 4)
    assert any(len(prefix) and prefix[-1] == 0xE4 for prefix in world.prefixes(4))
    for prefix in world.prefixes(6):
        assert world.next_bytes(prefix) == pytest.approx(world.true_next_bytes(prefix), abs=1e-12), prefix


def unigram() -> Tokenizer:
    pieces = ["<unk>", "a", "b", "▁", "▁a", "ab", "▁ab", "ba", "aa"]
    scores = [-9.0, -3.0, -3.1, -3.2, -4.0, -4.1, -4.6, -5.3, -6.05]
    tokenizer = Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def word_piece() -> Tokenizer:
    entries = ["[UNK]", "a", "b", "##a", "##b", "ab", "##ab", "##ba", "aba"]
    tokenizer = Tokenizer(models.WordPiece({entry: token for token, entry in enumerate(entries)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer


@pytest.mark.parametrize(("make", "alphabet"), [(unigram, "ab "), (word_piece, "ab")])
def test_other_models_are_asked_by_encoding_again(make, alphabet):
    world = World(fast(make(), eos_token=END), alphabet, 5, no_leading_space=True)
    assert world.covers.method == "encoding again"
    for prefix in world.prefixes(4):
        assert world.next_bytes(prefix) == pytest.approx(world.true_next_bytes(prefix), abs=1e-12), prefix
        assert world.covered(prefix) == pytest.approx(world.probability(prefix), abs=1e-12), prefix


def test_a_pattern_that_knows_letters_is_asked_by_encoding_again():
    world = World(byte_pair("ab ", ["a+b", "b+a"], splitting("ab?|b+| ")), "ab ", 5)
    assert world.covers.method == "encoding again"
    for prefix in world.prefixes(3):
        assert world.next_bytes(prefix) == pytest.approx(world.true_next_bytes(prefix), abs=1e-12), prefix


def test_all_counts_every_last_token(example):
    """Of the coverings of ab: the token ab, and b after a, which the merge would have joined."""
    assert set(coverings(example.tree(b"ab", estimator="all"))) == {(AB,), (A, B)}
    following = example.tree(b"a", estimator="all").nodes[1].following
    assert following.tolist() == [True, True, True, False]
    assert example.tree(b"a").nodes[1].following.tolist() == [True, False, True, False]


def test_what_is_no_text_or_has_no_tokens_is_refused(example):
    with pytest.raises(NotText, match="invalid start byte at byte 1 of 2"):
        example.tree(b"a\xff")
    with pytest.raises(InexactEncoding):
        example.tree(b"ac")
    with pytest.raises(InexactEncoding, match="incomplete character"):
        example.tree(b"a\xe4")
