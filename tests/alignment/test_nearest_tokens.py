from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocab_toys import byte_level

from alignment.byte_view import ByteView
from alignment.nearest_tokens import nearest_strings, nearest_tokens, similar_strings, similar_tokens
from alignment.one_edit import nearest_within_one_edit
from alignment.vocab import align_vocabularies

STRINGS = st.lists(st.binary(min_size=1, max_size=9).map(lambda data: bytes(byte % 4 for byte in data)), max_size=12)


def distance(first: bytes, second: bytes) -> int:
    """Levenshtein distance by its recurrence (Wagner and Fischer 1974)."""
    row = list(range(len(second) + 1))
    for i, left in enumerate(first, start=1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(second, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def rank(query: bytes, candidates: list[bytes], index: int) -> tuple[int, bool, int]:
    """What decides between candidates: distance, another first byte, place."""
    candidate = candidates[index]
    return distance(query, candidate), query[:1] != candidate[:1], index


@settings(deadline=None, max_examples=200)
@given(STRINGS, STRINGS.filter(bool))
def test_the_nearest_is_that_of_all_pairs(queries, candidates):
    expected = [min(range(len(candidates)), key=lambda i, q=q: rank(q, candidates, i)) for q in queries]
    assert nearest_strings(queries, candidates).tolist() == expected


@settings(deadline=None, max_examples=200)
@given(STRINGS, STRINGS)
def test_one_edit_is_found_by_hashes(queries, candidates):
    for query, found in zip(queries, nearest_within_one_edit(queries, candidates).tolist(), strict=True):
        near = [i for i in range(len(candidates)) if distance(query, candidates[i]) <= 1]
        assert found == min(near, key=lambda i, q=query: rank(q, candidates, i), default=-1)


@settings(deadline=None, max_examples=200)
@given(STRINGS, STRINGS, st.sampled_from([0.0, 0.1, 0.3, 0.5]))
def test_similar_ones_are_those_of_all_pairs(queries, candidates, within):
    found = similar_strings(queries, candidates, within=within, most=3)
    for query, row in zip(queries, found.tolist(), strict=True):
        shares = [distance(query, each) / (len(query) + len(each)) for each in candidates]
        near = sorted((i for i, share in enumerate(shares) if share < within), key=lambda i, s=shares: (s[i], i))
        assert row == [*near[:3], *[-1] * (3 - len(near[:3]))]


def test_strings_of_very_different_lengths():
    queries = [b"x" * 70, b"a", b" " * 300]
    candidates = [b"ab", b" " * 200, b"x" * 64 + b"y" * 6]
    assert nearest_strings(queries, candidates).tolist() == [2, 0, 1]


def test_a_leading_space_decides_between_equally_near_ones():
    assert nearest_strings([b" cot"], [b"cot", b" cat", b" cut"]).tolist() == [1]


def test_no_candidate_and_empty_strings_are_refused():
    with pytest.raises(ValueError, match="at least one candidate"):
        nearest_strings([b"a"], [])
    with pytest.raises(ValueError, match="no string may be empty"):
        nearest_strings([b""], [b"a"])


@pytest.fixture(scope="module")
def vocabularies():
    """A source with "the" and " cat", a target with " the", " cats" and special tokens."""
    source = byte_level([(b"t", b"h"), (b"th", b"e"), (b" ", b"c"), (b" c", b"a"), (b" ca", b"t")], specials=("</s>",))
    target = byte_level(
        [(b"t", b"h"), (b" ", b"th"), (b" th", b"e"), (b" ", b"c"), (b" c", b"a"), (b" ca", b"t"), (b" cat", b"s")],
        specials=("<eos>", "<pad>"),
    )
    views = ByteView.from_tokenizer(source), ByteView.from_tokenizer(target)
    roles = {"eos": 261}, {"eos": 263}
    to_target = align_vocabularies(*views, source_roles=roles[0], target_roles=roles[1])
    to_source = align_vocabularies(*views[::-1], source_roles=roles[1], target_roles=roles[0])
    return *views, to_target, to_source


def test_counterparts_go_first_and_special_tokens_by_role(vocabularies):
    source, target, to_target, _ = vocabularies
    nearest = nearest_tokens(source, target, to_target)
    assert nearest[:256].tolist() == list(range(256))
    spelled = {target.token_bytes(token): source.token_bytes(nearest[token]) for token in range(256, 263)}
    assert spelled[b" the"] == b"the"
    assert spelled[b" cats"] == spelled[b" cat"] == b" cat"
    assert nearest[263:].tolist() == [261, -1]


def test_only_tokens_without_a_counterpart_are_similar(vocabularies):
    source, target, to_target, to_source = vocabularies
    similar = similar_tokens(source, target, to_target, to_source, within=0.3, most=2)
    (the,) = (token for token in range(source.vocab_size) if source.token_bytes(token) == b"the")
    rows = {target.token_bytes(token): similar[token].tolist() for token in np.flatnonzero((similar >= 0).any(1))}
    # " cats" is nearer to " cat", which has a counterpart.
    assert rows == {b" the": [the, -1]}
