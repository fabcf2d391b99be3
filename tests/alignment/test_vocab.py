"""Vocabulary alignment, on toy tokenizers whose every match can be worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from alignment.byte_view import ByteView
from alignment.segmentation import ByteSegmenter, merges_of
from alignment.vocab import AlignmentError, Match, VocabAlignment, align_vocabularies, describe

ALPHABET = bytes_to_unicode()
WORDS = [
    (b"t", b"h"),
    (b"th", b"e"),
    (b" ", b"the"),
    (b"i", b"n"),
    (b"in", b"g"),
    (b"\xe2", b"\x9c"),
    (b"\xc3", b"\xa9"),
]


def byte_level(
    merges: list[tuple[bytes, bytes]], *, specials: tuple[str, ...] = (), missing: bytes = b""
) -> PreTrainedTokenizerFast:
    """Byte-level BPE: id b for byte b (those of ``missing`` are gaps), then the merges, then the specials."""

    def spell(token: bytes) -> str:
        return "".join(ALPHABET[byte] for byte in token)

    vocabulary = {ALPHABET[byte]: byte for byte in range(256) if byte not in missing}
    vocabulary |= {spell(left + right): 256 + rank for rank, (left, right) in enumerate(merges)}
    backend = Tokenizer(BPE(vocabulary, [(spell(left), spell(right)) for left, right in merges]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(special, normalized=False) for special in specials])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def sentencepiece(pieces: list[str], merges: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """SentencePiece BPE as Llama 2 has it, with a space before every text: 256 byte pieces, ``pieces``, the merges."""
    vocabulary = {"<unk>": 0} | {f"<0x{byte:02X}>": 1 + byte for byte in range(256)}
    vocabulary |= {piece: 257 + index for index, piece in enumerate([*pieces, *map("".join, merges)])}
    backend = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


SOURCE = byte_level(WORDS, specials=("<s>", "</s>"))
SOURCE_VIEW = ByteView.from_tokenizer(SOURCE)
LLAMA_LIKE = sentencepiece(["▁", "A", "i", "n", "g", "é", "日"], [("i", "n"), ("in", "g"), ("▁", "A")])


def aligned(source: PreTrainedTokenizerFast, tokens: list[bytes | None]) -> VocabAlignment:
    target = ByteView.from_token_bytes(tokens)
    return align_vocabularies(ByteView.from_tokenizer(source), target, merges=merges_of(source))


def spelled(source: ByteView, alignment: VocabAlignment, token: int) -> list[bytes | None]:
    return [source.token_bytes(piece) for piece in alignment.pieces_of(token).tolist()]


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
    source = ByteView.from_tokenizer(LLAMA_LIKE)
    tokens = [b"A", b" A", b"\n", "é".encode(), b"\xe9", b"\xc3"]
    alignment = aligned(LLAMA_LIKE, tokens)
    strings = [LLAMA_LIKE.convert_ids_to_tokens(alignment.pieces_of(token).tolist()) for token in range(len(tokens))]
    assert strings == [["A"], ["▁A"], ["<0x0A>"], ["é"], ["<0xE9>"], ["<0xC3>"]]
    assert [spelled(source, alignment, token) for token in range(len(tokens))] == [[token] for token in tokens]


def test_the_space_that_a_sentencepiece_tokenizer_puts_first_is_no_part_of_a_decomposition() -> None:
    alignment = aligned(LLAMA_LIKE, [b"Aing", b"gA", "日é\n".encode(), b"\xe6" + "é".encode()])
    strings = [LLAMA_LIKE.convert_ids_to_tokens(alignment.pieces_of(token).tolist()) for token in range(4)]
    assert strings == [["A", "ing"], ["g", "A"], ["日", "é", "<0x0A>"], ["<0xE6>", "é"]]


def test_special_tokens_match_by_role_then_by_string_and_never_as_text() -> None:
    start, end = SOURCE.convert_tokens_to_ids(["<s>", "</s>"])
    target = byte_level([], specials=("<s>", "<|end|>", "<pad>"))
    other_start, other_end, pad = target.convert_tokens_to_ids(["<s>", "<|end|>", "<pad>"])
    alignment = align_vocabularies(
        SOURCE_VIEW,
        ByteView.from_tokenizer(target),
        source_roles={"eos": end},
        target_roles={"eos": other_end, "pad": pad},
    )
    assert alignment.match[[other_start, other_end, pad]].tolist() == [Match.STRING, Match.ROLE, Match.NONE]
    assert alignment.pieces_of(other_start).tolist() == [start]
    assert alignment.pieces_of(other_end).tolist() == [end]


def test_a_role_goes_before_a_string_and_the_first_of_several_roles_decides() -> None:
    start, end = SOURCE.convert_tokens_to_ids(["<s>", "</s>"])
    target = byte_level([], specials=("<s>",))
    (only,) = target.convert_tokens_to_ids(["<s>"])
    alignment = align_vocabularies(
        SOURCE_VIEW,
        ByteView.from_tokenizer(target),
        source_roles={"bos": start, "eos": end},
        target_roles={"eos": only, "bos": only},
    )
    assert alignment.pieces_of(only).tolist() == [end]


def test_text_that_is_spelled_like_a_special_token_is_text() -> None:
    alignment = aligned(SOURCE, [b"<s>"])
    assert alignment.match.tolist() == [Match.PIECES]
    assert spelled(SOURCE_VIEW, alignment, 0) == [b"<", b"s", b">"]


def test_gaps_in_the_target_ids_have_no_counterpart_and_are_no_tokens() -> None:
    target = ByteView.from_tokenizer(byte_level([], missing=b"ab"))
    alignment = align_vocabularies(SOURCE_VIEW, target)
    assert alignment.match[[ord("a"), ord("b"), ord("c")]].tolist() == [Match.NONE, Match.NONE, Match.BYTES]
    report = describe(alignment, SOURCE_VIEW, target)
    assert (report["target_tokens"], report["coverage"], report["unmatched_tokens"]) == (254, 1.0, {})


def test_a_vocabulary_aligned_with_itself_is_the_identity(tiny_tokenizer_dirs: tuple[Path, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dirs[1])
    view = ByteView.from_tokenizer(tokenizer)
    alignment = align_vocabularies(view, view, merges=merges_of(tokenizer))
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


@given(st.text(alphabet="thing é✜", min_size=1, max_size=12))
def test_merging_bytes_equals_the_tokenizer_itself_where_nothing_is_pre_tokenized(text: str) -> None:
    backend = Tokenizer.from_str(SOURCE.backend_tokenizer.to_str())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    cannot_encode = ByteView.from_token_bytes([SOURCE_VIEW.token_bytes(token) for token in range(len(SOURCE))])
    segmenter = ByteSegmenter(cannot_encode, merges_of(SOURCE))
    assert segmenter.segment(text.encode()) == backend.encode(text).ids


def test_the_report_counts_what_was_found() -> None:
    target = ByteView.from_token_bytes([b"the", b"then", b"things", None])
    report = describe(align_vocabularies(SOURCE_VIEW, target, merges=merges_of(SOURCE)), SOURCE_VIEW, target)
    assert report["matches"] == {"none": 1, "bytes": 1, "role": 0, "string": 0, "pieces": 2}
    assert report["mean_pieces"] == 2.5  # the+n, th+ing+s
    assert report["coverage"] == 0.75
    assert report["unmatched_tokens"] == {3: "<special_3>"}
    assert report["source_fingerprint"] == SOURCE_VIEW.fingerprint
    assert report["target_fingerprint"] == target.fingerprint


@pytest.mark.parametrize("single", [False, True])
def test_the_report_tells_whether_both_cut_numbers_alike(single: bool) -> None:
    numbers = byte_level([(b"1", b"0"), (b"0", b"0"), (b"9", b"9")])
    if single:
        numbers.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    target = ByteView.from_tokenizer(numbers)
    report = describe(align_vocabularies(SOURCE_VIEW, target), SOURCE_VIEW, target)
    assert report["digit_scheme"]["source"] == "single"
    assert report["digit_schemes_clash"] is not single


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


@pytest.mark.demo
def test_smollm2_and_gpt2_share_the_tokens_that_are_known_to_be_shared(
    smollm2_dir: Path, gpt2_tokenizer_dir: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    source, target = ByteView.from_tokenizer(tokenizer), ByteView.from_tokenizer(gpt2_tokenizer_dir)
    alignment = align_vocabularies(source, target, merges=merges_of(tokenizer))
    assert int(alignment.copied.sum()) == 36_961  # data.md §4, <|endoftext|> among them
    assert np.flatnonzero(alignment.match == Match.STRING).tolist() == [50_256]

    cannot_encode = ByteView.from_token_bytes([source.token_bytes(token) for token in range(source.vocab_size)])
    merging = ByteSegmenter(cannot_encode, merges_of(tokenizer))
    decomposed = np.flatnonzero(alignment.match == Match.PIECES)
    assert len(decomposed) == 13_275
    for token in decomposed.tolist():
        pieces = alignment.pieces_of(token).tolist()
        assert b"".join(source.token_bytes(piece) or b"" for piece in pieces) == target.token_bytes(token)
        assert merging.segment(target.token_bytes(token)) == pieces
    unmatched = np.flatnonzero(alignment.match == Match.NONE).tolist()
    assert len(unmatched) == 21
    assert all(len(target.token_bytes(token) or b"") == 1 for token in unmatched)  # bytes that SmolLM2 lacks
