"""The targets of likelihood scoring and of byte heads, where the teacher is an ideal model of known texts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import pytest
import torch
from ideal_models import MarkovTexts, TokenChain, byte_pair_encoding, three_letters, worked_example
from torch import Tensor

from alignment.byte_models import ByteModel
from alignment.byte_view import ByteView
from alignment.cover_encodings import CoverEncodings, decomposition_tree
from alignment.prefix_tree import PrefixTree, byte_tree
from losses.byte_level import StudentBytes, next_byte_targets, teacher_contexts, text_bytes
from losses.coverings import SymbolTree, next_symbols
from losses.likelihood_scoring import scored_student_rows
from losses.symbol_targets import SymbolTargets, symbol_targets

MERGES = ["b+c", "a+b", "ab+a", "a+bc", "c+c", "bc+a"]


@dataclass(frozen=True)
class Side:
    """One text behind a position that nothing predicts."""

    ids: Tensor
    chunk: Tensor
    scored: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class Ideal:
    """The ideal model's distributions after each of a text's tokens."""

    logp: Tensor
    complete = True

    @property
    def vocab_size(self) -> int:
        return self.logp.shape[1]

    def __len__(self) -> int:
        return len(self.logp)

    def at(self, rows: Tensor) -> Self:
        return Ideal(self.logp[rows])

    def log_probs(self, rows: slice) -> Tensor:
        return self.logp[rows]


def sides(text: str, *tokenizers: tuple[ByteView, ByteModel]) -> tuple[list[Side], int]:
    """The text in several tokenizations, chunk by chunk."""
    ids = [encode(text.encode()) for _, encode in tokenizers]
    lengths = [[int(view.byte_lengths[token]) for token in row] for (view, _), row in zip(tokenizers, ids, strict=True)]
    ends = [torch.tensor(row).cumsum(0) for row in lengths]
    common = sorted(set(ends[0].tolist()).intersection(*(end.tolist() for end in ends[1:])))
    found = []
    for row, length, end in zip(ids, lengths, ends, strict=True):
        chunk = torch.searchsorted(torch.tensor(common), end)
        padded = [
            torch.cat([torch.tensor([fill]), torch.as_tensor(x)]) for fill, x in ((0, row), (-1, chunk), (0, length))
        ]
        scored = padded[1] >= 0
        found.append(Side(padded[0][None], padded[1][None], scored[None], padded[2][None]))
    return found, len(common)


def ideal(chain: TokenChain, tokens: list[int]) -> tuple[Ideal, Tensor]:
    """The distributions before each token, and the log-probability of the tokens themselves: [1, T]."""
    rows = [chain.log_probs(tuple(tokens[:end])) for end in range(len(tokens))]
    label = [0.0, *(row[token] for row, token in zip(rows, tokens, strict=True))]
    logp = torch.tensor([*rows, [-math.inf] * chain.vocab_size], dtype=torch.float64)
    return Ideal(logp), torch.tensor([label], dtype=torch.float64)


def torch_tree(tree: PrefixTree) -> SymbolTree:
    return SymbolTree(**{name: torch.from_numpy(array) for name, array in tree.arrays().items()})


@dataclass(frozen=True)
class Pair:
    """A teacher with all merges and a student with the first ones, on the same texts."""

    texts: MarkovTexts
    teacher: tuple[ByteView, ByteModel]
    student: tuple[ByteView, ByteModel]
    chain: TokenChain
    exact: TokenChain
    covers: CoverEncodings

    def targets(self, text: str) -> SymbolTargets:
        """For every student token of the text."""
        (teacher, student), chunks = sides(text, self.teacher, self.student)
        predictions, label = ideal(self.chain, teacher.ids[0, 1:].tolist())
        tree = torch_tree(
            decomposition_tree(self.student[0], self.teacher[0], self.student[1], student_roles={}, teacher_roles={})
        )
        rows = scored_student_rows(teacher, student, chunks, tree, label)
        assert rows.student.tolist() == list(range(student.ids.shape[1] - 1))
        whole = slice(0, len(rows.student))
        size = self.student[0].vocab_size
        teacher_rows = predictions.at(rows.contexts.row)
        masses = next_symbols(teacher_rows, tree, rows.contexts, rows.coverings, whole, size)
        return symbol_targets(masses, torch.float64)


def make_pair(texts: MarkovTexts, alphabet: str, merges: list[str], kept: int) -> Pair:
    teacher, student = (byte_pair_encoding(alphabet, some) for some in (merges, merges[:kept]))
    covers = CoverEncodings(
        {token: student[1](teacher[0].token_bytes(token)) for token in range(teacher[0].vocab_size)},
        lambda symbols: teacher[1](b"".join(student[0].token_bytes(symbol) for symbol in symbols)),
    )
    chains = (texts.through(encode, view.vocab_size) for view, encode in (teacher, student))
    return Pair(texts, teacher, student, *chains, covers)


def test_the_worked_example_has_no_tokenization_bias():
    pair = make_pair(worked_example(6), "ab", ["a+b"], 0)
    after_a, ended, _ = pair.targets("aabbab")
    # The teacher has emitted the token a, after which it says that b is impossible.
    torch.testing.assert_close(after_a[1], torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert ended[1] == 0
    # Inside ab: the label's probability is exact, the token a by itself would have to be asked again.
    inside, ended, lower_bound = pair.targets("abaabb")
    torch.testing.assert_close(inside[1], torch.tensor([0.0, 0.5], dtype=torch.float64))
    assert float(ended[1]) == pytest.approx(0.5)
    assert lower_bound[1]


@pytest.mark.parametrize("kept", [0, 1, 2, 4])
def test_targets_are_sums_over_coverings_and_exact_where_none_is_missing(kept):
    pair = make_pair(three_letters(6), "abc", MERGES, kept)
    exact_rows = rows = 0
    for text in list(pair.texts.texts)[::9]:
        tokens, pieces = (tuple(encode(text.encode())) for _, encode in (pair.teacher, pair.student))
        cells, ended, lower_bound = pair.targets(text)
        torch.testing.assert_close(cells.sum(1) + ended, torch.ones_like(ended))
        for place in range(len(pieces)):
            expected, complete = literal_target(pair, tokens, pieces[:place])
            found = torch.cat([cells[place], ended[place, None]])
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
            rows += 1
            if complete and not lower_bound[place]:
                exact_rows += 1
                exact = torch.tensor(pair.exact.log_probs(pieces[:place]), dtype=torch.float64).exp()
                torch.testing.assert_close(cells[place], exact, rtol=1e-9, atol=1e-12)
    assert rows / 3 < exact_rows < rows


def literal_target(pair: Pair, tokens: tuple[int, ...], prefix: tuple[int, ...]) -> tuple[Tensor, bool]:
    """The same target from the list of all coverings, and whether each of them keeps to the text's own tokens."""
    size = pair.student[0].vocab_size
    target = torch.zeros(size + 1, dtype=torch.float64)
    complete = True
    for covering in pair.covers.coverings(prefix):
        mass = pair.chain.probability(covering)
        if covering[:-1] != tokens[: max(len(covering) - 1, 0)]:
            complete = complete and mass == 0
            continue
        spelled = [piece for token in covering for piece in pair.student[1](pair.teacher[0].token_bytes(token))]
        if len(spelled) > len(prefix):
            target[spelled[len(prefix)]] += mass
        elif covering == tokens[: len(covering)]:
            for token in range(pair.teacher[0].vocab_size):
                piece = pair.student[1](pair.teacher[0].token_bytes(token))[0]
                target[piece] += pair.chain.probability((*covering, token))
        else:
            target[size] += mass
    return target / target.sum(), complete


def test_every_next_byte_of_the_worked_example_is_exact():
    view, encode = byte_pair_encoding("ab", ["a+b"])
    texts = worked_example(6)
    chain = texts.through(encode, view.vocab_size)
    spelled = [view.token_bytes(token) for token in range(view.vocab_size)]
    student = StudentBytes(torch.tensor([0, 1, 2, 4]), torch.tensor(list(b"".join(spelled))))
    for text in texts.texts:
        (teacher, same), chunks = sides(text, (view, encode), (view, encode))
        predictions, label = ideal(chain, teacher.ids[0, 1:].tolist())
        contexts = teacher_contexts(teacher, same, chunks, label, torch.tensor([1, 1, 2]))
        read = text_bytes(teacher, same, chunks, student)
        assert bytes(read.byte.tolist()).decode() == text
        tree, every = torch_tree(byte_tree(view)), torch.arange(len(text))
        found = next_byte_targets(predictions, tree, contexts, read.byte, every, torch.float64)
        exact = [texts.probability(text[: place + 1]) / texts.probability(text[:place]) for place in every.tolist()]
        torch.testing.assert_close(found.cells[every, read.byte], torch.tensor(exact, dtype=torch.float64))
        torch.testing.assert_close(found.cells.sum(1) + found.complement, torch.ones(len(text), dtype=torch.float64))
