from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from alignment.byte_view import ByteView
from alignment.prefix_tree import PrefixTree, byte_tree, prefix_tree

SEQUENCES = st.lists(st.lists(st.integers(0, 3) | st.just(70_000), max_size=5), max_size=12)


def tree_of(sequences: list[list[int]]) -> PrefixTree:
    flat = np.array([*itertools.chain.from_iterable(sequences)], dtype=np.int64)
    return prefix_tree(flat, np.cumsum([0, *map(len, sequences)]))


def prefix_of(tree: PrefixTree, node: int) -> tuple[int, ...]:
    return () if node == 0 else (*prefix_of(tree, int(tree.parents[node])), int(tree.symbols[node]))


@given(SEQUENCES)
def test_every_prefix_is_one_node_whose_range_holds_the_tokens_that_begin_with_it(sequences):
    tree = tree_of(sequences)
    prefixes = [prefix_of(tree, node) for node in range(len(tree.starts))]
    expected = {tuple(sequence[:end]) for sequence in sequences for end in range(len(sequence) + 1)} | {()}
    assert sorted(prefixes) == sorted(expected)
    for prefix, start, inner, end in zip(prefixes, tree.starts, tree.inner, tree.ends, strict=True):
        beginning = {v for v, each in enumerate(sequences) if each and tuple(each[: len(prefix)]) == prefix}
        assert set(tree.tokens[start:end].tolist()) == beginning
        assert set(tree.tokens[start:inner].tolist()) == {v for v in beginning if tuple(sequences[v]) == prefix}


@given(SEQUENCES)
def test_children_are_consecutive_and_ascend_by_symbol(sequences):
    tree = tree_of(sequences)
    edges = list(zip(tree.parents.tolist(), tree.symbols.tolist(), strict=True))
    assert edges == sorted(set(edges))


@given(SEQUENCES)
def test_a_token_knows_the_node_of_its_whole_sequence(sequences):
    tree = tree_of(sequences)
    assert [prefix_of(tree, node) for node in tree.whole.tolist()] == [tuple(sequence) for sequence in sequences]


def test_bytes_that_are_zero_or_repeated_count():
    view = ByteView.from_token_bytes([b"\0", b"\0\0", None, b"\xff", b"\0"])
    tree = byte_tree(view)
    assert tree.tokens.tolist() == [0, 4, 1, 3]
    assert tree.whole.tolist()[2] == 0
