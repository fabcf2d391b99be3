"""Prompts that end inside a token: what a model loses when a text is handed to it cut there.

Source: evaluation.md §3 (PBP); on tokenization bias Phan et al., arXiv 2410.09303.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from alignment.byte_view import InexactEncoding
from alignment.covers_text import NotText
from alignment.tokenizer_facts import load_tokenizer
from stages.evaluation.core import Ability, Watch
from stages.evaluation.exact_bytes.scorer import ExactByteScorer, Places
from stages.evaluation.robustness.cut_places import KINDS, Cut, CutTokens, choose_cuts, tokens_of
from stages.evaluation.robustness.options import PromptBoundaryOptions
from stages.evaluation.scoring import positions_of, score_windows
from stages.evaluation.sections import (
    Bars,
    Column,
    Item,
    Measure,
    SectionContext,
    SectionReport,
    Skipped,
    Subject,
    Table,
)
from stages.evaluation.statistics import Sides, compare, ratio
from stages.evaluation.text_start import TextStart
from stages.evaluation.windows import Document
from stages.stage import StageError

NAME = "prompt_boundary"
ABOUT = (
    "Held-out text is cut in two, after the space before a word, or inside a word, an identifier or a run of Chinese "
    "characters. Its bits are counted with the tokens of the whole text, and with the tokens that prompt and "
    "continuation have by themselves, as when a prompt ends there: the same bytes, so the difference is what the cut "
    "costs. It is given per character of the continuation ({characters} characters each). Where a token ends at the "
    "cut it is next to nothing, and for a model of bytes it is 0 by construction. With exact_bytes, the bits of the "
    "continuation alone are given as well: by the tokens of both parts, and by all tokens that its bytes could be made "
    "of (valid covers). All models are asked at the same places; intervals are 95 % over places."
)
_UNIT = ("bits/character", "lower", 3)
NOT_SPELLED = "its tokens do not spell the text, or nothing before the cut is tokenized alike"


def sections(
    options: PromptBoundaryOptions, documents: Sequence[Document], context: SectionContext
) -> list[PromptBoundary]:
    """The section of ``prompt_boundary``.

    Raises:
        StageError: no document has a place to cut.
    """
    cuts = choose_cuts(documents, options)
    if not cuts:
        raise StageError(
            f"prompt_boundary: no document of data.eval has a word, an identifier or Chinese text with "
            f"{options.characters} characters after it; lower characters, or give longer documents"
        )
    return [PromptBoundary(options, cuts, context)]


class PromptBoundary:
    """Cut texts, scored whole and in parts."""

    name = NAME
    relies_on: frozenset[Ability] = frozenset({"score_continuations"})

    def __init__(self, options: PromptBoundaryOptions, cuts: Sequence[Cut], context: SectionContext) -> None:
        self._options = options
        self._cuts = cuts
        self._context = context

    def score(self, subject: Subject, watch: Watch) -> list[dict[str, Any] | None]:
        """Of each cut, in nats: its ``cost``, its continuation by the ``tokens`` of both parts, and by ``exact_bytes``
        where that was asked for; and whether it lies ``inside`` a token. None where it could not be asked.

        Raises:
            StageError: the model is not one of tokens, or has no log-probabilities.
        """
        if subject.model is None or subject.view is None:
            raise StageError("an ensemble has no tokens of its own for a cut prompt")
        tokenizer = load_tokenizer(subject.path, trust_remote_code=False)
        start = TextStart.of(tokenizer, subject.view)
        tokens = [tokens_of(subject.view, cut) for cut in self._cuts]
        rows = [row for found in tokens if found is not None for row in _rows(found)]
        self._check_room(subject.model, start, rows)
        share = 0.5 if self._options.exact_bytes else 1.0
        scores = score_windows(
            subject.model,
            rows,
            prefix_ids=start.start_ids,
            vocab_size=subject.view.vocab_size,
            batch_tokens=self._context.batch_tokens,
            on_batch=lambda done: watch(share * done),
        )
        ends = np.cumsum([len(row.ids) - row.first_scored for row in rows])
        logps = iter(np.split(scores.logp.astype(np.float64), ends[:-1]))
        costs = [None if found is None else _cost(found, logps) for found in tokens]
        if self._options.exact_bytes:
            scorer = ExactByteScorer.of_model(
                subject.name,
                subject.model,
                tokenizer,
                subject.view,
                start,
                batch_tokens=self._context.batch_tokens,
            )
            self._add_exact_bytes(scorer, costs, lambda done: watch(share + (1 - share) * done))
        return costs

    def _check_room(self, model: nn.Module, start: TextStart, rows: Sequence[_Row]) -> None:
        positions = positions_of(model)
        longest = len(start.start_ids) + max((len(row.ids) for row in rows), default=0)
        if positions is not None and longest > positions:
            raise StageError(
                f"a cut text takes {longest} tokens, the model has {positions} positions; lower context_bytes or "
                "characters of prompt_boundary"
            )

    def _add_exact_bytes(self, scorer: ExactByteScorer, costs: Sequence[dict[str, Any] | None], watch: Watch) -> None:
        asked = [(cut, cost) for cut, cost in zip(self._cuts, costs, strict=True) if cost is not None]
        places = []
        for cut, _ in asked:
            prompt = cut.prompt.encode()
            text = prompt + cut.continuation.encode()
            places.append(Places(text, [len(prompt), len(text)]))
        try:
            masses = scorer.masses(places, what_next=False, watch=watch)
        except (InexactEncoding, NotText) as error:
            raise StageError(f"exact_bytes: {error}; leave exact_bytes out") from None
        for (_, cost), (before, whole) in zip(asked, masses, strict=True):
            cost["exact_bytes"] = before.log_probability - whole.log_probability

    def report(self, results: Mapping[str, Sequence[dict[str, Any] | None]]) -> SectionReport:
        """Costs by kind of place, over the places where every model could be asked."""
        asked = [
            place for place in range(len(self._cuts)) if all(costs[place] is not None for costs in results.values())
        ]
        members = {
            kind: [place for place in asked if kind in ("all", self._cuts[place].kind)] for kind in ("all", *KINDS)
        }
        members = {kind: places for kind, places in members.items() if places}
        sides: Sides = {
            row: {kind: self._bits_and_characters(costs, places) for kind, places in members.items()}
            for row, costs in results.items()
        }
        rows = {row: {kind: ratio(*side) for kind, side in kinds.items()} for row, kinds in sides.items()}
        columns = _columns(members)
        title = "What a cut prompt costs"
        return SectionReport(
            name=self.name,
            title="Prompt boundary",
            about=ABOUT.format(characters=self._options.characters),
            tables=(
                Table(title, columns, rows, compare(sides, self._context.references())),
                *self._inside_tables(results, members),
                *(self._continuation_tables(results, members) if self._options.exact_bytes else ()),
            ),
            bars=(Bars(title, "bits/character", rows),) if rows else (),
            items=tuple(self._items(results)),
            skipped=tuple(self._skipped(results, members)),
            facts={"places": len(asked), **self._options.model_dump(mode="json")},
            metrics={f"{row}.{kind}": cell.value for row, kinds in rows.items() for kind, cell in kinds.items()},
        )

    def _bits_and_characters(
        self, costs: Sequence[dict[str, Any] | None], places: Sequence[int], what: str = "cost"
    ) -> tuple[list[float], list[float]]:
        bits = [costs[place][what] / math.log(2) for place in places]
        return bits, [float(len(self._cuts[place].continuation)) for place in places]

    def _continuation_tables(self, results: Mapping[str, Any], members: Mapping[str, Sequence[int]]) -> Iterator[Table]:
        titles = {
            "tokens": "Continuation of a cut prompt by the tokens of both parts",
            "exact_bytes": "Continuation of a cut prompt by its exact bytes",
        }
        for what, title in titles.items():
            sides = {
                row: {kind: self._bits_and_characters(costs, places, what) for kind, places in members.items()}
                for row, costs in results.items()
            }
            rows = {row: {kind: ratio(*side) for kind, side in kinds.items()} for row, kinds in sides.items()}
            yield Table(title, _columns(members), rows, compare(sides, self._context.references()))

    def _inside_tables(self, results: Mapping[str, Any], members: Mapping[str, Sequence[int]]) -> tuple[Table, Table]:
        """How many of the places lie inside a token, and what a cut costs there."""
        shares: dict[str, dict[str, Measure]] = {}
        costs: dict[str, dict[str, Measure]] = {}
        for row, of_row in results.items():
            inside = {kind: [place for place in places if of_row[place]["inside"]] for kind, places in members.items()}
            shares[row] = {kind: Measure(100 * len(inside[kind]) / len(places)) for kind, places in members.items()}
            costs[row] = {
                kind: ratio(*self._bits_and_characters(of_row, places)) for kind, places in inside.items() if places
            }
        return (
            Table("Places inside a token", tuple(Column(kind, "%", digits=1) for kind in members), shares),
            Table("What a cut inside a token costs", tuple(Column(kind, *_UNIT) for kind in members), costs),
        )

    def _items(self, results: Mapping[str, Sequence[dict[str, Any] | None]]) -> list[Item]:
        items = []
        for place, cut in enumerate(self._cuts):
            costs = {row: of_row[place] for row, of_row in results.items()}
            items.append(
                Item(
                    id=cut.id,
                    groups={"kind": cut.kind},
                    prompt=cut.prompt[-80:],
                    gold=cut.continuation,
                    answers={
                        row: f"{cost['cost'] / math.log(2):+.2f} bits"
                        + (", inside a token" if cost["inside"] else ", between tokens")
                        for row, cost in costs.items()
                        if cost is not None
                    },
                    problems={row: NOT_SPELLED for row, cost in costs.items() if cost is None},
                )
            )
        return items

    def _skipped(
        self, results: Mapping[str, Sequence[dict[str, Any] | None]], members: Mapping[str, Sequence[int]]
    ) -> list[Skipped]:
        entries = [
            Skipped(f"kind {kind}", "the held-out text has no such place with enough text around it")
            for kind in KINDS
            if kind not in {cut.kind for cut in self._cuts}
        ]
        for row, costs in results.items():
            missing = Counter(cut.kind for cut, cost in zip(self._cuts, costs, strict=True) if cost is None)
            entries += [
                Skipped(f"{count} places of kind {kind}", f"{NOT_SPELLED}; they count for no model", row)
                for kind, count in missing.items()
            ]
        return entries


@dataclass(frozen=True)
class _Row:
    """Tokens of which those from ``first_scored`` on are scored."""

    ids: np.ndarray
    first_scored: int


def _rows(tokens: CutTokens) -> list[_Row]:
    """What is scored of a cut: one sequence where whole and parts are the same, so that the cost is 0 exactly."""
    rows = [_Row(tokens.parts, tokens.first_scored), _Row(tokens.whole, tokens.first_scored)]
    return rows[:1] if np.array_equal(tokens.whole, tokens.parts) else rows


def _cost(tokens: CutTokens, logps: Iterator[np.ndarray]) -> dict[str, Any]:
    """What ``PromptBoundary.score`` gives, of the next of ``logps``: log-probabilities of every row's scored tokens."""
    parts = next(logps)
    whole = parts if len(_rows(tokens)) == 1 else next(logps)
    continuation = parts[tokens.continuation - tokens.first_scored :]
    return {
        "cost": float(whole.sum() - parts.sum()),
        "tokens": -float(continuation.sum()),
        "inside": tokens.inside,
    }


def _columns(members: Mapping[str, Sequence[int]]) -> tuple[Column, ...]:
    return tuple(Column(kind, *_UNIT, note=f"{len(places)} places") for kind, places in members.items())
