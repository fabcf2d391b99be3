"""Next-token distributions after many sequences that begin alike, from as few forward passes as that allows.

Sequences come in groups around a main one: a document's own tokens. One pass over the main sequence answers for all of
its beginnings; what departs from it is computed behind the keys and values that are kept of what they share.

Legend: B sequences of a pass, T tokens of a sequence, N sequences asked about, V vocabulary, D width.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn

from losses.predictions import Predictions
from stages.evaluation.kept_states import (
    Computed,
    Ids,
    Kept,
    Row,
    forward,
    keeps_states,
    shared_start,
)
from stages.evaluation.scoring import checked_head, positions_of, score_rows
from stages.stage import StageError

_SHORT = 16  # tokens that are cheaper to compute in every row than in a pass of their own


class TooLong(StageError):
    """A sequence has more tokens than the model has positions."""


class Group(NamedTuple):
    """Sequences to ask about and the one that most of them are beginnings of; the start of a text stands before all."""

    main: Ids
    sequences: Sequence[Ids]


class Answer(NamedTuple):
    """What a model says of a group.

    Attributes:
        cumulative: float64 [T + 1], log-probability in nats of the main sequence's first tokens.
        predictions: what comes after each of the N sequences.
    """

    cumulative: np.ndarray
    predictions: Predictions


class NextTokens(Protocol):
    """A model of tokens."""

    def room(self, tokens: int) -> bool:
        """Whether a sequence of so many tokens, without the start, fits into the model's context."""

    def behind(self, ids: Ids) -> Self:
        """The same model with ``ids`` after the start, before every sequence."""

    def answer(self, groups: Sequence[Group], *, remember: bool = False) -> Iterator[Answer]:
        """One answer a group, in order; ``remember`` keeps what groups that go on from these will need."""


@dataclass
class Cost:
    """Work done so far.

    Attributes:
        passes: calls of the model.
        tokens: token positions computed, without padding.
    """

    passes: int = 0
    tokens: int = 0


class ModelTokens:
    """A Hugging Face causal language model.

    Args:
        model: in evaluation mode.
        vocab_size: of its tokenizer.
        start: special tokens that stand before every sequence, at least one.
        batch_tokens: tokens of one forward pass, known ones and padding included.

    Raises:
        StageError: the model's head is not one that we can compute.
    """

    def __init__(self, model: nn.Module, vocab_size: int, start: Ids, *, batch_tokens: int) -> None:
        if not start:
            raise StageError(
                f"{model.name_or_path}: the tokenizer has neither BOS nor EOS, so that a text's first token has no "
                "probability; give the tokenizer a bos_token"
            )
        self.start = start
        self.cost = Cost()
        self._model = model
        self._batch_tokens = batch_tokens
        self._positions = positions_of(model)
        self._head = checked_head(model, vocab_size, start)
        self._remembered: list[Kept] = []
        self.keeps_states = keeps_states(model, [*start, *(token % vocab_size for token in range(12))])

    def room(self, tokens: int) -> bool:
        """See ``NextTokens``."""
        return self._positions is None or len(self.start) + tokens <= self._positions

    def behind(self, ids: Ids) -> Self:
        """See ``NextTokens``."""
        other = copy.copy(self)
        other.start = (*self.start, *ids)
        other._remembered = []
        return other

    @torch.inference_mode()
    def answer(self, groups: Sequence[Group], *, remember: bool = False) -> Iterator[Answer]:
        """See ``NextTokens``.

        Raises:
            TooLong: a sequence is longer than the model's context.
            StageError: a log-probability is not finite.
        """
        known, self._remembered = self._remembered, []
        for chunk in self._chunks(groups):
            bases = self._mains([group.main for group in chunk], known)
            rows = [self._rows(group, base) for group, base in zip(chunk, bases, strict=True)]
            computed = iter(self._compute([row for own in rows for row in own]))
            for group, base, own in zip(chunk, bases, rows, strict=True):
                found = [(row, next(computed)) for row in own]
                if remember:
                    self._remembered.append(self._longest(group, base, found))
                yield self._assemble(group, base, found)

    def _chunks(self, groups: Sequence[Group]) -> Iterator[list[Group]]:
        chunk: list[Group] = []
        longest = 0
        for group in groups:
            longest = max(longest, len(self.start) + max(map(len, [group.main, *group.sequences])))
            if chunk and longest * (len(chunk) + 1) > self._batch_tokens:
                yield chunk
                chunk, longest = [], len(self.start) + len(group.main)
            chunk.append(group)
        if chunk:
            yield chunk

    def _mains(self, mains: Sequence[Ids], known: Sequence[Kept]) -> list[Kept]:
        """What is known of each main sequence, after computing those of which much is missing."""
        nothing = Kept((), self._head.hidden.new_empty(0, self._head.weight.shape[1]), None, np.zeros(1))
        bases: list[Kept | None] = []
        rows: list[Row] = []
        for main in mains:
            ids = (*self.start, *main)
            base = max(known, key=lambda kept: shared_start(kept.ids, ids), default=nothing)
            enough = len(ids) - shared_start(base.ids, ids) <= _SHORT
            bases.append(base if enough else None)
            if not enough:
                rows.append(self._row(base, ids))
        computed = iter(zip(rows, self._compute(rows), strict=True))
        return [self._kept(*next(computed)) if base is None else base for base in bases]

    def _rows(self, group: Group, base: Kept) -> list[Row]:
        """Rows that hold the group's sequences beyond ``base``; a sequence that another one begins with has no own."""
        wanted = {(*self.start, *ids) for ids in [group.main, *group.sequences]}
        beyond = sorted(ids for ids in wanted if shared_start(base.ids, ids) < len(ids))
        longest = [
            ids
            for ids, after in itertools.zip_longest(beyond, beyond[1:], fillvalue=())
            if after[: len(ids)] != ids  # in sorted order, what goes on from a sequence stands right behind it
        ]
        return [self._row(base, ids) for ids in longest]

    def _row(self, base: Kept, ids: Ids) -> Row:
        if self._positions is not None and len(ids) > self._positions:
            raise TooLong(
                f"{self._model.name_or_path}: a sequence takes {len(ids)} tokens, the model has {self._positions} "
                "positions; give shorter texts"
            )
        shared = 0 if base.layers is None else min(shared_start(base.ids, ids), len(ids) - 1)
        return Row(base, shared, ids[shared:])

    def _kept(self, row: Row, computed: Computed) -> Kept:
        """A computed row as one that others can go on from."""
        ids = (*row.base.ids[: row.shared], *row.suffix)
        hidden = torch.cat([row.base.hidden[: row.shared], computed.hidden])
        cumulative = row.base.cumulative[: max(1, row.shared - len(self.start) + 1)]
        first = len(self.start) + len(cumulative) - 1
        if first < len(ids):
            labels = torch.tensor(ids[first:], device=hidden.device)
            logp, _ = score_rows(replace(self._head, hidden=hidden[first - 1 : len(ids) - 1]), labels)
            if not logp.isfinite().all():
                raise StageError(f"{self._model.name_or_path}: some log-probabilities are not finite; it is broken")
            cumulative = np.append(cumulative, cumulative[-1] + np.cumsum(logp.cpu().double().numpy()))
        return Kept(ids, hidden, computed.layers, cumulative)

    def _longest(self, group: Group, base: Kept, found: Sequence[tuple[Row, Computed]]) -> Kept:
        """What of the main sequence was computed."""
        ids = (*self.start, *group.main)
        for row, computed in found:
            if (*base.ids[: row.shared], *row.suffix)[: len(ids)] == ids:
                return self._kept(row, computed)
        return base

    def _assemble(self, group: Group, base: Kept, found: Sequence[tuple[Row, Computed]]) -> Answer:
        main = self._longest(group, base, found)
        states = []
        for sequence in group.sequences:
            ids = (*self.start, *sequence)
            states.append(_state(ids, base, found))
        hidden = torch.stack(states) if states else base.hidden[:0]
        return Answer(main.cumulative[: len(group.main) + 1], replace(self._head, hidden=hidden))

    def _compute(self, rows: Sequence[Row]) -> list[Computed]:
        results: list[Computed | None] = [None] * len(rows)
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
        while order:
            size = max(1, self._batch_tokens // len(rows[order[0]]))
            for index, computed in zip(order[:size], self._forward([rows[i] for i in order[:size]]), strict=True):
                results[index] = computed
            order = order[size:]
        return [computed for computed in results if computed is not None]

    def _forward(self, rows: Sequence[Row]) -> list[Computed]:
        self.cost.passes += 1
        self.cost.tokens += sum(len(row.suffix) for row in rows)
        device = self._head.weight.device  # a model that is spread over devices may have its head on another one
        found = forward(self._model, rows, keep=self.keeps_states)
        return [computed._replace(hidden=computed.hidden.to(device)) for computed in found]


def _state(ids: Ids, base: Kept, found: Sequence[tuple[Row, Computed]]) -> Tensor:
    """The final hidden state after ``ids``."""
    if base.ids[: len(ids)] == ids:
        return base.hidden[len(ids) - 1]
    for row, computed in found:
        if len(row) >= len(ids) > row.shared and (*base.ids[: row.shared], *row.suffix)[: len(ids)] == ids:
            return computed.hidden[len(ids) - row.shared - 1]
    raise AssertionError("every sequence is in a row")
