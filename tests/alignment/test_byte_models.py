"""A tokenizer's own model on bytes, against the library's models on text and against naive implementations."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from vocab_toys import LLAMA_LIKE, LLAMA_LIKE_VIEW, SOURCE, SOURCE_VIEW, byte_level

from alignment.byte_models import bpe_model, byte_model, longest_match_model, unigram_model
from alignment.byte_view import ByteView
from alignment.segmentation import ByteSegmenter
from alignment.token_index import TokenIndex


@given(st.text(alphabet="thing é✜", min_size=1, max_size=12))
def test_merging_bytes_equals_the_library_where_nothing_is_pre_tokenized(text: str) -> None:
    backend = Tokenizer.from_str(SOURCE.backend_tokenizer.to_str())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    assert byte_model(SOURCE, SOURCE_VIEW)(text.encode()) == backend.encode(text).ids


@given(st.text(alphabet="▁Aing日é\tß", min_size=1, max_size=12))
def test_merging_characters_equals_the_library_where_no_space_is_put_first(text: str) -> None:
    backend = Tokenizer(LLAMA_LIKE.backend_tokenizer.model)
    assert byte_model(LLAMA_LIKE, LLAMA_LIKE_VIEW)(text.replace("▁", " ").encode()) == backend.encode(text).ids


@st.composite
def merge_lists(draw: st.DrawFn) -> list[tuple[bytes, bytes]]:
    """Merges of tokens that exist by then, every product new."""
    tokens = [b"a", b"b", b"\xe2", b"\x80"]
    merges: list[tuple[bytes, bytes]] = []
    for _ in range(draw(st.integers(0, 12))):
        left, right = draw(st.sampled_from(tokens)), draw(st.sampled_from(tokens))
        if left + right not in tokens:
            tokens.append(left + right)
            merges.append((left, right))
    return merges


@given(merge_lists(), st.lists(st.sampled_from([b"a", b"b", b"\xe2", b"\x80"]), min_size=1, max_size=14).map(b"".join))
def test_any_bytes_are_merged_as_training_replayed_merge_by_merge(
    merges: list[tuple[bytes, bytes]], data: bytes
) -> None:
    pieces = [data[i : i + 1] for i in range(len(data))]
    for left, right in merges:
        merged: list[bytes] = []
        for piece in pieces:
            if merged and (merged[-1], piece) == (left, right):
                merged[-1] = left + right
            else:
                merged.append(piece)
        pieces = merged
    tokenizer = byte_level(merges)
    view = ByteView.from_tokenizer(tokenizer)
    found = byte_model(tokenizer, view)(data)
    assert [view.token_bytes(token) for token in found or []] == pieces


def test_the_merges_of_a_model_with_a_prefix_for_continuations_are_understood() -> None:
    vocabulary = {"a": 0, "##b": 1, "##c": 2, "ab": 3, "##bc": 4}
    merges = [("##b", "##c"), ("a", "##b")]
    backend = Tokenizer(models.BPE(vocabulary, merges, continuing_subword_prefix="##"))
    view = ByteView.from_token_bytes([b"a", b"b", b"c", b"ab", b"bc"])
    model = byte_model(PreTrainedTokenizerFast(tokenizer_object=backend), view)
    assert model(b"abc") == backend.encode("abc").ids == [0, 4]
    assert model(b"abd") is None


PIECES = ["a", "b", "c", "ab", "bc", "abc", "ca", "é", "éa"]


@given(
    st.lists(st.integers(-64, 0), min_size=len(PIECES), max_size=len(PIECES), unique=True),
    st.text(alphabet="abcé", min_size=1, max_size=10),
)
def test_the_most_probable_pieces_are_found(scores: list[int], text: str) -> None:
    """Against every possible segmentation, in exact arithmetic, and against the library."""
    view = ByteView.from_token_bytes([piece.encode() for piece in PIECES])
    scale = 1 / 8  # sums of eighths are exact
    found = unigram_model(TokenIndex(view), [score * scale for score in scores])(text.encode())
    by_piece = dict(zip(PIECES, scores, strict=True))

    def total(pieces: list[str]) -> int:
        return sum(by_piece[piece] for piece in pieces)

    best = max(total(pieces) for pieces in _segmentations(text))
    assert found is not None
    assert "".join(PIECES[token] for token in found) == text
    assert total([PIECES[token] for token in found]) == best
    library = Tokenizer(models.Unigram([(piece, score * scale) for piece, score in by_piece.items()], None))
    assert found == library.encode(text).ids


def _segmentations(text: str) -> list[list[str]]:
    if not text:
        return [[]]
    heads = [piece for piece in PIECES if text.startswith(piece)]
    return [[head, *rest] for head in heads for rest in _segmentations(text[len(head) :])]


def test_a_character_without_a_piece_is_spelled_in_bytes_at_the_price_of_an_unknown_one() -> None:
    vocabulary = [("<unk>", 0.0), *[(f"<0x{byte:02X}>", 0.0) for byte in range(256)], ("a", -1.0), ("éa", -30.0)]
    backend = Tokenizer(models.Unigram(vocabulary, 0, True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    view = ByteView.from_tokenizer(tokenizer)
    model = byte_model(tokenizer, view)
    for text in ("éa", "aé", "日a"):
        assert model(text.encode()) == backend.encode(text).ids
    assert model("日".encode()[:2] + b"a") == [1 + 0xE6, 1 + 0x97, 257]  # a part of a character is no text
    without_bytes = ByteView.from_token_bytes([None, b"a"])
    assert unigram_model(TokenIndex(without_bytes), [0.0, -1.0])(b"ab") is None


def test_the_longest_token_that_fits_is_taken_from_the_left() -> None:
    view = ByteView.from_token_bytes([b"a", b"ab", b"abc", b"cd", b"d", b"b"])
    model = longest_match_model(TokenIndex(view))
    assert model(b"abcd") == [2, 4]
    assert model(b"abcd" * 2) == [2, 4, 2, 4]
    assert model(b"abx") is None
    assert model(b"") == []


def test_the_words_of_wordpiece_are_cut_as_the_library_cuts_them() -> None:
    entries = ["[UNK]", "un", "##aff", "##able", "##a", "##ble", "##f", "a"]
    backend = Tokenizer(models.WordPiece({entry: token for token, entry in enumerate(entries)}, unk_token="[UNK]"))
    view = ByteView.from_token_bytes([None, b" un", b"aff", b"able", b"a", b"ble", b"f", b" a"])
    model = longest_match_model(TokenIndex(view))
    for word in ("unaffable", "unable", "aable", "unfa"):
        assert model(b" " + word.encode()) == backend.encode(word).ids


def test_merging_stops_where_the_vocabulary_lacks_a_byte() -> None:
    view = ByteView.from_token_bytes([b"a", b"b", b"ab"])
    model = bpe_model(TokenIndex(view), {(0, 1): (0, 2)})
    assert model(b"abab") == [2, 2]
    assert model(b"abx") is None


def test_pieces_that_spell_something_else_are_no_decomposition() -> None:
    index = TokenIndex(ByteView.from_token_bytes([b"a", b"b"]))
    assert ByteSegmenter(index, lambda data: [0]).segment([b"a", b"b", b"aa"]) == [[0], [], []]


@given(st.lists(st.binary(min_size=1, max_size=9), max_size=6))
def test_tokens_are_segmented_one_by_one_whatever_stands_beside_them(tokens: list[bytes]) -> None:
    segmenter = ByteSegmenter(TokenIndex(SOURCE_VIEW), byte_model(SOURCE, SOURCE_VIEW))
    together = segmenter.segment(tokens)
    assert together == list(itertools.chain.from_iterable(segmenter.segment([token]) for token in tokens))


def test_a_path_to_nowhere_never_wins() -> None:
    """A piece whose continuation has no piece must not be taken, however probable it is."""
    view = ByteView.from_token_bytes([b"ab", b"a", b"bc"])
    model = unigram_model(TokenIndex(view), [-0.1, -5.0, -5.0])
    assert model(b"abc") == [1, 2]
