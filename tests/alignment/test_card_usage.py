"""What a tokenizer makes of text: counts of words and tokens, Rényi entropy, words of a lexicon."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from toy_tokenizers import byte_level, fast

from alignment.byte_view import ByteView
from alignment.card.efficiency import renyi_efficiency, renyi_entropy
from alignment.card.lexicon import Lexicon, lexicon_use
from alignment.card.usage import usage


@pytest.fixture(scope="module")
def word_view() -> ByteView:
    """Byte-level BPE with the tokens ``Ġcat``, ``Ġcats``, ``the`` and single bytes."""
    merges = [("c", "a"), ("ca", "t"), ("Ġ", "cat"), ("Ġcat", "s"), ("t", "h"), ("th", "e")]
    return ByteView.from_tokenizer(fast(byte_level(*merges)))


def test_worked_counts(word_view):
    # the|Ġcats|,|Ġcat|x|Ġ|7|é é: words are the, cats, catx, 7é
    found = usage(word_view, ["the cats, catx 7é"]).use
    assert (found.documents, found.bytes, found.characters) == (1, 18, 17)
    assert found.tokens == 9
    assert found.words == 4
    assert found.word_tokens == 1 + 1 + 2 + 3
    assert found.whole_words == 2
    assert found.fertility == 7 / 4
    assert found.single_token_retention == 0.5
    assert found.bytes_per_token == 2
    assert found.tokens_per_byte == 0.5
    assert found.coverage == 1


def test_words_do_not_run_over_documents_and_empty_documents_count(word_view):
    found = usage(word_view, ["the", "", "the"]).use
    assert (found.documents, found.words, found.whole_words) == (3, 2, 2)


def test_the_space_before_a_word_may_be_in_its_token_or_in_one_of_its_own(word_view):
    assert usage(word_view, ["the the"]).use.tokens == 3
    assert usage(word_view, ["the the"]).use.whole_words == 2
    assert usage(word_view, ["the\ncat"]).use.whole_words == 2
    assert usage(word_view, ["the  cat"]).use.whole_words == 2
    assert usage(word_view, ["cat-cats"]).use.whole_words == 1, "cat|-|cat|s"


def test_of_nothing_there_are_no_quotients(word_view):
    assert set(usage(word_view, [""]).use.measures.values()) == {None}


def test_scripts_share_the_tokens_that_span_them(word_view):
    found = usage(word_view, ["cat дом"])
    assert found.bytes_per_token_by_script["cyrillic"] == pytest.approx(1.0), "the space counts with its word"
    assert found.bytes_per_token_by_script["latin"] == pytest.approx(3.0)


@given(st.lists(st.text(alphabet="cats the,é東 \n7", max_size=30), max_size=5))
def test_counts_add_up_and_agree_with_a_loop_over_words(word_view, texts):
    found = usage(word_view, texts)
    assert found.use == sum((usage(word_view, [text]).use for text in texts), start=usage(word_view, []).use)
    assert found.frequencies.sum() == found.use.tokens
    touching = whole = words = 0
    for text in texts:
        encoding = word_view.encode(text)
        ends = encoding.byte_ends.tolist()
        tokens = list(zip([0, *ends], ends, strict=False))
        for match in re.finditer(r"[^\W_]+", text):
            start, end = len(text[: match.start()].encode()), len(text[: match.end()].encode())
            mine = [token for token in tokens if token[0] < end and token[1] > start]
            words += 1
            touching += len(mine)
            whole += mine in ([(start, end)], [(start - 1, end)])
    assert (found.use.words, found.use.word_tokens) == (words, touching)
    assert found.use.whole_words == whole


def test_a_lossy_tokenizer_does_not_cover_what_it_rewrites():
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "cat": 1}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    view = ByteView.from_tokenizer(fast(backend, unk_token="[UNK]"))
    found = usage(view, ["cat Cat dog"]).use
    assert found.verbatim_bytes == 3
    assert found.words == 3
    assert found.whole_words == 1, "a rewritten word is not kept"


def test_renyi_worked_numbers():
    counts = [2, 1, 1]
    assert renyi_entropy(counts, 0) == pytest.approx(math.log2(3))
    assert renyi_entropy(counts, 1) == pytest.approx(1.5)
    assert renyi_entropy(counts, 2) == pytest.approx(1.415037, abs=1e-6)  # -log2(3/8)
    assert renyi_entropy(counts, 2.5) == pytest.approx(1.375499, abs=1e-5)  # log2(2^-2.5 + 2 · 4^-2.5) / -1.5
    assert renyi_efficiency(counts, 3, 2) == pytest.approx(0.892789, abs=1e-6)
    assert renyi_efficiency(counts, 4, 2.5) == pytest.approx(0.687749, abs=1e-5)


@given(
    st.lists(st.integers(0, 1000), min_size=2, max_size=40).filter(any),
    st.floats(0, 5, allow_nan=False),
    st.floats(0, 5, allow_nan=False),
)
def test_renyi_entropy_falls_with_its_order_and_efficiency_is_a_share(counts, first, second):
    low, high = sorted((first, second))
    assert renyi_entropy(counts, low) >= renyi_entropy(counts, high) - 1e-6
    assert -1e-9 <= renyi_efficiency(counts, len(counts), low) <= 1 + 1e-9
    assert renyi_efficiency(np.ones(len(counts)), len(counts), low) == pytest.approx(1)


def test_renyi_refuses_nothing():
    with pytest.raises(ValueError, match="at least one occurrence"):
        renyi_entropy([0, 0])
    with pytest.raises(ValueError, match="more than the vocabulary"):
        renyi_efficiency([1, 1], 1)


def test_a_lexicon_by_type_and_by_token():
    # evaluation.md §10: "Cats are playing" cut Ca|ts|are|play|ing has 3 of 5.
    found = lexicon_use({"Ca": 1, "ts": 1, " are": 1, " play": 1, "ing": 1}, Lexicon(frozenset({"are", "play", "ing"})))
    assert (found.valid_types, found.valid_tokens, found.pure_types) == (0.6, 0.6, None)
    # kitaplar evde cut kitap|lar| ev|de
    lexicon = Lexicon(
        frozenset(["kitap", "lar", "kitaplar", "ev", "de", "evde"]), frozenset(["kitap", "lar", "ev", "de"])
    )
    found = lexicon_use({"kitap": 1, "lar": 1, " ev": 1, "de": 1}, lexicon)
    assert (found.valid_types, found.pure_types, found.valid_tokens, found.pure_tokens) == (1, 1, 1, 1)
    whole = lexicon_use({"kitaplar": 1, " evde": 1}, lexicon)
    assert (whole.valid_types, whole.pure_types) == (1, 0)


def test_types_and_tokens_differ_by_frequency():
    found = lexicon_use({"ev": 7, " ev": 1, "xq": 2, "\n": 5, "De": 1}, Lexicon(frozenset({"ev", "de"})))
    assert (found.types, found.tokens) == (3, 11), "white space is no token of a word, and a space makes no other type"
    assert found.valid_types == pytest.approx(2 / 3)
    assert found.valid_tokens == pytest.approx(9 / 11)
    assert lexicon_use({" ": 3}, Lexicon(frozenset({"a"}))) is None


def test_a_lexicon_is_checked():
    with pytest.raises(ValueError, match="'x' is a root"):
        Lexicon(frozenset({"a"}), frozenset({"x"}))
    with pytest.raises(ValueError, match="at least one entry"):
        Lexicon(frozenset())
