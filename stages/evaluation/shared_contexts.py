"""Scores rows of tokens that begin alike and computes once what they share: solved examples, a question, its options.

The rows form a tree of what their contexts have in common. It is walked depth first, in batches, so that keys and
values are held of one batch a level, however many rows there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from losses.predictions import LinearHead
from stages.evaluation.kept_states import Computed, Ids, Row, forward, shared_start
from stages.evaluation.scoring import ModelScores, ScoredRows, TokenRow, batches, checked_head, score_rows

_SHORT = 16
"""Fewer common tokens are cheaper computed in every row."""
_LEVELS = 3
"""Deepest nesting of what is shared: bounds what is held, and solved examples, a question and one more are enough."""
_WORTH = 0.8
"""Sharing has to leave at most this part of the tokens to compute: its passes are more, and attend through a mask."""


@dataclass(frozen=True)
class Branch:
    """Tokens that several rows begin with, or all tokens of one row.

    Attributes:
        ids: from the row's first token on.
        row: which row it is all of; None where it is what several share.
        branches: what goes on from it.
    """

    ids: Ids
    row: int | None = None
    branches: tuple[Branch, ...] = ()


class _Beginning(NamedTuple):
    """See ``kept_states.Known``."""

    ids: Ids
    layers: list[tuple[Tensor, Tensor]] | None


_NOTHING = _Beginning((), None)


def plan(rows: Sequence[TokenRow]) -> tuple[Branch, ...] | None:
    """What ``rows`` share, as a tree with each of them as a leaf; None where sharing would save little."""
    texts = [tuple(row.ids.tolist()) for row in rows]
    # The last token of a context says what comes next, so every row computes that one itself.
    contexts = [ids[: row.first_scored - 1] for ids, row in zip(texts, rows, strict=True)]
    order = sorted(range(len(rows)), key=contexts.__getitem__)
    branches = tuple(_branches(texts, contexts, order, known=0, levels=_LEVELS))
    return branches if computed_tokens(branches) < _WORTH * sum(map(len, texts)) else None


def _branches(
    texts: Sequence[Ids], contexts: Sequence[Ids], members: Sequence[int], known: int, levels: int
) -> Iterator[Branch]:
    """Of rows whose contexts, which are in sorted order, have their first ``known`` tokens in common."""
    for ahead, group in groupby(members, lambda index: contexts[index][known : known + _SHORT]):
        alike = list(group)
        if len(alike) == 1 or len(ahead) < _SHORT or levels == 0:
            yield from (Branch(texts[index], index) for index in alike)
            continue
        # What the first and the last of a sorted list begin with, all between them do.
        shared = shared_start(contexts[alike[0]], contexts[alike[-1]])
        yield Branch(contexts[alike[0]][:shared], branches=tuple(_branches(texts, contexts, alike, shared, levels - 1)))


def computed_tokens(branches: Sequence[Branch], known: int = 0) -> int:
    """How many tokens are computed behind the ``known`` ones, without padding."""
    return sum(len(branch.ids) - known + computed_tokens(branch.branches, len(branch.ids)) for branch in branches)


class SharedScoring:
    """Scores rows by what they share.

    Args:
        model: in evaluation mode; one of which ``kept_states.keeps_states`` holds.
        vocab_size: of its tokenizer.
        batch_tokens: tokens of one forward pass, known ones and padding included.
        on_batch: gets the share of scored tokens that are done, after each pass.
    """

    def __init__(
        self, model: nn.Module, vocab_size: int, *, batch_tokens: int, on_batch: Callable[[float], None]
    ) -> None:
        self._model = model
        self._vocab_size = vocab_size
        self._batch_tokens = batch_tokens
        self._on_batch = on_batch

    @torch.inference_mode()
    def __call__(self, rows: Sequence[TokenRow], branches: Sequence[Branch]) -> ModelScores:
        """All scored tokens of ``rows``, which ``branches`` were planned for.

        Raises:
            StageError: the head is not one that we can compute, or log-probabilities are not finite.
        """
        head = checked_head(self._model, self._vocab_size, max((row.ids.tolist() for row in rows), key=len)[:16])
        scores = ScoredRows([len(row.ids) - row.first_scored for row in rows])
        self._walk([(_NOTHING, branch) for branch in branches], rows, head, scores)
        return scores.finish(self._model.name_or_path)

    def _walk(
        self,
        branches: Sequence[tuple[_Beginning, Branch]],
        rows: Sequence[TokenRow],
        head: LinearHead,
        scores: ScoredRows,
    ) -> None:
        """``branches``, each with what it goes on from, and all that goes on from them."""
        for batch in batches([len(branch.ids) for _, branch in branches], self._batch_tokens):
            chosen = [branches[index] for index in batch]
            parts = [Row(base, len(base.ids), branch.ids[len(base.ids) :]) for base, branch in chosen]
            computed = forward(self._model, parts, keep=True)
            leaves = [place for place, (_, branch) in enumerate(chosen) if branch.row is not None]
            if leaves:
                indices = [chosen[place][1].row for place in leaves]
                before = [_before(rows[chosen[place][1].row], parts[place], computed[place]) for place in leaves]
                labels = [torch.from_numpy(rows[index].ids[rows[index].first_scored :]).long() for index in indices]
                device = head.weight.device
                at_places = replace(head, hidden=torch.cat(before).to(device))
                scores.put(indices, *score_rows(at_places, torch.cat(labels).to(device)))
            self._on_batch(scores.share)
            further = [
                (_Beginning(branch.ids, found.layers), child)
                for (_, branch), found in zip(chosen, computed, strict=True)
                for child in branch.branches
            ]
            del computed  # of rows, nothing is needed any more
            self._walk(further, rows, head, scores)


def _before(row: TokenRow, part: Row, computed: Computed) -> Tensor:
    """Hidden states [N, D] at the places before the row's scored tokens."""
    return computed.hidden[row.first_scored - 1 - part.shared : len(part.suffix) - 1]
