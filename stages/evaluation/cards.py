"""The models' tokenizers on the held-out text, and what writing and reading a byte costs each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stages.evaluation.core import Ability, Watch
from stages.evaluation.sections import (
    Bars,
    Column,
    Measure,
    Section,
    SectionContext,
    SectionReport,
    Subject,
    Table,
)
from stages.stage import StageConfig, StageError

if TYPE_CHECKING:
    from stages.evaluation.windows import Document

ABOUT = (
    "Of tokenizers alone, on the held-out text. Forward passes per byte: what a model needs to write a byte, one token "
    "at a time, which is its tokens per byte. Context: how many bytes of this text fit into the positions that the "
    "model was built for. Fertility: tokens per word, where a word is a run of letters and digits; whole words: the "
    "share of words that are one token. Rényi efficiency: the Rényi entropy, of order 2.5, of how often tokens occur, "
    "over that of equally frequent tokens. None of them says how good a model is. Intervals are over documents."
)

_QUOTIENTS = {
    "tokens per byte": ("tokens", "bytes", 1.0),
    "bytes per token": ("bytes", "tokens", 1.0),
    "fertility": ("word_tokens", "words", 1.0),
    "whole words": ("whole_words", "words", 100.0),
    "coverage": ("verbatim_bytes", "bytes", 100.0),
}
"""Column -> numerator and denominator of ``TextUse``, and a factor for its unit."""

_COLUMNS = (
    Column("tokens per byte", "", "lower"),
    Column("bytes per token", "bytes", "higher"),
    Column("fertility", "tokens", "lower", digits=2),
    Column("whole words", "%", "higher", digits=1),
    Column("coverage", "%", "higher", digits=2),
    Column("Rényi efficiency", "", "higher"),
)
_COST_COLUMNS = (
    Column("forward passes per byte", "", "lower"),
    Column("context", "tokens", digits=0),
    Column("context of text", "bytes", "higher", digits=0),
)


class CardOptions(StageConfig):
    """Tokenizer cards of the models on the held-out text; there is nothing to choose."""


class Cards:
    """Encodes the documents with every model's tokenizer."""

    name = "card"
    relies_on: frozenset[Ability] = frozenset()

    def __init__(self, documents: Sequence[Document], references: Mapping[str, str]) -> None:
        self._documents = documents
        self._references = references

    def score(self, subject: Subject, watch: Watch) -> dict[str, Any]:
        """Counts of each document, Rényi efficiency of all, and the model's positions (None: not known).

        Raises:
            StageError: there is no one tokenizer.
        """
        from alignment.card.card import text_report
        from alignment.card.usage import usage
        from stages.evaluation.scoring import positions_of

        view = subject.view
        if view is None:
            raise StageError("its members have tokenizers of their own, whose cards are theirs")
        total = usage(view, [])
        counts = []
        for number, document in enumerate(self._documents, start=1):
            used = usage(view, [document.text])
            total += used
            counts.append(text_report(view, used).counts)
            watch(number / len(self._documents))
        return {
            "documents": counts,
            "renyi_efficiency": text_report(view, total).renyi_efficiency,
            "positions": None if subject.model is None else positions_of(subject.model),
            "vocabulary": view.vocab_size,
            "digits": view.digit_scheme,
            "fingerprint": view.fingerprint,
        }

    def report(self, results: Mapping[str, Any]) -> SectionReport:
        """The tokenizers side by side, and their models' costs."""
        from alignment.card.efficiency import ALPHA
        from stages.evaluation.statistics import compare, ratio  # needs numpy, which planning does not load

        sides = {row: _sides(found["documents"]) for row, found in results.items()}
        rows = {row: {name: ratio(*side) for name, side in named.items()} for row, named in sides.items()}
        costs = {row: _costs(rows[row], found["positions"]) for row, found in results.items()}
        for row, found in results.items():
            if found["renyi_efficiency"] is not None:
                rows[row]["Rényi efficiency"] = Measure(found["renyi_efficiency"])
        tables = (
            Table("Tokenizers on the held-out text", _COLUMNS, rows, compare(sides, self._references)),
            Table("What a byte costs", _COST_COLUMNS, costs),
        )
        keys = ("fingerprint", "vocabulary", "digits")
        return SectionReport(
            name=self.name,
            title="Tokenizers and cost",
            about=ABOUT,
            tables=tables,
            bars=(Bars("Bytes per token by domain", "bytes", self._domains(results)),),
            facts={
                "renyi_alpha": ALPHA,
                "tokenizers": {row: {key: found[key] for key in keys} for row, found in results.items()},
            },
            metrics={
                f"{row}.{name.lower().replace(' ', '_').replace('é', 'e')}": measure.value
                for table in tables
                for row, named in table.rows.items()
                for name, measure in named.items()
            },
        )

    def _domains(self, results: Mapping[str, Any]) -> dict[str, dict[str, Measure]]:
        from stages.evaluation.statistics import ratio

        found: dict[str, dict[str, Measure]] = {}
        for row, result in results.items():
            by_domain: dict[str, list[Mapping[str, int]]] = {}
            for document, counts in zip(self._documents, result["documents"], strict=True):
                by_domain.setdefault(document.domain, []).append(counts)
            sides = {domain: _sides(counts).get("bytes per token") for domain, counts in by_domain.items()}
            found[row] = {domain: ratio(*side) for domain, side in sides.items() if side is not None}
        return found


def sections(options: CardOptions, documents: Sequence[Document], context: SectionContext) -> list[Section]:
    """The section of ``card``.

    Raises:
        StageError: there is no plain text.
    """
    if not documents:
        raise StageError("card: data.eval has no plain text, only conversations; give some, or leave the card out")
    return [Cards(documents, context.references())]


def _sides(documents: Sequence[Mapping[str, int]]) -> dict[str, tuple[list[float], list[float]]]:
    """Column -> its numerators and denominators, a value a document; without those that divide by nothing."""
    return {
        name: (
            [factor * counts[numerator] for counts in documents],
            [float(counts[denominator]) for counts in documents],
        )
        for name, (numerator, denominator, factor) in _QUOTIENTS.items()
        if any(counts[denominator] for counts in documents)
    }


def _costs(measures: Mapping[str, Measure], positions: int | None) -> dict[str, Measure]:
    """A measure of each of ``_COST_COLUMNS`` that is known."""
    costs = {}
    if "tokens per byte" in measures:
        costs["forward passes per byte"] = measures["tokens per byte"]
    if positions is not None:
        costs["context"] = Measure(positions)
        if (size := measures.get("bytes per token")) is not None:
            ends = (None if value is None else positions * value for value in (size.low, size.high))
            costs["context of text"] = Measure(positions * size.value, *ends, size.too_few)
    return costs
