"""Surface forms: the source tokens through which a hypernetwork sees a token."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from alignment.byte_models import byte_model
from alignment.byte_view import ByteView
from alignment.initializers.surface_forms import aligned_forms, surface_forms
from alignment.segmentation import ByteSegmenter
from alignment.token_index import TokenIndex
from alignment.vocab import align_vocabularies

AB = ByteView.from_token_bytes([b"a", b"b", b"ab"])


def test_the_worked_example_of_the_specification() -> None:
    forms = surface_forms([b"ab", b"aba", b"ababa"], ByteSegmenter(TokenIndex(AB)), max_pieces=2)
    assert forms.tolist() == [[2, -1], [2, 0], [2, 2]]  # embedding_init.md §4.13


def test_a_token_that_the_source_cannot_spell_has_no_pieces() -> None:
    forms = surface_forms([b"c", b"", b"ba"], ByteSegmenter(TokenIndex(AB)), max_pieces=3)
    assert forms.tolist() == [[-1, -1], [-1, -1], [1, 0]]
    assert (surface_forms([b"c"], ByteSegmenter(TokenIndex(AB)), max_pieces=3) == -1).all()
    assert len(surface_forms([], ByteSegmenter(TokenIndex(AB)), max_pieces=3)) == 0


@pytest.fixture(scope="module")
def byte_level(tiny_tokenizer_dirs: tuple[Path, Path]) -> tuple[ByteView, ByteSegmenter]:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dirs[0])
    view = ByteView.from_tokenizer(tokenizer)
    return view, ByteSegmenter(TokenIndex(view), byte_model(tokenizer, view))


def test_every_byte_is_one_piece_of_a_byte_level_tokenizer(byte_level: tuple[ByteView, ByteSegmenter]) -> None:
    view, segmenter = byte_level
    every_byte = [bytes([byte]) for byte in range(256)]
    forms = surface_forms(every_byte, segmenter, max_pieces=4)
    assert (forms[:, 1:] == -1).all()
    assert [view.token_bytes(piece) for piece in forms[:, 0].tolist()] == every_byte


@given(tokens=st.lists(st.binary(min_size=1, max_size=12), max_size=8), width=st.integers(1, 6))
def test_pieces_spell_the_beginning_of_their_token(
    byte_level: tuple[ByteView, ByteSegmenter], tokens: list[bytes], width: int
) -> None:
    view, segmenter = byte_level
    for token, form in zip(tokens, surface_forms(tokens, segmenter, width), strict=True):
        pieces = form[form >= 0].tolist()
        assert pieces
        assert (form[len(pieces) :] == -1).all()
        spelled = b"".join(view.token_bytes(piece) or b"" for piece in pieces)
        assert token.startswith(spelled)
        assert spelled == token or len(pieces) == width


def test_forms_of_aligned_tokens_are_those_of_their_bytes() -> None:
    target = ByteView.from_token_bytes([b"ba", b"ababa", None, b"b", b"aab", b"x"])
    alignment = align_vocabularies(AB, target)
    ids = torch.tensor([4, 0, 3, 5, 2, 1, 0])
    expected = surface_forms(
        [target.token_bytes(token) or b"" for token in ids.tolist()], ByteSegmenter(TokenIndex(AB)), 2
    )
    assert aligned_forms(alignment, ids, 2).tolist() == expected.tolist()
    assert len(aligned_forms(alignment, ids[:0], 2)) == 0
