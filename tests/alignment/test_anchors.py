"""Which pairs of tokens may tie two embedding spaces together."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers
from vocab_toys import LLAMA_LIKE, LLAMA_LIKE_VIEW, WORDS, byte_level

from alignment.anchors import AnchorPolicy, anchors
from alignment.byte_models import byte_model
from alignment.byte_view import ByteView
from alignment.vocab import AlignmentError, Match, VocabAlignment, align_vocabularies

NUMBERS = [(b"1", b"2"), (b"12", b"3"), (b" ", b"1")]
EVERYTHING = AnchorPolicy(special=True, byte_fallback=True, partial_utf8=True, reserved=True, added=True, digits=True)


def pairs(alignment: VocabAlignment, source: ByteView, target: ByteView, **options: object) -> list[tuple[int, int]]:
    source_ids, target_ids = anchors(alignment, source, target, **options)
    assert source_ids.dtype == target_ids.dtype == np.int32
    return list(zip(source_ids.tolist(), target_ids.tolist(), strict=True))


def sides() -> tuple[ByteView, ByteView, VocabAlignment]:
    """Two tokenizers that share everything but their ids; the source has its merges the other way round."""
    specials, added = ("<s>", "<|reserved_7|>"), ("<tool>",)
    source = byte_level([*WORDS, *NUMBERS], specials=specials, added=added)
    target = byte_level([*NUMBERS, *WORDS], specials=specials, added=added)
    views = ByteView.from_tokenizer(source), ByteView.from_tokenizer(target)
    return *views, align_vocabularies(*views, model=byte_model(source, views[0]))


def left_out(policy: AnchorPolicy) -> set[bytes | str | None]:
    """The tokens, by what they spell, that a policy rules out and the widest one does not."""
    source, target, alignment = sides()
    widest = pairs(alignment, source, target, policy=EVERYTHING)
    assert len(widest) == source.vocab_size
    found = pairs(alignment, source, target, policy=policy)
    return {source.token_bytes(token) or source.special_tokens[token] for token, _ in set(widest) - set(found)}


def test_each_part_of_the_policy_rules_out_its_tokens_and_no_others() -> None:
    partial = {bytes([byte]) for byte in range(128, 256)} | {b"\xe2\x9c"}
    assert left_out(EVERYTHING) == set()
    assert left_out(replace(EVERYTHING, special=False)) == {"<s>", "<|reserved_7|>"}
    assert left_out(replace(EVERYTHING, reserved=False)) == {"<|reserved_7|>"}
    assert left_out(replace(EVERYTHING, added=False)) == {b"<tool>"}
    assert left_out(replace(EVERYTHING, partial_utf8=False)) == partial
    assert left_out(replace(EVERYTHING, digits=False)) == set()  # both cut numbers alike
    assert left_out(AnchorPolicy()) == partial | {"<s>", "<|reserved_7|>"}


def test_long_numbers_are_no_anchors_where_numbers_are_cut_differently() -> None:
    digits = [bytes([digit]) for digit in b"0123456789"]
    merges = [*itertools.product(digits, digits), *NUMBERS[1:], *WORDS]
    free = byte_level(merges)
    single = byte_level(merges, pre_tokenizer=pre_tokenizers.Digits(individual_digits=True))
    source, target = ByteView.from_tokenizer(free), ByteView.from_tokenizer(single)
    alignment = align_vocabularies(source, target)
    kept = {source.token_bytes(token) for token, _ in pairs(alignment, source, target)}
    assert {b"1", b" 1", b"the"} <= kept
    assert not {b"12", b"123"} & kept
    widened = pairs(alignment, source, target, policy=AnchorPolicy(digits=True))
    assert {b"12", b"123"} <= {source.token_bytes(token) for token, _ in widened}


def test_byte_fallback_tokens_are_anchors_only_if_the_policy_says_so() -> None:
    byte_pieces = set(range(1, 257))
    alignment = align_vocabularies(LLAMA_LIKE_VIEW, LLAMA_LIKE_VIEW, model=byte_model(LLAMA_LIKE, LLAMA_LIKE_VIEW))
    default = {target for _, target in pairs(alignment, LLAMA_LIKE_VIEW, LLAMA_LIKE_VIEW)}
    wide = {target for _, target in pairs(alignment, LLAMA_LIKE_VIEW, LLAMA_LIKE_VIEW, policy=EVERYTHING)}
    assert default.isdisjoint(byte_pieces)
    assert byte_pieces < wide


def test_anchors_are_exact_unique_and_in_the_order_of_the_target() -> None:
    source = ByteView.from_token_bytes([b"a", b"the", b"b", b"th"])
    target = ByteView.from_token_bytes([b"THE", b"the", b"b", b"the", b"ab", b"a"])
    alignment = align_vocabularies(source, target, override={"ab": "th"}, fold=("case",))
    assert alignment.match.tolist() == [
        Match.FOLDED,
        Match.BYTES,
        Match.BYTES,
        Match.BYTES,
        Match.OVERRIDE,
        Match.BYTES,
    ]
    assert pairs(alignment, source, target) == [(1, 1), (2, 2), (0, 5)]
    assert pairs(alignment, source, target, target_rows=5) == [(1, 1), (2, 2)]
    assert pairs(alignment, source, target, target_rows=0) == []


TOKENS = st.lists(st.binary(min_size=1, max_size=2), unique=True, max_size=30)


@given(TOKENS, TOKENS)
def test_random_vocabularies_give_the_tokens_that_both_have_and_that_are_text(
    source: list[bytes], target: list[bytes]
) -> None:
    def is_text(data: bytes) -> bool:
        return "\ufffd" not in data.decode(errors="replace") or data.decode(errors="replace").encode() == data

    views = ByteView.from_token_bytes(source), ByteView.from_token_bytes(target)
    found = pairs(align_vocabularies(*views), *views)
    assert found == [
        (source.index(data), token) for token, data in enumerate(target) if data in source and is_text(data)
    ]


@pytest.mark.parametrize("policy", [AnchorPolicy(), EVERYTHING])
def test_an_empty_vocabulary_has_no_anchors(policy: AnchorPolicy) -> None:
    empty, some = ByteView.from_token_bytes([]), ByteView.from_token_bytes([b"a"])
    for source, target in ((empty, some), (some, empty)):
        assert pairs(align_vocabularies(source, target), source, target, policy=policy) == []


def test_tokenizers_that_the_alignment_was_not_made_for_are_refused() -> None:
    source, target, other = (ByteView.from_token_bytes([data]) for data in (b"a", b"b", b"c"))
    alignment = align_vocabularies(source, target)
    for views in ((source, other), (other, target)):
        with pytest.raises(AlignmentError, match="is not that of the tokenizers"):
            anchors(alignment, *views)
