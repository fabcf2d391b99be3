"""StochasTok's two laws against exactly enumerated distributions, and against the list version of the paper."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare

from alignment.byte_view import ByteView
from alignment.split_laws import attempts_of
from alignment.splits import SplitTable

LETTERS = ["a", "b", "c", "ab", "bc", "abc", "cab"]
GREETING = ["h", "e", "l", "o", "he", "ll", "lo", "hell", "ello", "hello", " h", " hello"]
TEXT = "The children were playing in the garden after the rain; nobody heard the fox and the dog. "


def table_of(tokens: list[str]) -> SplitTable:
    return SplitTable.from_view(ByteView.from_token_bytes([token.encode() for token in tokens]))


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


def p_value(seen: Counter, law: dict) -> float:
    """Of a chi-square test; what is expected less than ten times is counted together."""
    samples = sum(seen.values())
    assert set(seen) <= set(law)
    common = [state for state, probability in law.items() if probability * samples >= 10]
    observed = [seen[state] for state in common]
    expected = [float(law[state] * samples) for state in common]
    if len(common) < len(law):
        observed.append(samples - sum(observed))
        expected.append(samples - sum(expected))
    return 1.0 if len(observed) == 1 else chisquare(observed, expected).pvalue


def sampled(table: SplitTable, sequence: tuple[int, ...], samples: int, seed: int, **options) -> Counter:
    rng = np.random.default_rng(seed)
    drawn = table.expand_batch([sequence] * samples, rngs=[rng] * samples, **options)
    return Counter(tuple(each.ids.tolist()) for each in drawn)


def test_the_worked_distribution_of_one_attempt() -> None:
    a, b, c, ab, bc, abc = (LETTERS.index(token) for token in ["a", "b", "c", "ab", "bc", "abc"])
    law = steps_law((abc, ab), 1, table_of(LETTERS))
    assert law == {(abc, a, b): Fraction(1, 2), (a, bc, ab): Fraction(1, 4), (ab, c, ab): Fraction(1, 4)}
    assert sum(len(state) * probability for state, probability in law.items()) == 3


@pytest.mark.parametrize(
    ("tokens", "proportion", "attempts"),
    [
        (["abc", "ab"], 0.4, 0),
        (["abc", "ab"], 0.5, 1),
        (["abc", "ab"], 1.0, 2),
        (["cab", "a", "abc"], 1.0, 3),
        (["abc", "bc", "b", "cab"], 1.0, 4),
        (["cab", "cab", "c", "cab", "abc", "ab"], 0.67, 4),
    ],
)
def test_steps_follow_the_exact_law(tokens: list[str], proportion: float, attempts: int) -> None:
    table = table_of(LETTERS)
    sequence = tuple(LETTERS.index(token) for token in tokens)
    seen = sampled(table, sequence, 15_000, 20, proportion=proportion)
    assert p_value(seen, steps_law(sequence, attempts, table)) > 1e-3


def list_steps(ids: list[int], attempts: int, table: SplitTable, rng: np.random.Generator) -> list[int]:
    """The paper's loop, on a list."""
    sequence = list(ids)
    for _ in range(attempts):
        position = int(rng.integers(len(sequence)))
        if pairs := table.splits(sequence[position]):
            sequence[position : position + 1] = pairs[int(rng.integers(len(pairs)))]
    return sequence


@pytest.fixture(scope="module")
def text_table(tiny_tokenizer_dirs) -> tuple[ByteView, SplitTable, np.ndarray]:
    view = ByteView.from_tokenizer(tiny_tokenizer_dirs[1])
    return view, SplitTable.from_view(view), view.encode(TEXT).ids


@pytest.mark.parametrize("proportion", [0.3, 1.0])
def test_on_text_steps_are_those_of_the_list(text_table, proportion: float) -> None:
    """Which tokens there are after all attempts, and how many: sampled by both, compared."""
    _, table, ids = text_table
    samples, attempts = 800, int(len(ids) * proportion)
    rngs = (np.random.default_rng(5), np.random.default_rng(6))
    lists = [list_steps(ids.tolist(), attempts, table, rngs[0]) for _ in range(samples)]
    drawn = table.expand_batch([ids] * samples, proportion, rngs=[rngs[1]] * samples)
    arrays = [each.ids.tolist() for each in drawn]
    for statistic in (lambda each: [len(each)], lambda each: each):
        counts = [Counter(value for each in side for value in statistic(each)) for side in (lists, arrays)]
        kept = [value for value in counts[0] | counts[1] if min(counts[0][value], counts[1][value]) >= 20]
        assert chi2_contingency([[count[value] for value in kept] for count in counts]).pvalue > 1e-3
        assert len(kept) > 5


def test_binomial_follows_its_law() -> None:
    sequence = tuple(LETTERS.index(token) for token in ("abc", "a", "ab"))
    seen = sampled(table_of(LETTERS), sequence, 12_000, 21, proportion=0.3, law="binomial")
    abc = {"abc": 0.7, "a bc": 0.15, "ab c": 0.15}
    ab = {"ab": 0.7, "a b": 0.3}
    law = {
        tuple(LETTERS.index(token) for token in f"{left} a {right}".split()): abc[left] * ab[right]
        for left in abc
        for right in ab
    }
    assert set(seen) == set(law)
    assert p_value(seen, law) > 1e-3


def test_later_rounds_split_pieces_of_earlier_ones() -> None:
    """Two rounds of 0.3 on `abc`: a half with a split is split with probability 0.3 in the second."""
    a, b, c, ab, bc, abc = (LETTERS.index(token) for token in ["a", "b", "c", "ab", "bc", "abc"])
    seen = sampled(table_of(LETTERS), (abc,), 20_000, 22, proportion=0.6, law="binomial", rounds=2)
    once = 0.7 * 0.15 + 0.15 * 0.7
    law = {(abc,): 0.49, (a, bc): once, (ab, c): once, (a, b, c): 2 * 0.15 * 0.3}
    assert sum(law.values()) == pytest.approx(1.0)
    assert p_value(seen, law) > 1e-3


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
    rng = np.random.default_rng(0)
    assert attempts_of(length, proportion, "floor", rng) == attempts
    ids = np.full(length, LETTERS.index("ab"))
    assert length <= len(table_of(LETTERS).expand(ids, proportion, rng=rng)) <= length + attempts


def test_stochastic_rounding_reaches_short_texts_with_the_right_chance() -> None:
    rng = np.random.default_rng(1)
    counts = Counter(attempts_of(9, 0.1, "stochastic", rng) for _ in range(10_000))
    assert set(counts) == {0, 1}
    assert counts[1] == pytest.approx(9000, abs=150)  # five standard deviations
    assert {attempts_of(10, 0.1, "stochastic", rng) for _ in range(100)} == {1}
    assert {attempts_of(100, 0.29, "stochastic", rng) for _ in range(100)} == {29}


@given(
    sequences=st.lists(st.lists(st.integers(0, len(GREETING) - 1), max_size=60), max_size=4),
    proportion=st.floats(0, 1),
    seed=st.integers(0, 2**32),
    law=st.sampled_from(["steps", "binomial"]),
    rounding=st.sampled_from(["floor", "stochastic"]),
    rounds=st.integers(1, 3),
)
def test_every_token_becomes_pieces_that_spell_it(sequences, proportion, seed, law, rounding, rounds) -> None:
    table = table_of(GREETING)
    rngs = [np.random.default_rng([seed, index]) for index in range(len(sequences))]
    expansions = table.expand_batch(sequences, proportion, rngs=rngs, law=law, rounding=rounding, rounds=rounds)
    assert len(expansions) == len(sequences)
    for ids, expansion in zip(sequences, expansions, strict=True):
        assert (expansion.ids.dtype, expansion.origin.dtype) == (np.int32, np.int64)
        pieces = [""] * len(ids)
        for token, index in zip(expansion.ids.tolist(), expansion.origin.tolist(), strict=True):
            pieces[index] += GREETING[token]
        assert pieces == [GREETING[token] for token in ids]
        assert expansion.origin.tolist() == sorted(expansion.origin.tolist())
        if law == "steps":
            most = int(round(len(ids) * proportion, 6)) + (rounding == "stochastic")
            assert len(ids) <= len(expansion.ids) <= len(ids) + most


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    proportion=st.sampled_from([0.1, 0.5, 1.0]),
    law=st.sampled_from(["steps", "binomial"]),
    seed=st.integers(0, 1000),
)
def test_a_sequence_is_split_alike_alone_and_in_a_batch(lengths, proportion, law, seed) -> None:
    table = table_of(GREETING)
    draw = np.random.default_rng(seed)
    sequences = [draw.integers(0, len(GREETING), length) for length in lengths]
    together = table.expand_batch(
        sequences, proportion, rngs=[np.random.default_rng([seed, i]) for i in range(len(lengths))], law=law
    )
    alone = [
        table.expand(ids, proportion, rng=np.random.default_rng([seed, i]), law=law) for i, ids in enumerate(sequences)
    ]
    assert [each.ids.tolist() for each in together] == [each.tolist() for each in alone]


def test_parts_of_a_large_batch_make_no_difference(monkeypatch) -> None:
    table = table_of(GREETING)
    sequences = [np.full(length, GREETING.index(" hello")) for length in (3, 0, 50, 7, 200, 1, 90)]

    def expanded() -> list[list[int]]:
        rngs = [np.random.default_rng(index) for index in range(len(sequences))]
        return [each.ids.tolist() for each in table.expand_batch(sequences, 1.0, rngs=rngs)]

    whole = expanded()
    monkeypatch.setattr("alignment.split_laws._NODES_AT_ONCE", 40)
    assert expanded() == whole


@pytest.mark.parametrize("law", ["steps", "binomial"])
def test_protected_tokens_are_never_split_and_come_back_as_they_were(law: str) -> None:
    table = table_of(LETTERS)
    ids = np.array([LETTERS.index("abc"), LETTERS.index("cab")] * 50)
    protected = np.tile([True, False], 50)
    (expansion,) = table.expand_batch(
        [ids], 1.0, rngs=[np.random.default_rng(2)], law=law, protected=[protected], rounds=2
    )
    kept = protected[expansion.origin]
    assert expansion.ids[kept].tolist() == [LETTERS.index("abc")] * 50
    assert len(expansion.ids) > 120
    assert expansion.ids.dtype == np.int32


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
    ("ids", "options", "message"),
    [
        ([0, 12], {}, r"ids\[1\] is 12, outside \[0, 12\)"),
        ([-1], {}, r"ids\[0\] is -1"),
        ([[0]], {}, "vector of integers"),
        ([0.5], {}, "vector of integers"),
        ([0], {"proportion": 1.5}, "proportion must be in"),
        ([0], {"proportion": float("nan")}, "proportion must be in"),
        ([0], {"law": "dropout"}, "'steps' or 'binomial', got 'dropout'"),
        ([0], {"rounding": "up"}, "'floor' or 'stochastic', got 'up'"),
        ([0], {"law": "binomial", "rounds": 0}, "rounds must be at least 1"),
        ([0], {"protected": [np.zeros(2, bool)]}, "bool of shape"),
        ([0], {"protected": []}, "1 sequences, 1 generators and 0 masks"),
    ],
)
def test_wrong_arguments_are_refused(ids: list, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table_of(GREETING).expand_batch([ids], rngs=[np.random.default_rng(0)], **{"proportion": 0.1} | options)
