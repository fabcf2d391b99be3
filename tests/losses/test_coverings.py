from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignment.prefix_tree import prefix_tree
from losses.coverings import (
    Contexts,
    SymbolTree,
    find_coverings,
    log_probs_before,
    next_symbols,
    row_blocks,
    rows_per_block,
)

NUM_SYMBOLS = 3
UNKNOWN = NUM_SYMBOLS
SPELLINGS = st.lists(st.lists(st.integers(0, NUM_SYMBOLS - 1), max_size=4).map(tuple), min_size=1, max_size=10)


@dataclass(frozen=True)
class Rows:
    """Whole distributions, as a teacher gives them."""

    logp: Tensor
    complete = True

    @property
    def vocab_size(self) -> int:
        return self.logp.shape[1]

    def __len__(self) -> int:
        return len(self.logp)

    def at(self, rows: Tensor) -> Self:
        return Rows(self.logp[rows])

    def log_probs(self, rows: slice) -> Tensor:
        return self.logp[rows]


def symbol_tree(spellings: list[tuple[int, ...]]) -> SymbolTree:
    flat = np.array([*itertools.chain.from_iterable(spellings)], dtype=np.int64)
    tree = prefix_tree(flat, np.cumsum([0, *map(len, spellings)]))
    return SymbolTree(**{name: torch.from_numpy(array) for name, array in tree.arrays().items()})


@st.composite
def texts(draw) -> tuple[list[tuple[int, ...]], list[list[int]], Rows]:
    """A vocabulary, the realised tokens of some texts, and what a model says before each of them."""
    spellings = [*((symbol,) for symbol in range(NUM_SYMBOLS)), *draw(SPELLINGS)]
    spelled = st.sampled_from([token for token, symbols in enumerate(spellings) if symbols])
    tokens = draw(st.lists(st.lists(spelled, min_size=1, max_size=6), min_size=1, max_size=3))
    seed = draw(st.integers(0, 1000))
    logits = torch.randn(
        sum(map(len, tokens)), len(spellings), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return spellings, tokens, Rows((3 * logits).log_softmax(-1))


def contexts_of(spellings: list[tuple[int, ...]], tokens: list[list[int]], model: Rows) -> tuple[Tensor, Contexts]:
    symbols, fields = [], []
    row = 0
    for text in tokens:
        end = len(symbols) + sum(len(spellings[token]) for token in text)
        log_prob = 0.0
        for token in text:
            fields.append((len(symbols), end, row, token, log_prob))
            symbols += spellings[token]
            log_prob += float(model.logp[row, token])
            row += 1
    first, limit, rows, ids, log_probs = zip(*fields, strict=True)
    columns = (torch.tensor(column) for column in (first, limit, rows, ids))
    return torch.tensor(symbols), Contexts(*columns, torch.tensor(log_probs, dtype=torch.float64))


def literal(
    spellings: list[tuple[int, ...]], tokens: list[list[int]], model: Rows
) -> tuple[list[dict[int, float]], list[float], list[float]]:
    """The masses of every row, by trying every token at every realised beginning of the same text."""
    masses, ended, unspelled = [], [], []
    row_of_text = 0
    for text in tokens:
        spelled = [symbol for token in text for symbol in spellings[token]]
        for place in range(len(spelled)):
            mass = dict.fromkeys(range(NUM_SYMBOLS), 0.0)
            over, without, begin, before = 0.0, 0.0, 0, 1.0
            for index, realised in enumerate(text):
                if begin > place:
                    break
                done = tuple(spelled[begin:place])
                probs = model.logp[row_of_text + index].exp().tolist()
                for token, symbols in enumerate(spellings):
                    if not symbols:
                        without += before * probs[token] if not done else 0
                    elif symbols == done:
                        over += before * probs[token] if token != realised else 0
                    elif symbols[: len(done)] == done:
                        mass[symbols[len(done)]] += before * probs[token]
                begin += len(spellings[realised])
                before *= probs[realised]
            masses.append(mass)
            ended.append(over)
            unspelled.append(without)
        row_of_text += len(text)
    return masses, ended, unspelled


@settings(deadline=None, max_examples=60)
@given(texts(), st.integers(1, 4))
def test_masses_are_those_of_trying_every_token_everywhere(example, block):
    spellings, tokens, model = example
    tree = symbol_tree(spellings)
    symbols, contexts = contexts_of(spellings, tokens, model)
    coverings = find_coverings(tree, symbols, contexts)
    masses, ended, unspelled = literal(*example)
    for start in range(0, len(symbols), block):
        rows = slice(start, min(start + block, len(symbols)))
        found = next_symbols(model.at(contexts.row), tree, contexts, coverings, rows, NUM_SYMBOLS)
        total = found.mass.sum(1) + found.ended + found.unspelled
        for place, row in enumerate(range(rows.start, rows.stop)):
            expected = torch.tensor([*masses[row].values(), ended[row], unspelled[row]], dtype=torch.float64)
            shares = torch.stack([*found.mass[place], found.ended[place], found.unspelled[place]]) / total[place]
            torch.testing.assert_close(shares, expected / expected.sum(), rtol=1e-9, atol=1e-12)


def test_chosen_rows_are_numbered_anew():
    spellings = [(0,), (1,), (0, 1), (0, 1, 1)]
    tokens = [[0, 1, 1, 2], [3, 0]]
    model = Rows(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double().log_softmax(-1))
    symbols, contexts = contexts_of(spellings, tokens, model)
    tree = symbol_tree(spellings)
    coverings = find_coverings(tree, symbols, contexts)
    whole = next_symbols(model, tree, contexts, coverings, slice(0, len(symbols)), 2)
    wanted = torch.tensor([1, 4, 7])
    chosen = next_symbols(model, tree, contexts, coverings.at(wanted), slice(0, 3), 2)
    torch.testing.assert_close(chosen.mass / chosen.mass.sum(1, keepdim=True), _rows_of(whole.mass, wanted))


def _rows_of(mass: Tensor, rows: Tensor) -> Tensor:
    return (mass / mass.sum(1, keepdim=True))[rows]


def test_an_unknown_symbol_ends_every_covering():
    tree = symbol_tree([(0,), (0, 1), (1,)])
    contexts = Contexts(*(torch.tensor([value]) for value in (0, 3, 0, 1)), torch.zeros(1, dtype=torch.float64))
    coverings = find_coverings(tree, torch.tensor([0, UNKNOWN, 1]), contexts)
    assert coverings.row.tolist() == [0, 1]


def test_very_unlikely_tokens_leave_no_mass_undefined():
    """Coverings whose realised tokens differ by hundreds of nats are weighed without overflow."""
    spellings = [(0,), (1,), (0, 1, 1)]
    logp = torch.tensor([[-300.0, -300.0, 0.0], [-1.0, -0.5, -3.0]], dtype=torch.float64).log_softmax(-1)
    symbols, contexts = contexts_of(spellings, [[0, 1]], Rows(logp))
    tree = symbol_tree(spellings)
    found = next_symbols(Rows(logp), tree, contexts, find_coverings(tree, symbols, contexts), slice(0, 2), 2)
    shares = found.mass[1] / (found.mass[1].sum() + found.ended[1])
    torch.testing.assert_close(shares, torch.tensor([0.0, 1.0], dtype=torch.float64))


def test_blocks_cover_all_rows_and_shrink_with_the_vocabulary():
    assert rows_per_block(10**12) == 1
    assert rows_per_block(32_000) > rows_per_block(256_000)
    blocks = list(row_blocks(10, rows_per_block(1) * 10**9))
    assert [row for block in blocks for row in range(block.start, block.stop)] == list(range(10))


def test_log_probabilities_before_a_token_are_those_of_the_scored_ones():
    label = torch.tensor([[5.0, -1.0, -2.0, -4.0]])
    scored = torch.tensor([[False, True, False, True]])
    assert log_probs_before(label, scored).tolist() == [[0.0, 0.0, -1.0, -1.0]]
