"""How the bytes of a teacher's tokens are cut into a student's tokens: the table behind byte-exact targets.

An *entry* is a teacher token with its first d bytes removed, d from 0 to the token's length; entry
``teacher_entry[v] + d`` in the flat arrays. Their number is that of the vocabulary's bytes, about two million for the
largest ones.

Legend: E entries, V_T and V_S vocabularies, M_T and M_S nodes of the two tries (``alignment.byte_trie``).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from alignment.byte_trie import ByteTrie
from alignment.byte_view import ByteView
from alignment.table_cache import Arrays, cached_arrays

_BLANK = b" \t"


def prefix_table(teacher: ByteView, student: ByteView) -> dict[str, np.ndarray]:
    """Build the table of a pair of vocabularies.

    Returns:
        ``teacher_entry`` int64 [V_T]: the first entry of every teacher token.
        ``teacher_length`` int32 [V_T], ``student_length`` int32 [V_S]: bytes; 0 for special tokens.
        ``entry_byte`` uint8 [E]: the first byte that is left; 0 where none is.
        ``entry_prefix`` int32 [E]: the node, in the teacher's trie, of the d bytes that were removed.
        ``entry_piece`` int32 [E]: the longest student token that what is left begins with; -1 for none.
        ``entry_completion`` int32 [E]: the node of what is left in the student's trie; -1 if no token begins so.
        ``teacher_order`` int32 [tokens with bytes]: teacher tokens in byte order.
        ``teacher_start``, ``teacher_end`` int32 [M_T]: tokens that begin with a node's bytes, as range of the order.
        ``student_order``, ``student_start``, ``student_end``: the same of the student.
        ``student_key`` int64 [M_S - 1], ``student_token`` int32 [M_S]: the student's trie, to read bytes with.
        ``student_cell`` int32 [V_S]: of the tokens with the same bytes the one that encoding uses; the token itself for
        special tokens.
        ``student_shorter`` int32 [V_S]: the longest token that is a proper prefix of a token; -1 for none.
        ``student_prefix`` int32 [V_S]: the node of a student token's bytes in the teacher's trie; -1 for none.
        ``student_blank`` bool [V_S]: tokens of spaces and tabs alone.
    """
    theirs, ours = ByteTrie.from_view(teacher), ByteTrie.from_view(student)
    return (
        _teacher_arrays(teacher, theirs) | _student_arrays(student, ours, theirs) | _entry_arrays(teacher, theirs, ours)
    )


def cached_prefix_table(teacher: ByteView, student: ByteView, directory: Path | None) -> Arrays:
    """``prefix_table``, read from ``directory`` if it was built before."""
    fingerprint = hashlib.sha256(f"{teacher.fingerprint} {student.fingerprint}".encode()).hexdigest()
    return cached_arrays(directory, "prefix-1", fingerprint, lambda: prefix_table(teacher, student))


def _entry_arrays(teacher: ByteView, theirs: ByteTrie, ours: ByteTrie) -> dict[str, np.ndarray]:
    pool, starts, lengths = _bytes_of(teacher)
    first = _first_entries(lengths)
    removed = np.arange(first[-1] + lengths[-1] + 1) - np.repeat(first, lengths + 1)
    start, end = np.repeat(starts, lengths + 1) + removed, np.repeat(starts + lengths, lengths + 1)
    node, matched = ours.walk(pool, start, end)
    return {
        "entry_byte": np.append(pool, 0)[np.where(start < end, start, -1)].astype(np.uint8),
        "entry_prefix": _prefix_nodes(theirs, first, lengths),
        "entry_piece": ours.longest[node],
        "entry_completion": np.where(matched == end - start, node, -1).astype(np.int32),
    }


def _teacher_arrays(teacher: ByteView, theirs: ByteTrie) -> dict[str, np.ndarray]:
    return {
        "teacher_entry": _first_entries(teacher.byte_lengths.astype(np.int64)),
        "teacher_length": teacher.byte_lengths,
        "teacher_order": theirs.order,
        "teacher_start": theirs.start,
        "teacher_end": theirs.end,
    }


def _student_arrays(student: ByteView, ours: ByteTrie, theirs: ByteTrie) -> dict[str, np.ndarray]:
    pool, starts, lengths = _bytes_of(student)
    node, matched = theirs.walk(pool, starts, starts + lengths)
    has_bytes = lengths > 0
    return {
        "student_length": student.byte_lengths,
        "student_order": ours.order,
        "student_start": ours.start,
        "student_end": ours.end,
        "student_key": ours.key,
        "student_token": ours.token,
        "student_cell": np.where(has_bytes, ours.token[ours.node], np.arange(len(lengths), dtype=np.int32)),
        "student_shorter": np.where(has_bytes, ours.longest[ours.parent()[ours.node]], -1).astype(np.int32),
        "student_prefix": np.where(has_bytes & (matched == lengths), node, -1).astype(np.int32),
        "student_blank": np.array([_is_blank(student.token_bytes(token)) for token in range(student.vocab_size)]),
    }


def _bytes_of(view: ByteView) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bytes of all tokens one after the other; where each begins, and how many it has."""
    lengths = view.byte_lengths.astype(np.int64)
    pool = np.frombuffer(b"".join(view.token_bytes(token) or b"" for token in range(view.vocab_size)), np.uint8)
    return pool, np.cumsum(lengths) - lengths, lengths


def _first_entries(lengths: np.ndarray) -> np.ndarray:
    """A token of n bytes has n + 1 entries: with none of its bytes removed, up to all of them."""
    return np.cumsum(lengths + 1) - (lengths + 1)


def _prefix_nodes(trie: ByteTrie, first: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The node of every entry's removed bytes: from each token's own node upwards."""
    nodes = np.zeros(first[-1] + lengths[-1] + 1, dtype=np.int32)
    parent, node, tokens = trie.parent(), trie.node, np.arange(len(lengths))
    for kept in range(int(lengths.max(initial=0)) + 1):
        nodes[first[tokens] + lengths[tokens] - kept] = node
        longer = lengths[tokens] > kept
        tokens, node = tokens[longer], parent[node[longer]]
    return nodes


def _is_blank(token: bytes | None) -> bool:
    return bool(token) and not token.strip(_BLANK)
