"""BPE-dropout and MaxMatch-dropout against the worked tables, and against the dropout of ``tokenizers``."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from toy_tokenizers import HELLO_MERGES, byte_level, fast
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from alignment.byte_models import Merges, merges_of
from alignment.byte_view import ByteView
from alignment.dropout import Cut, WordCutter, bpe_dropout, maxmatch_dropout, uniform_numbers

LETTERS = ["a", "b", "c", "ab", "bc", "abc"]
TWO_MERGES = [("a", "b", "ab"), ("ab", "c", "abc")]
THREE_MERGES = [("a", "b", "ab"), ("b", "c", "bc"), ("ab", "c", "abc")]
TEXT = "The quick brown fox jumps over the lazy dog, and 東京 naïve façade\n\n  sleeps on."


def view_of(tokens: list[str]) -> ByteView:
    return ByteView.from_token_bytes([token.encode() for token in tokens])


def ranked(merges: list[tuple[str, str, str]]) -> Merges:
    number = LETTERS.index
    return {(number(left), number(right)): (rank, number(out)) for rank, (left, right, out) in enumerate(merges)}


def frequencies(cut: Cut, probability: float, samples: int) -> Counter:
    numbers = uniform_numbers(np.random.default_rng(7))
    cuts = (cut(b"abc", probability, numbers, True) for _ in range(samples))
    return Counter("|".join(LETTERS[token] for token in ids) for ids in cuts)


@pytest.mark.parametrize(
    ("merges", "table"),
    [
        (TWO_MERGES, {"abc": 0.81, "ab|c": 0.09, "a|b|c": 0.10}),
        (THREE_MERGES, {"abc": 0.81, "ab|c": 0.09, "a|bc": 0.09, "a|b|c": 0.01}),
    ],
)
def test_bpe_dropout_has_the_worked_table(merges, table) -> None:
    samples = 20_000
    seen = frequencies(bpe_dropout(view_of(LETTERS), ranked(merges)), 0.1, samples)
    assert set(seen) == set(table)
    assert chisquare([seen[key] for key in table], [samples * p for p in table.values()]).pvalue > 1e-3


def test_maxmatch_dropout_has_the_worked_table() -> None:
    samples = 20_000
    table = {"abc": 0.9, "ab|c": 0.09, "a|bc": 0.009, "a|b|c": 0.001}
    seen = frequencies(maxmatch_dropout(view_of(LETTERS)), 0.1, samples)
    assert set(seen) == set(table)
    assert chisquare([seen[key] for key in table], [samples * p for p in table.values()]).pvalue > 1e-3


@pytest.mark.parametrize(("probability", "expected"), [(0.0, {"abc"}), (1.0, {"a|b|c"})])
def test_the_ends_of_both(probability: float, expected: set[str]) -> None:
    view = view_of(LETTERS)
    for cut in (bpe_dropout(view, ranked(THREE_MERGES)), maxmatch_dropout(view)):
        assert set(frequencies(cut, probability, 20)) == expected


def test_maxmatch_passes_over_no_single_character_and_may_come_to_a_dead_end() -> None:
    view = view_of(["é", "a", "aé", "ax"])
    cut, always = maxmatch_dropout(view), uniform_numbers(np.random.default_rng(0))
    assert cut("aé".encode(), 1.0, always, True) == [1, 0]  # é has two bytes, and is one character
    assert cut(b"ax", 0.0, always, True) == [3]
    assert cut(b"ax", 1.0, always, True) is None


@pytest.fixture(scope="module")
def tiny(tiny_tokenizer_dirs) -> tuple[PreTrainedTokenizerFast, ByteView, Merges]:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dirs[1])
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    return tokenizer, ByteView.from_tokenizer(tokenizer), merges_of(model)


def test_bpe_dropout_is_that_of_tokenizers(tiny) -> None:
    """Encodings of words, sampled by both: `tokenizers` cannot be seeded, but its law is the same."""
    tokenizer, view, merges = tiny
    word, samples = " boundaries", 1500
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    settings["model"]["dropout"] = 0.3
    theirs = Tokenizer.from_str(json.dumps(settings))
    cutter = WordCutter(view, bpe_dropout(view, merges))
    encoding, words, rng = view.encode(word), view.words(word), np.random.default_rng(3)
    seen = [
        Counter(tuple(theirs.encode(word).ids) for _ in range(samples)),
        Counter(tuple(cutter.respell(encoding, words, 0.3, rng=rng).ids.tolist()) for _ in range(samples)),
    ]
    kept = [ids for ids in seen[0] | seen[1] if seen[0][ids] + seen[1][ids] >= 20]
    assert len(kept) > 5
    assert chi2_contingency([[side[ids] for ids in kept] for side in seen]).pvalue > 1e-4


def test_without_dropout_bpe_gives_the_encoding_itself(tiny) -> None:
    _, view, merges = tiny
    encoding = view.encode(TEXT)
    cutter = WordCutter(view, bpe_dropout(view, merges))
    same = cutter.respell(encoding, view.words(TEXT), 0.0, rng=np.random.default_rng(0))
    assert same.ids.tolist() == encoding.ids.tolist()
    assert same.byte_ends.tolist() == encoding.byte_ends.tolist()


@given(text=st.text(max_size=40), probability=st.floats(0, 1), seed=st.integers(0, 100), method=st.booleans())
def test_any_cut_spells_the_text_inside_its_words(tiny, text: str, probability: float, seed: int, method: bool) -> None:
    _, view, merges = tiny
    try:
        encoding = view.encode(text)
    except ValueError:  # lone surrogates
        return
    words = view.words(text)
    cutter = WordCutter(view, bpe_dropout(view, merges) if method else maxmatch_dropout(view))
    cut = cutter.respell(encoding, words, probability, rng=np.random.default_rng(seed))
    assert b"".join(view.token_bytes(token) for token in cut.ids.tolist()) == text.encode()
    assert cut.byte_ends.tolist() == np.cumsum(view.byte_lengths[cut.ids]).tolist()
    ends_of_words = encoding.byte_ends[np.append(words[1:] != words[:-1], True)[: len(words)]]
    assert set(ends_of_words.tolist()) <= set(cut.byte_ends.tolist())


def test_protected_tokens_stay_and_the_generator_decides(tiny) -> None:
    _, view, merges = tiny
    encoding, words = view.encode(TEXT), view.words(TEXT)
    cutter = WordCutter(view, bpe_dropout(view, merges))
    protected = encoding.byte_ends <= 20
    cut = [cutter.respell(encoding, words, 1.0, rng=np.random.default_rng(i), protected=protected) for i in (1, 1)]
    first = int(protected.sum())
    assert cut[0].ids[:first].tolist() == encoding.ids[:first].tolist()
    assert len(cut[0].ids) == first + len(TEXT.encode()) - encoding.byte_ends[first - 1]  # all merges dropped: bytes
    assert cut[0].ids.tolist() == cut[1].ids.tolist()


def test_words_end_at_spaces_where_the_tokenizer_leaves_a_text_in_one_piece() -> None:
    """A merge that is dropped for good in one word does not end the merging of another."""
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = byte_level(*HELLO_MERGES, pre_tokenizer=whole)
    view = ByteView.from_tokenizer(fast(tokenizer))
    text = "hello hello hello"
    assert len(set(view.words(text).tolist())) == 1
    model = json.loads(tokenizer.to_str())["model"]
    cutter = WordCutter(view, bpe_dropout(view, merges_of(model)))
    encoding = view.encode(text)
    assert len(encoding.ids) == 3
    rng = np.random.default_rng(1)
    seen = Counter(tuple(cutter.respell(encoding, view.words(text), 0.9, rng=rng).ids.tolist()) for _ in range(2000))
    letters = view.encode("h").ids[0]
    untouched = sum(count for ids, count in seen.items() if ids[0] == letters)
    # One word of five letters has two possible merges at first: both are dropped with probability 0.81.
    assert untouched / 2000 > 0.81 - 0.05


@pytest.mark.parametrize("method", ["bpe", "wordpiece"])
def test_special_and_rewritten_tokens_stay(method: str, tiny) -> None:
    if method == "bpe":
        _, view, merges = tiny
        text = "fox<|endoftext|>fox"
        encoding, words = view.encode_rendered(text), view.words(text, rendered=True)
        assert len(set(words.tolist())) == 3
        cut = WordCutter(view, bpe_dropout(view, merges)).respell(encoding, words, 1.0, rng=np.random.default_rng(0))
        assert sorted(view.special_tokens) == [token for token in cut.ids.tolist() if token in view.special_tokens]
        assert len(cut.ids) == 7
        return
    entries = ["[UNK]", "play", "##ing", "##i", "##n", "##g", "p", "##l", "##a", "##y", "!"]
    backend = Tokenizer(models.WordPiece({entry: index for index, entry in enumerate(entries)}, unk_token="[UNK]"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    view = ByteView.from_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]"))
    text = "playing xyz !"
    encoding = view.encode(text, exact=False)
    cutter = WordCutter(view, maxmatch_dropout(view))
    cut = cutter.respell(encoding, view.words(text), 1.0, rng=np.random.default_rng(0))
    assert [entries[token] for token in cut.ids] == ["p", "##l", "##a", "##y", "##i", "##n", "##g", "[UNK]", "!"]
    assert cut.byte_ends.tolist()[:7] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.demo
def test_gpt2_words_are_cut_as_its_merges_have_it(gpt2_tokenizer_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gpt2_tokenizer_dir)
    view = ByteView.from_tokenizer(tokenizer)
    cutter = WordCutter(view, bpe_dropout(view, merges_of(json.loads(tokenizer.backend_tokenizer.to_str())["model"])))
    text = "The children were playing in the garden after the rain, and nobody heard them.\n" * 20
    encoding, words = view.encode(text), view.words(text)
    assert cutter.respell(encoding, words, 0.0, rng=np.random.default_rng(0)).ids.tolist() == encoding.ids.tolist()
    growth = len(cutter.respell(encoding, words, 0.1, rng=np.random.default_rng(0)).ids) / len(encoding.ids)
    assert 1.15 < growth < 1.45
