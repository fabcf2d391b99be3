"""The tables of a pair of vocabularies, against their definition on lists of byte strings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocab_toys import LLAMA_LIKE_VIEW

from alignment.byte_trie import ByteTrie
from alignment.byte_view import ByteView
from alignment.prefix_table import cached_prefix_table, prefix_table
from alignment.token_table import TokenKind

TOKENS = st.lists(
    st.none() | st.text("ab\x00ÿ ", min_size=1, max_size=4).map(lambda s: s.encode("latin-1")), max_size=14
)


def longest(vocabulary: list[bytes | None], data: bytes, limit: int) -> int:
    """The first token with the most bytes, at most ``limit``, that ``data`` begins with; -1 for none."""
    fitting = [(-len(t), i) for i, t in enumerate(vocabulary) if t and len(t) <= limit and data.startswith(t)]
    return min(fitting)[1] if fitting else -1


def tokens_below(table: dict[str, np.ndarray], side: str, node: int) -> list[int]:
    start, end = (table[f"{side}_{edge}"][node] for edge in ("start", "end"))
    return sorted(table[f"{side}_order"][start:end].tolist())


def beginning_with(vocabulary: list[bytes | None], prefix: bytes) -> list[int]:
    return [i for i, t in enumerate(vocabulary) if t and t.startswith(prefix)]


@settings(max_examples=150, deadline=None)
@given(teacher=TOKENS.filter(len), student=TOKENS.filter(len))
def test_every_entry_is_as_defined(teacher, student):
    table = prefix_table(ByteView.from_token_bytes(teacher), ByteView.from_token_bytes(student))
    assert table["teacher_order"].tolist() == sorted(
        (i for i, t in enumerate(teacher) if t), key=lambda i: (teacher[i], i)
    )
    for token, data in enumerate(teacher):
        data = data or b""
        assert table["teacher_length"][token] == len(data)
        for depth in range(len(data) + 1):
            entry, left = table["teacher_entry"][token] + depth, data[depth:]
            assert table["entry_byte"][entry] == (left[0] if left else 0)
            assert tokens_below(table, "teacher", table["entry_prefix"][entry]) == beginning_with(teacher, data[:depth])
            assert table["entry_piece"][entry] == longest(student, left, len(left))
            node, completing = table["entry_completion"][entry], beginning_with(student, left)
            assert (tokens_below(table, "student", node) if node >= 0 else []) == completing


@settings(max_examples=150, deadline=None)
@given(teacher=TOKENS.filter(len), student=TOKENS.filter(len))
def test_every_student_token_is_as_defined(teacher, student):
    table = prefix_table(ByteView.from_token_bytes(teacher), ByteView.from_token_bytes(student))
    for token, data in enumerate(student):
        assert table["student_length"][token] == len(data or b"")
        assert table["student_cell"][token] == (student.index(data) if data else token)
        assert table["student_shorter"][token] == longest(student, data or b"", len(data or b"") - 1)
        assert table["student_blank"][token] == (data is not None and set(data) <= set(b" \t"))
        node, extending = table["student_prefix"][token], beginning_with(teacher, data) if data else []
        assert (tokens_below(table, "teacher", node) if node >= 0 else []) == extending


@settings(max_examples=100, deadline=None)
@given(tokens=TOKENS.filter(len), text=st.text("ab\x00ÿ ", max_size=8).map(lambda s: s.encode("latin-1")))
def test_a_walk_ends_at_the_longest_known_prefix(tokens, text):
    trie = ByteTrie.from_view(ByteView.from_token_bytes(tokens))
    node, depth = trie.walk(np.frombuffer(text, np.uint8), np.array([0]), np.array([len(text)]))
    known = [size for size in range(len(text) + 1) if size == 0 or beginning_with(tokens, text[:size])]
    assert depth[0] == max(known)
    exact = [i for i, t in enumerate(tokens) if t == text[: depth[0]]]
    assert trie.token[node[0]] == (exact[0] if exact else -1)
    assert trie.longest[node[0]] == longest(tokens, text, depth[0])


def test_of_tokens_with_the_same_bytes_the_one_that_encoding_uses_counts():
    """Byte-fallback tokens come first in the ids of SentencePiece vocabularies and are hardly ever used."""
    table = prefix_table(LLAMA_LIKE_VIEW, LLAMA_LIKE_VIEW)
    fallback = LLAMA_LIKE_VIEW.kinds == TokenKind.BYTE_FALLBACK
    twins = np.flatnonzero(table["student_cell"] != np.arange(LLAMA_LIKE_VIEW.vocab_size))
    assert len(twins) > 0
    assert fallback[twins].all()
    for token in twins.tolist():
        cell = int(table["student_cell"][token])
        assert LLAMA_LIKE_VIEW.token_bytes(token) == LLAMA_LIKE_VIEW.token_bytes(cell)
        assert not fallback[cell]


@pytest.mark.demo
def test_real_vocabularies_are_cut_as_their_bytes_say(gpt2_tokenizer_dir, smollm2_dir, tmp_path):
    views = ByteView.from_tokenizer(gpt2_tokenizer_dir), ByteView.from_tokenizer(smollm2_dir)
    table = cached_prefix_table(*views, tmp_path)
    known = {views[1].token_bytes(i) for i in range(views[1].vocab_size)}
    for token in np.random.default_rng(0).choice(views[0].vocab_size, 2_000, replace=False).tolist():
        data = views[0].token_bytes(token) or b""
        for depth in range(len(data) + 1):
            piece = int(table["entry_piece"][table["teacher_entry"][token] + depth])
            expected = next((data[depth:end] for end in range(len(data), depth, -1) if data[depth:end] in known), None)
            assert (None if piece < 0 else views[1].token_bytes(piece)) == expected
    again = cached_prefix_table(*views, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert all(np.array_equal(table[name], again[name]) for name in table)
