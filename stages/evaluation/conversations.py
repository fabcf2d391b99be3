"""Held-out conversations: bits per byte of their contents, each model reading them in its own chat template."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from alignment.chat.messages import ChatError
from stages.evaluation.core import Ability, Watch
from stages.evaluation.rendered_chats import ChatRow, render
from stages.evaluation.scoring import positions_of, score_windows
from stages.evaluation.sections import Column, SectionContext, SectionReport, Skipped, Subject, Table
from stages.evaluation.statistics import compare, ratio
from stages.evaluation.windows import Conversation
from stages.stage import StageError

ABOUT = (
    "Every model reads the conversations as its own chat template renders them, whole; the markup is context and only "
    "the contents are scored, those of all roles. A token that holds markup and content counts as content. Templates "
    "differ, so these are not the same bytes of context, as they are in retention."
)
Result = dict[str, list[float] | str]
"""Id of a conversation -> nats, content bytes and content tokens, or why it has none."""


class Conversations:
    """The conversations among the evaluation data."""

    name = "conversations"
    relies_on: frozenset[Ability] = frozenset({"score_continuations"})

    def __init__(self, conversations: Sequence[Conversation], context: SectionContext) -> None:
        self._conversations = conversations
        self._context = context

    def score(self, subject: Subject, watch: Watch) -> Result:
        """Nats of every conversation's contents.

        Raises:
            StageError: the model has no chat template, is not one model with a tokenizer, or cannot read more than half
                of the conversations, and would take the others from all models.
        """
        if subject.model is None or subject.view is None or subject.path is None:
            raise StageError("only a model with a tokenizer of its own has a chat template")
        try:
            rendered = render(self._conversations, subject.path, subject.view)
        except ChatError as error:
            raise StageError(str(error)) from None
        positions = positions_of(subject.model)
        found = [_within(row, positions) for row in rendered]
        rows = [row for row in found if isinstance(row, ChatRow)]
        if 2 * len(rows) < len(found):
            reason = next(row for row in found if isinstance(row, str))
            raise StageError(f"{len(found) - len(rows)} of {len(found)} conversations cannot be read: {reason}")
        scores = score_windows(
            subject.model,
            rows,
            prefix_ids=(),
            vocab_size=subject.view.vocab_size,
            batch_tokens=self._context.batch_tokens,
            on_batch=watch,
        )
        parts = iter(np.split(scores.logp.astype(np.float64), np.cumsum([len(row.content) for row in rows])[:-1]))
        result: Result = {}
        for conversation, row in zip(self._conversations, found, strict=True):
            if isinstance(row, ChatRow):
                nats = -float(next(parts)[row.content].sum())
                result[conversation.id] = [nats, row.content_bytes, int(row.content.sum())]
            else:
                result[conversation.id] = row
        return result

    def report(self, results: Mapping[str, Result]) -> SectionReport:
        """Bits per byte by domain, of the conversations that every model here could read."""
        members: dict[str, list[str]] = {}
        for conversation in self._conversations:
            if all(not isinstance(result[conversation.id], str) for result in results.values()):
                members.setdefault(conversation.domain, []).append(conversation.id)
        table = self._table(results, members)
        return SectionReport(
            name=self.name,
            title="Conversations",
            about=ABOUT,
            tables=(table,),
            skipped=tuple(self._left_out(results)),
            facts={"conversations": f"{sum(map(len, members.values()))} of {len(self._conversations)}"},
            metrics={
                f"{row}.bits_per_byte.{domain}": measure.value
                for row, measures in table.rows.items()
                for domain, measure in measures.items()
            },
            data={"conversations": {row: dict(result) for row, result in results.items()}},
        )

    def _left_out(self, results: Mapping[str, Result]) -> Iterator[Skipped]:
        for conversation in self._conversations:
            rows_by_reason: dict[str, list[str]] = {}
            for row, result in results.items():
                if isinstance(why := result[conversation.id], str):
                    rows_by_reason.setdefault(why, []).append(row)
            for why, rows in rows_by_reason.items():
                yield Skipped(f"conversation {conversation.id}, of any model", f"{', '.join(rows)}: {why}")

    def _table(self, results: Mapping[str, Result], members: Mapping[str, Sequence[str]]) -> Table:
        trained = self._context.trained_domains
        columns = tuple(
            Column(domain, "bits per byte", "lower", note="trained" if domain in trained else "untrained")
            if trained
            else Column(domain, "bits per byte", "lower")
            for domain in members
        )
        sides = {
            row: {
                domain: ([result[name][0] / math.log(2) for name in names], [result[name][1] for name in names])
                for domain, names in members.items()
            }
            for row, result in results.items()
        }
        rows = {row: {domain: ratio(*side) for domain, side in domains.items()} for row, domains in sides.items()}
        return Table(
            "Bits per byte of conversations' contents", columns, rows, compare(sides, self._context.references())
        )


def _within(row: ChatRow | str, positions: int | None) -> ChatRow | str:
    if isinstance(row, ChatRow) and positions is not None and len(row.ids) > positions:
        return f"it takes {len(row.ids)} tokens, the model has {positions} positions"
    return row
