"""Token flags against a naive reading of each token, and on real vocabularies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vocab_toys import LLAMA_LIKE, LLAMA_LIKE_VIEW, byte_level

from alignment.byte_view import ByteView
from alignment.token_flags import token_flags


def flagged(tokens: list[bytes | None]) -> dict[str, list[int]]:
    masks = token_flags(ByteView.from_token_bytes(tokens)).masks()
    return {name: np.flatnonzero(mask).tolist() for name, mask in masks.items() if mask.any()}


def test_every_flag_on_a_token_that_has_it_and_on_one_that_nearly_has() -> None:
    tokens = [
        None,
        b" the",
        b"the",
        b"\xc3",
        b" 2024",
        b"7",
        b" 7a",
        b"  ",
        "\u3000".encode(),
        b"",
        b" ",
        b".",
        b" \xe2",
    ]
    assert flagged(tokens) == {
        "special": [0],
        "word_start": [1, 4, 6, 12],
        "continuation": [2, 3, 5],
        "partial_utf8": [3, 12],
        "digits": [4, 5],
        "whitespace": [7, 8, 10],
    }
    lengths = token_flags(ByteView.from_token_bytes(tokens)).digit_length
    assert lengths.tolist() == [0, 0, 0, 0, 4, 1, 0, 0, 0, 0, 0, 0, 0]


@given(
    st.lists(
        st.one_of(st.none(), st.binary(max_size=4), st.text(alphabet=" 0７\n\u2003aé", max_size=4).map(str.encode))
    )
)
def test_flags_are_what_python_says_of_each_token(tokens: list[bytes | None]) -> None:
    flags = token_flags(ByteView.from_token_bytes(tokens))
    for token, data in enumerate(tokens):
        try:
            text = (data or b"").decode()
        except UnicodeDecodeError:
            text = None
        assert flags.special[token] == (data is None)
        assert flags.partial_utf8[token] == (text is None)
        whitespace = text is not None and bool(text) and all(character in " \t\n\v\f\r\u2003" for character in text)
        if text is None or text.isascii() or whitespace:
            assert flags.whitespace[token] == whitespace
        number = (text or "").removeprefix(" ")
        assert flags.digit_length[token] == (len(number) if number.isascii() and number.isdigit() else 0)
        assert flags.word_start[token] == bool(data and data[:1] == b" " and not flags.whitespace[token])


def test_kinds_and_roles_are_flags() -> None:
    tokenizer = byte_level(
        [], specials=("<s>", "<|reserved_special_token_3|>", "<SPECIAL_20>"), added=("<tool>", "[unused7]")
    )
    view = ByteView.from_tokenizer(tokenizer)
    masks = token_flags(view, {"bos": 256}).masks()
    found = {name: (np.flatnonzero(mask[256:]) + 256).tolist() for name, mask in masks.items() if mask[256:].any()}
    assert found == {"special": [256, 257, 258], "has_role": [256], "added": [259, 260], "reserved": [257, 258, 260]}
    assert np.flatnonzero(token_flags(LLAMA_LIKE_VIEW).byte_fallback).tolist() == list(range(1, 257))
    assert LLAMA_LIKE.convert_ids_to_tokens(1) == "<0x00>"


@pytest.mark.parametrize(
    "text", ["unused", "<unusual>", "(reserved)", "[reserve]", "<special>", "reserved>", "a[unused1]"]
)
def test_ordinary_words_are_not_reserved(text: str) -> None:
    assert "reserved" not in flagged([text.encode()])


def test_ids_that_do_not_exist_have_no_flag() -> None:
    view = ByteView.from_tokenizer(byte_level([], missing=b"a "))
    assert not any(mask[[ord("a"), ord(" ")]].any() for mask in token_flags(view).masks().values())


@pytest.mark.demo
def test_the_flags_of_gpt2(gpt2_tokenizer_dir: Path) -> None:
    view = ByteView.from_tokenizer(gpt2_tokenizer_dir)
    flags = token_flags(view)
    tokens = [view.token_bytes(token) or b"" for token in range(view.vocab_size)]
    assert int(flags.special.sum()) == 1
    assert not flags.reserved.any()
    assert flags.digit_length.max() == max(len(token.strip()) for token in tokens if token.strip().isdigit())
    assert int((flags.digit_length > 0).sum()) == sum(token.strip(b" ").isdigit() for token in tokens)
    assert int(flags.partial_utf8.sum()) == sum(token.decode(errors="ignore").encode() != token for token in tokens)
