"""Vocabulary alignment, on toy tokenizers whose every match can be worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from vocab_toys import (
    LLAMA_LIKE,
    LLAMA_LIKE_VIEW,
    SOURCE,
    SOURCE_VIEW,
    WORDS,
    aligned,
    byte_level,
    sentencepiece,
    spelled,
)

from alignment.byte_models import byte_model
from alignment.byte_view import ByteView
from alignment.vocab import AlignmentError, Match, VocabAlignment, align_vocabularies


def test_a_token_is_copied_by_its_bytes_or_made_of_the_tokens_the_source_would_use() -> None:
    alignment = aligned(SOURCE, [b"the", b" the", b"then", b"things", b"x"])
    assert alignment.match.tolist() == [Match.BYTES, Match.BYTES, Match.PIECES, Match.PIECES, Match.BYTES]
    assert [spelled(SOURCE_VIEW, alignment, token) for token in range(5)] == [
        [b"the"],
        [b" the"],
        [b"the", b"n"],
        [b"th", b"ing", b"s"],
        [b"x"],
    ]


def test_bytes_that_are_no_text_are_merged_as_the_source_merges_bytes() -> None:
    alignment = aligned(SOURCE, [b" \xe2\x9c", b"\x9c\xe2", b"the\xe2\x9c\xc3\xa9\xff"])
    assert spelled(SOURCE_VIEW, alignment, 0) == [b" ", b"\xe2\x9c"]
    assert spelled(SOURCE_VIEW, alignment, 1) == [b"\x9c", b"\xe2"]
    assert spelled(SOURCE_VIEW, alignment, 2) == [b"the", b"\xe2\x9c", b"\xc3\xa9", b"\xff"]


def test_a_token_with_a_byte_that_the_source_lacks_has_no_counterpart() -> None:
    alignment = aligned(byte_level(WORDS, missing=b"\xff\x00"), [b"\xff", b"the\xff", b"the\x00", b"the"])
    assert alignment.match.tolist() == [Match.NONE, Match.NONE, Match.NONE, Match.BYTES]


def test_sentencepiece_pieces_are_compared_as_bytes() -> None:
    tokens = [b"A", b" A", b"\t", "é".encode(), b"\xe9", b"\xc3"]
    alignment = aligned(LLAMA_LIKE, tokens)
    strings = [LLAMA_LIKE.convert_ids_to_tokens(alignment.pieces_of(token).tolist()) for token in range(len(tokens))]
    assert strings == [["A"], ["▁A"], ["<0x09>"], ["é"], ["<0xE9>"], ["<0xC3>"]]
    assert [spelled(LLAMA_LIKE_VIEW, alignment, token) for token in range(len(tokens))] == [[token] for token in tokens]


def test_the_space_that_a_sentencepiece_tokenizer_puts_first_is_no_part_of_a_decomposition() -> None:
    alignment = aligned(LLAMA_LIKE, [b"Aing", b"gA", "日é\t".encode(), b"\xe6" + "é".encode()])
    strings = [LLAMA_LIKE.convert_ids_to_tokens(alignment.pieces_of(token).tolist()) for token in range(4)]
    assert strings == [["A", "ing"], ["g", "A"], ["日", "é", "<0x09>"], ["<0xE6>", "é"]]


def test_text_that_is_spelled_like_a_special_token_is_text() -> None:
    alignment = aligned(SOURCE, [b"<s>"])
    assert alignment.match.tolist() == [Match.PIECES]
    assert spelled(SOURCE_VIEW, alignment, 0) == [b"<", b"s", b">"]


def test_gaps_in_the_target_ids_have_no_counterpart_and_are_no_tokens() -> None:
    target = ByteView.from_tokenizer(byte_level([], missing=b"ab"))
    alignment = align_vocabularies(SOURCE_VIEW, target)
    assert alignment.match[[ord("a"), ord("b"), ord("c")]].tolist() == [Match.NONE, Match.NONE, Match.BYTES]


def test_a_vocabulary_aligned_with_itself_is_the_identity(tiny_tokenizer_dirs: tuple[Path, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dirs[1])
    view = ByteView.from_tokenizer(tokenizer)
    alignment = align_vocabularies(view, view, model=byte_model(tokenizer, view))
    assert alignment.copied.all()
    assert alignment.pieces.tolist() == list(range(view.vocab_size))


@given(st.lists(st.one_of(st.binary(min_size=1, max_size=8), st.text(min_size=1, max_size=6).map(str.encode))))
@pytest.mark.parametrize("source", [SOURCE, LLAMA_LIKE], ids=["byte-level", "sentencepiece"])
def test_the_pieces_of_every_token_spell_exactly_its_bytes(
    source: PreTrainedTokenizerFast, tokens: list[bytes]
) -> None:
    alignment = aligned(source, list(tokens))
    view = ByteView.from_tokenizer(source)
    for token, token_bytes in enumerate(tokens):
        assert b"".join(piece or b"" for piece in spelled(view, alignment, token)) == token_bytes


def test_an_alignment_survives_its_file_and_gives_the_same_bytes_twice(tmp_path: Path) -> None:
    alignment = aligned(SOURCE, [b"the", b"then", None])
    alignment.save(tmp_path / "first.npz")
    alignment.save(tmp_path / "second.npz")
    assert (tmp_path / "first.npz").read_bytes() == (tmp_path / "second.npz").read_bytes()
    loaded = VocabAlignment.load(tmp_path / "first.npz")
    for name in ("match", "offsets", "pieces"):
        before, after = getattr(alignment, name), getattr(loaded, name)
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)
    assert loaded.source_size == alignment.source_size
    assert (loaded.source_fingerprint, loaded.target_fingerprint) == (
        alignment.source_fingerprint,
        alignment.target_fingerprint,
    )


def test_a_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "alignment.npz"
    aligned(SOURCE, [b"the"]).save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(AlignmentError, match=r"alignment\.npz is no vocabulary alignment"):
        VocabAlignment.load(path)


@pytest.mark.parametrize(
    ("match", "offsets", "pieces", "complaint"),
    [
        ([Match.BYTES], [0, 2], [1, 2], "target id 0 is BYTES with 2 pieces"),
        ([Match.BYTES, Match.PIECES], [0, 1, 2], [1, 2], "target id 1 is PIECES with 1 pieces"),
        ([Match.NONE], [0, 1], [1], "target id 0 is NONE with 1 pieces"),
        ([Match.BYTES], [0, 1], [9], r"piece ids must be in \[0, 9\)"),
        ([Match.BYTES], [0, 1], [-1], r"piece ids must be in \[0, 9\)"),
        ([Match.BYTES], [0, 1], [1, 1], "2 pieces are stored"),
        ([Match.BYTES], [0], [], "offsets have shape"),
    ],
)
def test_contradictory_arrays_are_refused(
    match: list[int], offsets: list[int], pieces: list[int], complaint: str
) -> None:
    with pytest.raises(AlignmentError, match=complaint):
        VocabAlignment(
            np.array(match, np.int8), np.array(offsets, np.int64), np.array(pieces, np.int32), 9, "source", "target"
        )


def test_the_canonical_bytes_of_both_families_are_the_same() -> None:
    """The worked cases of embedding_init.md §4.14."""
    cafe = [(b"\xc3", b"\xa9"), (b"c", b"a"), (b"ca", b"f"), (b"caf", b"\xc3\xa9"), (b" ", b"caf\xc3\xa9")]
    source = byte_level([*WORDS[:3], *cafe])
    pieces = ["▁", "t", "h", "e", "c", "a", "f", "é"]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("c", "a"), ("ca", "f"), ("caf", "é"), ("▁", "café")]
    target = sentencepiece(pieces, merges)
    view, target_view = ByteView.from_tokenizer(source), ByteView.from_tokenizer(target)
    alignment = align_vocabularies(view, target_view, model=byte_model(source, view))

    def match(piece: str) -> tuple[Match, list[str]]:
        token = target.convert_tokens_to_ids(piece)
        return Match(alignment.match[token]), source.convert_ids_to_tokens(alignment.pieces_of(token).tolist())

    assert match("▁the") == (Match.BYTES, ["Ġthe"])
    assert match("▁café") == (Match.BYTES, ["ĠcafÃ©"])
    assert match("é") == (Match.BYTES, ["Ã©"])
    assert match("<0x0A>") == (Match.BYTE_FALLBACK, ["Ċ"])
    assert match("<0xE9>") == (Match.BYTE_FALLBACK, ["é"])  # the character of the alphabet, which is the byte E9


def test_a_real_piece_goes_before_a_byte_fallback_token_and_each_finds_its_own_kind_first() -> None:
    without_newline = sentencepiece(["A", "\t"], [])
    target = ByteView.from_tokenizer(without_newline)
    alignment = align_vocabularies(LLAMA_LIKE_VIEW, target)

    def match(piece: str) -> tuple[Match, list[str]]:
        token = without_newline.convert_tokens_to_ids(piece)
        return Match(alignment.match[token]), LLAMA_LIKE.convert_ids_to_tokens(alignment.pieces_of(token).tolist())

    assert match("A") == (Match.BYTES, ["A"])
    assert match("<0x41>") == (Match.BYTES, ["<0x41>"])  # both have a row
    assert match("\t") == (Match.BYTE_FALLBACK, ["<0x09>"])
    plain = aligned(LLAMA_LIKE, [b"\n"])
    assert plain.match.tolist() == [Match.BYTES]
    assert LLAMA_LIKE.convert_ids_to_tokens(plain.pieces.tolist()) == ["\n"]


@pytest.mark.parametrize("tokenizer", [SOURCE, LLAMA_LIKE, byte_level(WORDS, specials=("<s>",), added=("the", "x y"))])
def test_every_vocabulary_finds_itself(tokenizer: PreTrainedTokenizerFast) -> None:
    view = ByteView.from_tokenizer(tokenizer)
    alignment = align_vocabularies(view, view, model=byte_model(tokenizer, view))
    assert alignment.copied.all()
    assert alignment.pieces.tolist() == list(range(view.vocab_size))


def test_tokens_with_the_same_bytes_find_each_other_one_by_one() -> None:
    view = ByteView.from_token_bytes([b"a", b"b", b"a"])
    assert align_vocabularies(view, view).pieces.tolist() == [0, 1, 2]
    more = ByteView.from_token_bytes([b"a", b"a", b"a", b"b"])
    assert align_vocabularies(view, more).pieces.tolist() == [0, 2, 2, 1]


TOKENS = st.lists(st.text(alphabet="ab c", min_size=1, max_size=5).map(str.encode), unique=True, max_size=25)


@given(TOKENS, TOKENS)
def test_random_vocabularies_are_matched_as_by_hand(source: list[bytes], target: list[bytes]) -> None:
    alignment = align_vocabularies(ByteView.from_token_bytes(source), ByteView.from_token_bytes(target))
    for token, data in enumerate(target):
        pieces = [source[piece] for piece in alignment.pieces_of(token)]
        if data in source:
            assert (alignment.match[token], pieces) == (Match.BYTES, [data])
        elif pieces:
            assert alignment.match[token] == Match.PIECES
            assert b"".join(pieces) == data
        else:
            assert alignment.match[token] == Match.NONE
            assert not {data[i : i + 1] for i in range(len(data))} <= set(source)


@given(st.data(), TOKENS, TOKENS)
def test_permuted_ids_give_the_permuted_alignment(
    data: st.DataObject, source: list[bytes], target: list[bytes]
) -> None:
    before = align_vocabularies(ByteView.from_token_bytes(source), ByteView.from_token_bytes(target))
    new_source = data.draw(st.permutations(range(len(source))))
    new_target = data.draw(st.permutations(range(len(target))))
    after = align_vocabularies(
        ByteView.from_token_bytes([source[token] for token in new_source]),
        ByteView.from_token_bytes([target[token] for token in new_target]),
    )
    assert after.match.tolist() == before.match[list(new_target)].tolist()
    for token, old in enumerate(new_target):
        assert [new_source[piece] for piece in after.pieces_of(token)] == before.pieces_of(old).tolist()


def test_the_fingerprint_is_that_of_the_whole_alignment() -> None:
    one, same = (aligned(SOURCE, [b"the", b"then"]) for _ in range(2))
    others = [aligned(SOURCE, [b"then", b"the"]), aligned(LLAMA_LIKE, [b"the", b"then"]), aligned(SOURCE, [b"the"])]
    assert one.fingerprint == same.fingerprint
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 4


@pytest.mark.demo
def test_smollm2_and_gpt2_share_the_tokens_that_are_known_to_be_shared(
    smollm2_dir: Path, gpt2_tokenizer_dir: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    source, target = ByteView.from_tokenizer(tokenizer), ByteView.from_tokenizer(gpt2_tokenizer_dir)
    model = byte_model(tokenizer, source)
    alignment = align_vocabularies(source, target, model=model)
    assert int(alignment.copied.sum()) == 36_961  # data.md §4, <|endoftext|> among them
    assert np.flatnonzero(alignment.match == Match.STRING).tolist() == [50_256]

    decomposed = np.flatnonzero(alignment.match == Match.PIECES)
    assert len(decomposed) == 13_275
    for token in decomposed.tolist():
        pieces = alignment.pieces_of(token).tolist()
        assert b"".join(source.token_bytes(piece) or b"" for piece in pieces) == target.token_bytes(token)
        assert model(target.token_bytes(token) or b"") == pieces
    unmatched = np.flatnonzero(alignment.match == Match.NONE).tolist()
    assert len(unmatched) == 21
    assert all(len(target.token_bytes(token) or b"") == 1 for token in unmatched)  # bytes that SmolLM2 lacks
