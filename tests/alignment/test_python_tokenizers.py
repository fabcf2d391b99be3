"""Tokenizers that run in Python: bytes, characters and SentencePiece, known by what they do and not by their names."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import NormalizedString, PreTokenizedString, Tokenizer, models, pre_tokenizers
from toy_tokenizers import SPACE, byte_level, fast
from transformers import BertGenerationTokenizer, ByT5Tokenizer, PreTrainedTokenizer

from alignment.byte_view import ByteView, InexactEncoding
from alignment.token_codecs import UnsupportedTokenizer, byte_alphabet
from alignment.token_table import TokenKind


class CharacterTokenizer(PreTrainedTokenizer):
    """One id for each character below U+3000; U+0000 is padding, as in CANINE."""

    def __init__(self, **options: object) -> None:
        super().__init__(pad_token="\x00", unk_token="\ufffd", **options)

    @property
    def vocab_size(self) -> int:
        return 0x3000

    def get_vocab(self) -> dict[str, int]:
        return {chr(code): code for code in range(self.vocab_size)} | self.added_tokens_encoder

    def _tokenize(self, text: str) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return ord(token) if ord(token) < self.vocab_size else self.unk_token_id

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index)


class ReversingTokenizer(CharacterTokenizer):
    """Its tokens are the text's characters from the last to the first."""

    def _tokenize(self, text: str) -> list[str]:
        return list(text[::-1])


class AlphabetTokenizer(CharacterTokenizer):
    """Its tokens are bytes in GPT-2's alphabet."""

    def _tokenize(self, text: str) -> list[str]:
        character = {byte: character for character, byte in byte_alphabet().items()}
        return [character[byte] for byte in text.encode()]


class MarkedSpaceTokenizer(CharacterTokenizer):
    """Its spaces are marks, and one stands before every text."""

    def _tokenize(self, text: str) -> list[str]:
        return [SPACE, *text.replace(" ", SPACE)]


BYTES = ByteView.from_tokenizer(ByT5Tokenizer())
CHARACTERS = ByteView.from_tokenizer(CharacterTokenizer())


@given(text=st.text(max_size=40))
@example(text="</s><pad>\x00\n東京 é")
def test_a_byte_tokenizer_is_exact(text: str) -> None:
    encoding = BYTES.encode(text)
    assert encoding.byte_ends.tolist() == list(range(1, len(text.encode()) + 1))
    assert b"".join(BYTES.token_bytes(index) or b"" for index in encoding.ids.tolist()) == text.encode()


def test_a_byte_tokenizer_says_so() -> None:
    assert BYTES.exact
    assert (BYTES.vocab_size, BYTES.digit_scheme, BYTES.prefix_ids) == (384, "single", [])
    assert BYTES.token_bytes(3) == b"\x00"
    assert BYTES.special_tokens[1] == "</s>"
    assert BYTES.kinds[3 + 255] == TokenKind.TEXT
    assert BYTES.kinds[383] == TokenKind.SPECIAL


@given(text=st.text(alphabet=st.characters(min_codepoint=1, max_codepoint=0x2FFF), max_size=40))
def test_characters_end_at_characters(text: str) -> None:
    encoding = CHARACTERS.encode(text)
    assert encoding.byte_ends.tolist() == [len(text[:end].encode()) for end in range(1, len(text) + 1)]


def test_characters_without_a_token_are_marked() -> None:
    text = "a東京b"
    encoding = CHARACTERS.encode(text, exact=False)
    assert encoding.byte_ends.tolist() == [1, 1, 7, 8]
    assert encoding.boundary.tolist() == [True, False, True, True]
    assert encoding.verbatim.tolist() == [True, False, False, True]
    with pytest.raises(InexactEncoding, match="from byte 1 of 8"):
        CHARACTERS.encode(text)


def test_a_character_that_is_a_special_token_is_named() -> None:
    assert not CHARACTERS.exact
    assert any(r"reads '\x00'" in reason and "special token" in reason for reason in CHARACTERS.inexact_reasons)
    assert CHARACTERS.encode("a\x00b", exact=False).verbatim.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("tokenizer", "text", "ends"),
    [
        (AlphabetTokenizer(), "é \n東", [1, 2, 3, 4, 5, 6, 7]),
        (MarkedSpaceTokenizer(), "é a", [0, 2, 3, 4]),
    ],
)
def test_the_rule_that_spells_the_most_is_found(tokenizer: PreTrainedTokenizer, text: str, ends: list[int]) -> None:
    assert ByteView.from_tokenizer(tokenizer).encode(text).byte_ends.tolist() == ends


def test_tokens_that_do_not_tell_their_bytes_are_refused() -> None:
    with pytest.raises(UnsupportedTokenizer, match="ReversingTokenizer has no `tokenizers` backend") as caught:
        ByteView.from_tokenizer(ReversingTokenizer())
    assert "Convert the tokenizer" in str(caught.value)


def test_fingerprints_follow_the_vocabulary() -> None:
    assert ByteView.from_tokenizer(ByT5Tokenizer()).fingerprint == BYTES.fingerprint
    assert ByteView.from_tokenizer(ByT5Tokenizer(extra_ids=5)).fingerprint != BYTES.fingerprint


def test_a_python_tokenizer_is_pickled_with_its_view() -> None:
    assert pickle.loads(pickle.dumps(BYTES)).encode("é").byte_ends.tolist() == [1, 2]


def test_rendered_specials_of_a_python_tokenizer_span_their_strings() -> None:
    encoding = BYTES.encode_rendered("é</s>a")
    assert encoding.byte_ends.tolist() == [1, 2, 6, 7]
    assert encoding.special.tolist() == [False, False, True, False]


def test_a_sentencepiece_tokenizer_in_python_uses_its_processor(tmp_path: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["hello world, this is a small text with few words"] * 9),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=9,
    )
    path = tmp_path / "spiece.model"
    path.write_bytes(model.getvalue())
    view = ByteView.from_tokenizer(BertGenerationTokenizer(str(path)))
    text = "hello  东京 ﬁt"
    encoding = view.encode(text, exact=False)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).encode(text, return_type="proto").pieces
    ends = [piece.end for piece in pieces]
    assert [end for end, known in zip(ends, encoding.boundary, strict=True) if known] == (
        encoding.byte_ends[encoding.boundary].tolist()
    )
    assert encoding.byte_ends[-1] == len(text.encode())
    assert not encoding.exact


class KeepingPreTokenizer:
    """A pre-tokenizer in Python, which no tokenizer.json can hold."""

    def split(self, index: int, text: NormalizedString) -> list[NormalizedString]:
        return [text]

    def pre_tokenize(self, text: PreTokenizedString) -> None:
        text.split(self.split)


def test_a_pipeline_with_python_inside_is_refused() -> None:
    tokenizer = fast(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(KeepingPreTokenizer())
    with pytest.raises(UnsupportedTokenizer, match="has a part written in Python"):
        ByteView.from_tokenizer(tokenizer)


def test_code_that_comes_with_a_tokenizer_is_not_run_unasked(tmp_path: Path) -> None:
    fast(byte_level()).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    marker = tmp_path / "was-run"
    (tmp_path / "own_code.py").write_text(f"open({str(marker)!r}, 'w')\nclass OwnTokenizer: pass\n")
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own_code.OwnTokenizer", null]}}'
    )
    with pytest.raises(UnsupportedTokenizer, match="trust_remote_code: true"):
        ByteView.from_tokenizer(tmp_path)
    assert not marker.exists()
