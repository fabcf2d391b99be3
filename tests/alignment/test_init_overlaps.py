"""Weights from text: overlaps counted byte by byte, a rewritten stretch worked by hand, and blocks that do not show."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from tokenizers import normalizers
from vocab_toys import LLAMA_LIKE_VIEW, SOURCE_VIEW, byte_level

from alignment.byte_view import ByteView, InexactEncoding
from alignment.initializers import overlaps
from alignment.initializers.overlaps import CoOccurrences, count_co_occurrences

TARGET_VIEW = ByteView.from_tokenizer(
    byte_level([(b"h", b"e"), (b" ", b"t"), (b"n", b"g"), (b"\xa9", b" "), (b"n", b"n")])
)
TEXTS = ["the thing", " the ring then", "", "caf\u00e9 the \u2713 inning", "A singing \u65e5", "x"]


def counted(made: CoOccurrences) -> Counter[tuple[int, int]]:
    rows = np.repeat(np.arange(len(made.offsets) - 1), np.diff(made.offsets))
    pairs = zip(rows.tolist(), made.sources.tolist(), strict=True)
    return Counter(dict(zip(pairs, made.counts.tolist(), strict=True)))


def owners(view: ByteView, text: str) -> list[tuple[int, int]]:
    """For every byte the place and the id of the token that has it."""
    encoding, found, start = view.encode(text), [], 0
    for place, (token, end) in enumerate(zip(encoding.ids.tolist(), encoding.byte_ends.tolist(), strict=True)):
        found += [(place, token)] * (end - start)
        start = end
    return found


@pytest.mark.parametrize("source", [SOURCE_VIEW, LLAMA_LIKE_VIEW], ids=["byte-level", "space in front"])
def test_every_pair_of_tokens_that_share_a_byte_counts_once(source: ByteView) -> None:
    expected: Counter[tuple[int, int]] = Counter()
    for text in TEXTS:
        met = set(zip(owners(TARGET_VIEW, text), owners(source, text), strict=True))
        expected.update((target, old) for (_, target), (_, old) in met)
    assert counted(count_co_occurrences(source, TARGET_VIEW, TEXTS, source.vocab_size)) == expected


def test_a_character_that_is_rewritten_belongs_to_all_tokens_it_became() -> None:
    source = ByteView.from_tokenizer(byte_level([], normalizer=normalizers.NFD()))
    target = ByteView.from_tokenizer(byte_level([(b"\xc3", b"\xa9")]))
    made = counted(count_co_occurrences(source, target, ["a\u00e9b"], source.vocab_size))
    e_acute = 256
    assert made == {(97, 97): 1, (e_acute, ord("e")): 1, (e_acute, 0xCC): 1, (e_acute, 0x81): 1, (98, 98): 1}


def test_blocks_of_text_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = count_co_occurrences(SOURCE_VIEW, TARGET_VIEW, TEXTS * 3, SOURCE_VIEW.vocab_size)
    monkeypatch.setattr(overlaps, "_BLOCK_CHARACTERS", 12)
    parts = count_co_occurrences(SOURCE_VIEW, TARGET_VIEW, TEXTS * 3, SOURCE_VIEW.vocab_size)
    for name, array in whole.arrays().items():
        assert np.array_equal(array, parts.arrays()[name]), name
        assert array.dtype == parts.arrays()[name].dtype


def test_source_tokens_without_a_row_are_not_counted() -> None:
    every = counted(count_co_occurrences(SOURCE_VIEW, TARGET_VIEW, TEXTS, SOURCE_VIEW.vocab_size))
    limited = counted(count_co_occurrences(SOURCE_VIEW, TARGET_VIEW, TEXTS, 258))
    assert limited == {pair: count for pair, count in every.items() if pair[1] < 258}
    assert limited != every


def test_counts_worked_by_hand_and_cut_to_the_most_frequent() -> None:
    # embedding_init.md §4.6, in the order in which a row is stored: most frequent first.
    made = CoOccurrences(np.array([0, 3, 3]), np.array([0, 1, 2], dtype=np.int32), np.array([6, 3, 1]))
    rows = torch.tensor([[1.0, 2.0, 3.0], [3.0, 0.0, 1.0], [5.0, 4.0, -1.0]])
    both = made.rows(torch.tensor([1, 0]), most=8)
    assert (both.indices[0] == -1).all()
    torch.testing.assert_close(both.combine(rows)[1], torch.tensor([2.0, 1.6, 2.0]))
    torch.testing.assert_close(made.rows(torch.tensor([0]), most=2).combine(rows), ((2 * rows[0] + rows[1]) / 3)[None])


def test_the_most_frequent_come_first_and_of_equals_the_lowest_id() -> None:
    made = count_co_occurrences(SOURCE_VIEW, TARGET_VIEW, TEXTS, SOURCE_VIEW.vocab_size)
    for start, end in zip(made.offsets[:-1].tolist(), made.offsets[1:].tolist(), strict=True):
        ranks = [(-count, token) for count, token in zip(made.counts[start:end], made.sources[start:end], strict=True)]
        assert ranks == sorted(ranks)


@pytest.mark.parametrize("texts", [[], [""]], ids=["none", "empty"])
def test_without_text_no_token_has_weights(texts: list[str]) -> None:
    made = count_co_occurrences(SOURCE_VIEW, TARGET_VIEW, texts, SOURCE_VIEW.vocab_size)
    assert made.rows(torch.arange(3), most=4).indices.tolist() == [[-1]] * 3


def test_a_text_without_bytes_is_refused() -> None:
    with pytest.raises(InexactEncoding, match="lone surrogate"):
        count_co_occurrences(SOURCE_VIEW, TARGET_VIEW, ["a\ud800"], SOURCE_VIEW.vocab_size)
