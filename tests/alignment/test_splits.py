"""StochasTok's split table and expansion laws, against worked splits and exactly enumerated distributions."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from alignment.byte_view import ByteView
from alignment.splits import SplitTable

LETTERS = ["a", "b", "c", "ab", "bc", "abc", "cab"]
GREETING = ["h", "e", "l", "o", "he", "ll", "lo", "hell", "ello", "hello", " h", " hello"]


def table_of(tokens: list[str]) -> SplitTable:
    return SplitTable.from_view(ByteView.from_token_bytes([token.encode() for token in tokens]))


def named_splits(tokens: list[str], token: str) -> list[tuple[str, str]]:
    pairs = table_of(tokens).splits(tokens.index(token))
    return [(tokens[left], tokens[right]) for left, right in pairs]


@pytest.mark.parametrize(
    ("tokens", "token", "expected"),
    [
        (LETTERS, "ab", [("a", "b")]),
        (LETTERS, "bc", [("b", "c")]),
        (LETTERS, "abc", [("a", "bc"), ("ab", "c")]),
        (LETTERS, "cab", [("c", "ab")]),
        (LETTERS, "a", []),
        (GREETING, "he", [("h", "e")]),
        (GREETING, "ll", [("l", "l")]),
        (GREETING, "lo", [("l", "o")]),
        (GREETING, "hell", [("he", "ll")]),
        (GREETING, "ello", []),
        (GREETING, "hello", [("h", "ello"), ("hell", "o")]),
        (GREETING, " hello", [(" h", "ello")]),
        (GREETING, " h", []),
    ],
)
def test_worked_splits(tokens: list[str], token: str, expected: list[tuple[str, str]]) -> None:
    assert named_splits(tokens, token) == expected


def test_special_tokens_have_no_splits_and_are_no_halves() -> None:
    view = ByteView.from_token_bytes([b"a", b"b", None, b"ab"])
    table = SplitTable.from_view(view)
    assert table.splits(2) == []
    assert table.splits(3) == [(0, 1)]


def test_added_and_byte_fallback_tokens_are_left_alone() -> None:
    entries = ["<0x61>", "<0x62>", "a", "c", "▁", "ab", "ac", "aca", "xy"]
    backend = Tokenizer(models.BPE({entry: index for index, entry in enumerate(entries)}, [], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.add_tokens(["ca", "aac"])
    table = SplitTable.from_view(ByteView.from_tokenizer(tokenizer))
    splits = {token: table.splits(index) for token, index in tokenizer.get_vocab().items()}
    assert splits.pop("ac") == [(2, 3)]  # by "a" itself, not by its fallback byte
    assert splits.pop("aca") == [(6, 2)]  # not ("a", "ca"): "ca" was added
    assert not any(splits.values())  # "ab" would need the fallback byte of "b", and "aac" was added


def test_the_lowest_id_is_the_half_among_equal_tokens() -> None:
    view = ByteView.from_token_bytes([b"a", b"b", b"a", b"ab", b"ab"])
    table = SplitTable.from_view(view)
    assert table.splits(3) == table.splits(4) == [(0, 1)]


def test_cuts_inside_characters_are_legal_and_counted() -> None:
    tokens = ["é".encode()[:1], "é".encode()[1:], "é".encode(), b"a", "éa".encode(), "aé".encode()]
    table = SplitTable.from_view(ByteView.from_token_bytes(tokens))
    assert table.splits(2) == [(0, 1)]
    assert table.splits(4) == [(2, 3)]
    assert table.splits(5) == [(3, 2)]
    assert table.cuts_inside_characters == 1


def one_step(sequence: tuple[int, ...], table: SplitTable) -> dict[tuple[int, ...], Fraction]:
    """The exact law of one attempt, by rebuilding the list: every position, every split."""
    outcomes: Counter[tuple[int, ...]] = Counter()
    for position, token in enumerate(sequence):
        pieces = table.splits(token) or [(token,)]
        for piece in pieces:
            result = (*sequence[:position], *piece, *sequence[position + 1 :])
            outcomes[result] += Fraction(1, len(sequence) * len(pieces))
    return dict(outcomes)


def steps_law(sequence: tuple[int, ...], attempts: int, table: SplitTable) -> dict[tuple[int, ...], Fraction]:
    law = {sequence: Fraction(1)}
    for _ in range(attempts):
        following: Counter[tuple[int, ...]] = Counter()
        for state, probability in law.items():
            for outcome, conditional in one_step(state, table).items():
                following[outcome] += probability * conditional
        law = dict(following)
    return law


def test_the_worked_distribution_of_one_attempt() -> None:
    a, b, c, ab, bc, abc = (LETTERS.index(token) for token in ["a", "b", "c", "ab", "bc", "abc"])
    law = steps_law((abc, ab), 1, table_of(LETTERS))
    assert law == {(abc, a, b): Fraction(1, 2), (a, bc, ab): Fraction(1, 4), (ab, c, ab): Fraction(1, 4)}
    assert sum(len(state) * probability for state, probability in law.items()) == 3


@pytest.mark.parametrize(
    ("tokens", "proportion", "attempts"),
    [
        (["abc", "ab"], 0.5, 1),
        (["abc", "ab"], 1.0, 2),
        (["cab", "a", "abc"], 1.0, 3),
        (["abc", "bc", "b", "cab"], 1.0, 4),
    ],
)
def test_steps_follow_the_exact_law(tokens: list[str], proportion: float, attempts: int) -> None:
    table = table_of(LETTERS)
    sequence = tuple(LETTERS.index(token) for token in tokens)
    law = steps_law(sequence, attempts, table)
    rng = np.random.default_rng(20)
    samples = 12_000
    seen = Counter(tuple(table.expand(sequence, proportion, rng=rng).tolist()) for _ in range(samples))
    assert set(seen) <= set(law)
    common = [state for state, probability in law.items() if probability * samples >= 10]
    observed = [seen[state] for state in common]
    expected = [float(law[state] * samples) for state in common]
    if len(common) < len(law):
        observed.append(samples - sum(observed))
        expected.append(samples - sum(expected))
    assert chisquare(observed, expected).pvalue > 1e-3


def test_binomial_follows_its_law() -> None:
    table = table_of(LETTERS)
    sequence = [LETTERS.index(token) for token in ("abc", "a", "ab")]
    rng = np.random.default_rng(21)
    samples = 12_000
    seen = Counter(
        " ".join(LETTERS[token] for token in table.expand(sequence, 0.3, rng=rng, law="binomial"))
        for _ in range(samples)
    )
    abc = {"abc": 0.7, "a bc": 0.15, "ab c": 0.15}
    ab = {"ab": 0.7, "a b": 0.3}
    expected = {f"{left} a {right}": abc[left] * ab[right] * samples for left in abc for right in ab}
    assert set(seen) == set(expected)
    assert chisquare([seen[key] for key in expected], list(expected.values())).pvalue > 1e-3


@pytest.mark.parametrize(
    ("length", "proportion", "attempts"),
    [
        (0, 0.1, 0),
        (9, 0.1, 0),
        (10, 0.1, 1),
        (19, 0.1, 1),
        (20, 0.1, 2),
        (512, 0.1, 51),
        (512, 0.05, 25),
        (100, 0.29, 29),  # 100 * 0.29 is 28.999999999999996 in floating point
        (20, 0.0, 0),
    ],
)
def test_attempts_are_rounded_down(length: int, proportion: float, attempts: int) -> None:
    # A token whose halves can be split again without end: every attempt succeeds.
    always_split = SplitTable(
        offsets=np.array([0, 1]), left=np.array([0]), right=np.array([0]), cuts_inside_characters=0
    )
    rng = np.random.default_rng(0)
    assert len(always_split.expand([0] * length, proportion, rng=rng)) == length + attempts


@given(
    ids=st.lists(st.integers(0, len(GREETING) - 1), max_size=60),
    proportion=st.floats(0, 1),
    seed=st.integers(0, 2**32),
    law=st.sampled_from(["steps", "binomial"]),
)
def test_every_token_becomes_pieces_that_spell_it(ids: list[int], proportion: float, seed: int, law: str) -> None:
    table = table_of(GREETING)
    expanded, origin = table.expand_with_index(ids, proportion, rng=np.random.default_rng(seed), law=law)
    assert (expanded.dtype, origin.dtype) == (np.int32, np.int64)
    pieces = [""] * len(ids)
    for token, index in zip(expanded.tolist(), origin.tolist(), strict=True):
        pieces[index] += GREETING[token]
    assert pieces == [GREETING[token] for token in ids]
    assert origin.tolist() == sorted(origin.tolist())
    limit = round(len(ids) * proportion, 6) if law == "steps" else len(ids)
    assert len(ids) <= len(expanded) <= len(ids) + limit


@pytest.mark.parametrize("law", ["steps", "binomial"])
def test_the_generator_alone_decides(law: str) -> None:
    table = table_of(GREETING)
    ids = np.arange(len(GREETING)).repeat(20)
    before = ids.copy()
    first = table.expand(ids, 0.5, rng=np.random.default_rng(3), law=law)
    np.testing.assert_array_equal(first, table.expand(ids, 0.5, rng=np.random.default_rng(3), law=law))
    assert first.tolist() != table.expand(ids, 0.5, rng=np.random.default_rng(4), law=law).tolist()
    np.testing.assert_array_equal(ids, before)


@pytest.mark.parametrize(
    ("ids", "proportion", "law", "message"),
    [
        ([0, 12], 0.1, "steps", r"ids\[1\] is 12, outside \[0, 12\)"),
        ([-1], 0.1, "steps", r"ids\[0\] is -1"),
        ([[0]], 0.1, "steps", "vector of integers"),
        ([0.5], 0.1, "steps", "vector of integers"),
        ([0], 1.5, "steps", "proportion must be in"),
        ([0], float("nan"), "steps", "proportion must be in"),
        ([0], 0.1, "dropout", "'steps' or 'binomial', got 'dropout'"),
    ],
)
def test_wrong_arguments_are_refused(ids: list, proportion: float, law: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table_of(GREETING).expand(ids, proportion, rng=np.random.default_rng(0), law=law)


@pytest.mark.demo
def test_gpt2_splits(gpt2_tokenizer_dir: Path) -> None:
    view = ByteView.from_tokenizer(gpt2_tokenizer_dir)
    table = SplitTable.from_view(view)

    def splits(word: str) -> list[tuple[str, str]]:
        (token,) = view.encode(word).ids.tolist()
        return [
            (view.token_bytes(left).decode(), view.token_bytes(right).decode()) for left, right in table.splits(token)
        ]

    assert splits(" hello") == [(" ", "hello"), (" h", "ello"), (" he", "llo"), (" hel", "lo"), (" hell", "o")]
    assert splits(" strawberry") == [(" straw", "berry")]
    assert splits(" example") == [(" ", "example"), (" ex", "ample"), (" exam", "ple")]
    assert splits("1000") == [("1", "000"), ("10", "00"), ("100", "0")]
    assert table.splits(50256) == []

    ids = view.encode("The children were playing in the garden after the rain, and nobody heard them. " * 100).ids
    expanded = table.expand(ids, 1.0, rng=np.random.default_rng(0))
    spelled = b"".join(view.token_bytes(token) for token in expanded.tolist())
    assert spelled == b"".join(view.token_bytes(token) for token in ids.tolist())
    # stochastok.md §1 measured 1.58 times as many tokens on short English sentences.
    assert 1.3 < len(expanded) / len(ids) < 1.8
