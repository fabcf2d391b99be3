"""Which tokens can be split and how, against worked splits, for every family of tokenizers."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
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
    assert table.inside_character.tolist() == [True, False, False]
    assert table.left_bytes.tolist() == [1, 2, 1]


def test_cuts_inside_characters_can_be_left_out() -> None:
    tokens = ["é".encode()[:1], "é".encode()[1:], "é".encode(), b"a", "éa".encode()]
    table = SplitTable.from_view(ByteView.from_token_bytes(tokens), cuts_inside_characters=False)
    assert table.splits(2) == []
    assert table.splits(4) == [(2, 3)]
    assert table.splittable.tolist() == [False, False, False, False, True]


@pytest.mark.parametrize("pairs", [False, True])
def test_byte_fallback_pairs_are_off_unless_asked_for(pairs: bool) -> None:
    """A character of two bytes becomes its two byte pieces; three bytes make no pair."""
    entries = ["<unk>", "<0xC3>", "<0xA9>", "<0xE6>", "<0x9D>", "<0xB1>", "é", "東", "a", "éa"]
    model = models.BPE({entry: index for index, entry in enumerate(entries)}, [], byte_fallback=True, unk_token="<unk>")
    backend = Tokenizer(model)
    backend.decoder = decoders.Sequence([decoders.ByteFallback()])
    view = ByteView.from_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"))
    table = SplitTable.from_view(view, byte_fallback_pairs=pairs)
    assert table.splits(entries.index("é")) == ([(1, 2)] if pairs else [])
    assert table.splits(entries.index("東")) == []
    assert table.splits(entries.index("éa")) == [(6, 8)]
    assert table.splits(0) == []


def test_wordpiece_halves_keep_their_place_in_the_word() -> None:
    entries = ["[UNK]", "play", "##play", "##ing", "ing", "playing", "##playing", "##in", "##g", "!", "##!", "##g!"]
    backend = Tokenizer(models.WordPiece({entry: index for index, entry in enumerate(entries)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    view = ByteView.from_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]"))
    table = SplitTable.from_view(view)
    splits = {entries[t]: [(entries[a], entries[b]) for a, b in table.splits(t)] for t in range(len(entries))}
    assert splits["playing"] == [("play", "##ing")]
    assert splits["##playing"] == [("##play", "##ing")]
    assert splits["##ing"] == [("##in", "##g")]
    assert splits["##g!"] == [("##g", "##!")]
    assert splits["ing"] == splits["play"] == splits["[UNK]"] == []


def test_only_a_second_half_may_end_a_word() -> None:
    entries = ["a", "b", "a</w>", "b</w>", "ab", "ab</w>"]
    merges = [("a", "b"), ("a", "b</w>")]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    backend = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.BPEDecoder(suffix="</w>")
    view = ByteView.from_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))
    table = SplitTable.from_view(view)
    assert table.splits(entries.index("ab")) == [(0, 1)]
    assert table.splits(entries.index("ab</w>")) == [(0, 3)]


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_sentencepiece_control_and_byte_pieces_take_no_part(model_type: str, tmp_path: Path) -> None:
    from stages.conversion.sentencepiece_model import tokenizer_from_sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat with the hat"] * 20),
        model_writer=model,
        vocab_size=300,
        hard_vocab_limit=False,
        model_type=model_type,
        byte_fallback=True,
        control_symbols=["the cat"],
        user_defined_symbols=["hat"],
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    view = ByteView.from_tokenizer(tokenizer_from_sentencepiece(tmp_path / "tokenizer.model"))
    table = SplitTable.from_view(view)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    normal = {
        token
        for token in range(processor.get_piece_size())
        if not (processor.is_control(token) or processor.is_unknown(token) or processor.is_byte(token))
        and processor.id_to_piece(token) != "hat"
    }
    pieces = {processor.id_to_piece(token): token for token in normal}
    expected = {
        token: [
            (pieces[piece[:cut]], pieces[piece[cut:]])
            for cut in range(1, len(piece))
            if piece[:cut] in pieces and piece[cut:] in pieces
        ]
        for piece, token in pieces.items()
    }
    found = {token: table.splits(token) for token in range(view.vocab_size)}
    assert {token: splits for token, splits in found.items() if splits} == {
        token: splits for token, splits in expected.items() if splits
    }
    assert any(expected.values())


def test_byte_pieces_of_a_sentencepiece_model_in_python_take_no_part(tmp_path: Path) -> None:
    from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat with the hat"] * 20),
        model_writer=model,
        vocab_size=300,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    files = {"vocab_file": str(tmp_path / "tokenizer.model")}
    tokenizer = SentencePieceBackend(**files, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    table = SplitTable.from_view(ByteView.from_tokenizer(tokenizer))
    names = tokenizer.convert_ids_to_tokens
    (whole,) = tokenizer.convert_tokens_to_ids(["th"])
    assert [(names(left), names(right)) for left, right in table.splits(whole)] == [("t", "h")]


def test_a_table_read_back_equals_a_fresh_one_and_tokenizers_share_none(tmp_path: Path) -> None:
    letters, greeting = (ByteView.from_token_bytes([t.encode() for t in tokens]) for tokens in (LETTERS, GREETING))
    fresh = SplitTable.from_view(letters)
    made = SplitTable.from_view(letters, directory=tmp_path)
    (path,) = tmp_path.iterdir()
    before = path.stat().st_mtime_ns
    read = SplitTable.from_view(letters, directory=tmp_path)
    assert path.stat().st_mtime_ns == before
    for name in ("offsets", "left", "right", "left_bytes", "inside_character"):
        for table in (made, read):
            np.testing.assert_array_equal(getattr(table, name), getattr(fresh, name))
            assert getattr(table, name).dtype == getattr(fresh, name).dtype
    # The original's cache came back with keys of another type, and then nothing was ever split (stochastok.md §5).
    ids = np.array([LETTERS.index("cab")] * 40)
    assert (
        read.expand(ids, 0.5, rng=np.random.default_rng(1)).tolist()
        == fresh.expand(ids, 0.5, rng=np.random.default_rng(1)).tolist()
    )
    assert len(read.expand(ids, 0.5, rng=np.random.default_rng(1))) > 40

    other = SplitTable.from_view(greeting, directory=tmp_path)
    assert len(other.offsets) == len(GREETING) + 1
    SplitTable.from_view(letters, cuts_inside_characters=False, directory=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


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
