"""What a model's token distributions say about the next symbol of a text, summed over coverings of what came before.

A token stands for a sequence of symbols: its bytes, or tokens of a smaller vocabulary. A *covering* of the first n
symbols of a text is a sequence of tokens whose last one contains symbol n. By the byte-token representation lemma
(Phan et al., arXiv 2410.09303), the probability of the n symbols is the sum over their valid coverings. We sum over
those coverings whose tokens, but for the last, are the tokens that the text was cut into: for these, and for no others,
one pass over the text gives the model's distributions.

What the last token says about symbol n + 1 is known where it goes on beyond n. Where it ends at n and is not the text's
own token, the model would have to be asked again after it: that mass has *ended*. Each symbol's mass is exact or too
small: short of its share of what ended, and of coverings that left the text's tokens before their last one.

Legend: N symbols of all texts, C realised tokens (contexts), P coverings that are still open, V vocabulary, M tokens of
it that have symbols, S symbols that there are, K nodes of the prefix tree, b rows of a block, c contexts of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import NamedTuple, Self

import torch
from torch import Tensor

from losses.predictions import Predictions

_BUDGET_BYTES = 512 * 2**20
_RESOLUTION = 1e-13  # of a difference of two float64 sums up to 1, to a part in a thousand
_BYTES_PER_ENTRY = 40  # of the [c, V] tensors that live at a time: log-probabilities, their order, two float64 sums


@dataclass(frozen=True)
class SymbolTree:
    """The arrays of ``alignment.prefix_tree.PrefixTree``, as int64 tensors on one device."""

    tokens: Tensor
    starts: Tensor
    inner: Tensor
    ends: Tensor
    parents: Tensor
    symbols: Tensor
    whole: Tensor

    def to(self, device: torch.device) -> Self:
        """The tree on ``device``; itself if it is there."""
        if self.tokens.device == device:
            return self
        return type(self)(*(getattr(self, field.name).to(device) for field in fields(self)))

    @cached_property
    def unspelled(self) -> Tensor:
        """int64: the tokens without symbols."""
        return (self.whole == 0).nonzero().squeeze(1)

    @cached_property
    def children(self) -> Tensor:
        """int64 [K + 1]: the children of node k are the nodes ``children[k]`` to ``children[k + 1]``."""
        nodes = torch.arange(len(self.parents) + 1, device=self.parents.device)
        return torch.searchsorted(self.parents, nodes)

    @cached_property
    def _num_symbols(self) -> int:
        return int(self.symbols.max()) + 1

    @cached_property
    def _keys(self) -> Tensor:
        """int64 [K], ascending: one number for a node's parent and last symbol."""
        return self.parents * self._num_symbols + self.symbols

    def child(self, node: Tensor, symbol: Tensor) -> Tensor:
        """The node reached by ``symbol``, or -1; int64 of one shape."""
        key = node * self._num_symbols + symbol
        found = torch.searchsorted(self._keys, key).clamp(max=len(self._keys) - 1)
        known = (symbol >= 0) & (symbol < self._num_symbols) & (self._keys[found] == key)
        return torch.where(known, found, -1)


class Contexts(NamedTuple):
    """The realised tokens of the texts that begin where a symbol does, in the order of the text.

    Attributes:
        first: int64 [C], ascending; index in N of the token's first symbol.
        limit: int64 [C], index in N of the first symbol that no longer belongs to the same text.
        row: int64 [C], the row of the model's predictions that is about the token.
        token: int64 [C], its id.
        log_prob: float64 [C], of the text's tokens before it, in nats; up to one constant a text.
    """

    first: Tensor
    limit: Tensor
    row: Tensor
    token: Tensor
    log_prob: Tensor


class Coverings(NamedTuple):
    """Open coverings: those whose last token may begin at a context and reach a symbol.

    Attributes:
        row: int64 [P], ascending; index of the symbol that comes next.
        context: int64 [P], the last token's context.
        node: int64 [P], what the last token has spelled so far; 0 where it is about to begin.
    """

    row: Tensor
    context: Tensor
    node: Tensor

    def at(self, rows: Tensor) -> Self:
        """The coverings of some rows (int64, ascending), which are numbered anew."""
        if not len(rows):
            return type(self)(*(field[:0] for field in self))
        place = torch.searchsorted(rows, self.row).clamp(max=len(rows) - 1)
        kept = rows[place] == self.row
        return type(self)(place[kept], self.context[kept], self.node[kept])

    def can_go_on(self, tree: SymbolTree) -> Tensor:
        """bool [P]: whether some token goes on beyond what was spelled."""
        return tree.children[self.node + 1] > tree.children[self.node]


def find_coverings(tree: SymbolTree, symbols: Tensor, contexts: Contexts) -> Coverings:
    """Follow the text from every context for as long as some token spells it.

    Args:
        symbols: int64 [N]; numbers that no token has end every covering.
    """
    row, node = contexts.first, torch.zeros_like(contexts.first)
    context = torch.arange(len(row), device=row.device)
    found = []
    while len(row):  # as often as the longest token that occurs has symbols
        found.append((row, context, node))
        node = tree.child(node, symbols[row])
        row = row + 1
        alive = (node >= 0) & (row < contexts.limit[context])
        row, context, node = row[alive], context[alive], node[alive]
    if not found:
        return Coverings(row, context, node)
    row, context, node = (torch.cat(parts) for parts in zip(*found, strict=True))
    order = row.argsort(stable=True)
    return Coverings(row[order], context[order], node[order])


class NextSymbols(NamedTuple):
    """Relative masses of a block of rows, float64; divided by their sum they are probabilities.

    Attributes:
        mass: [b, S], of each next symbol.
        ended: [b], of coverings that end right here: what comes next is not known.
        unspelled: [b], of tokens without symbols, which may come next where a token may begin.
    """

    mass: Tensor
    ended: Tensor
    unspelled: Tensor


@torch.no_grad()
def next_symbols(
    teacher: Predictions, tree: SymbolTree, contexts: Contexts, coverings: Coverings, rows: slice, num_symbols: int
) -> NextSymbols:
    """The masses of the rows ``rows.start`` to ``rows.stop``, read from the teacher in one block.

    Args:
        teacher: one row a context, in their order.
        num_symbols: S.
    """
    bounds = torch.tensor([rows.start, rows.stop], device=coverings.row.device)
    found = slice(*torch.searchsorted(coverings.row, bounds).tolist())
    row, context, node = coverings.row[found] - rows.start, coverings.context[found], coverings.node[found]
    mass = torch.zeros(rows.stop - rows.start, num_symbols, dtype=torch.float64, device=row.device)
    ended, unspelled = mass.new_zeros(2, len(mass))
    if not len(row):
        return NextSymbols(mass, ended, unspelled)
    lowest, highest = int(context.min()), int(context.max()) + 1
    block = _Block.read(teacher, tree, contexts, slice(lowest, highest))
    context = context - lowest
    weight = _relative_weights(contexts.log_prob[lowest:highest][context], row, len(mass))
    at_root = node == 0

    first, of_first = block.first_symbols(tree, context[at_root])
    mass[row[at_root][:, None], first] = of_first.mul_(weight[at_root, None])
    unspelled[row[at_root]] = weight[at_root] * block.unspelled[context[at_root]]

    row, context, node, weight = (each[~at_root] for each in (row, context, node, weight))
    ended.index_add_(0, row, weight * block.ending(tree, context, node))
    first = tree.children[node]
    counts = tree.children[node + 1] - first
    covering = torch.repeat_interleave(counts)
    child = torch.arange(len(covering), device=row.device) - (counts.cumsum(0) - counts - first)[covering]
    share = weight[covering] * block.between(context[covering], tree.starts[child], tree.ends[child])
    mass.view(-1).index_add_(0, row[covering] * num_symbols + tree.symbols[child], share)
    return NextSymbols(mass, ended, unspelled)


class _Block(NamedTuple):
    """A teacher's distributions at c contexts, ready for sums over ranges of tokens.

    Attributes:
        cumulative: float64 [c, M + 1], probability of the tokens before each, in the order of the tree.
        unspelled: float64 [c], probability of the tokens without symbols.
        token, prob: the realised token, and its probability in float64: [c] each.
    """

    cumulative: Tensor
    unspelled: Tensor
    token: Tensor
    prob: Tensor

    @classmethod
    def read(cls, teacher: Predictions, tree: SymbolTree, contexts: Contexts, block: slice) -> Self:
        probs = teacher.log_probs(block).exp()
        cumulative = torch.empty(len(probs), len(tree.tokens) + 1, dtype=torch.float64, device=probs.device)
        cumulative[:, 0] = 0
        cumulative[:, 1:] = probs.index_select(1, tree.tokens)
        cumulative.cumsum_(1)
        token = contexts.token[block]
        return cls(
            cumulative=cumulative,
            unspelled=probs[:, tree.unspelled].sum(1, dtype=torch.float64),
            token=token,
            prob=probs.gather(1, token[:, None]).squeeze(1).double(),
        )

    def first_symbols(self, tree: SymbolTree, context: Tensor) -> tuple[Tensor, Tensor]:
        """The symbols that tokens begin with, and their probabilities: [n] and [context, n]."""
        nodes = slice(1, int(tree.children[1]))
        cuts = torch.cat([tree.starts[nodes], tree.ends[nodes][-1:]])
        return tree.symbols[nodes], _resolved(self.cumulative.index_select(1, cuts).diff(dim=1))[context]

    def between(self, context: Tensor, first: Tensor, last: Tensor) -> Tensor:
        """Probability of the tokens from ``first`` up to ``last`` in the order of the tree."""
        return _resolved(self.cumulative[context, last] - self.cumulative[context, first])

    def ending(self, tree: SymbolTree, context: Tensor, node: Tensor) -> Tensor:
        """Probability of the tokens that are exactly a node's prefix, but for the realised one, which goes on."""
        whole = self.between(context, tree.starts[node], tree.inner[node])
        realised = tree.whole[self.token[context]] == node
        others = tree.inner[node] - tree.starts[node] > realised.long()
        return torch.where(others, _resolved(whole - realised * self.prob[context]), 0)


def _resolved(difference: Tensor) -> Tensor:
    """Probabilities that are differences of sums up to 1, without those that rounding may have made."""
    return torch.where(difference > _RESOLUTION, difference, 0)


def _relative_weights(log_prob: Tensor, row: Tensor, num_rows: int) -> Tensor:
    """Probability of each covering's tokens but the last, relative to the row's largest."""
    largest = log_prob.new_full((num_rows,), -torch.inf).scatter_reduce(0, row, log_prob, "amax")
    return (log_prob - largest[row]).exp()


def row_blocks(num_rows: int, vocab_size: int) -> Iterator[slice]:
    """Cut rows into blocks that are small enough for ``next_symbols`` with a teacher of that vocabulary."""
    size = rows_per_block(vocab_size)
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


def rows_per_block(vocab_size: int) -> int:
    """How many rows of a teacher's vocabulary fit the memory budget at the top of this module."""
    return max(1, _BUDGET_BYTES // (_BYTES_PER_ENTRY * vocab_size))


def log_probs_before(label_logp: Tensor, scored: Tensor) -> Tensor:
    """Log-probability of the scored tokens before each token of a sequence: float64 [B, T] from [B, T]."""
    logp = torch.where(scored, label_logp, 0).double()
    return logp.cumsum(1) - logp
