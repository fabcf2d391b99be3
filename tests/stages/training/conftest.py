"""Aligners of the two tiny tokenizers, for texts and for conversations."""

from __future__ import annotations

import pytest

from stages.training.data.aligner import DocumentAligner


@pytest.fixture(scope="module")
def aligner(tiny_tokenizer_dirs) -> DocumentAligner:
    return DocumentAligner(*tiny_tokenizer_dirs, window_tokens=64)


@pytest.fixture(scope="module")
def chat_aligner(tiny_chat_dirs) -> DocumentAligner:
    return DocumentAligner(*tiny_chat_dirs, window_tokens=96)
