"""The section ``next_byte``: how far a model's next-byte distribution is from the teacher's, on held-out text.

Tokens differ between tokenizers, bytes do not: every model has a distribution over the same 256 bytes and the end of
the text at the same places, also inside words (``stages.evaluation.exact_bytes.scorer``).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from stages.evaluation.core import Ability, Watch
from stages.evaluation.exact_bytes.options import ESTIMATORS, EstimatorName
from stages.evaluation.sections import (
    TEACHER,
    Bars,
    Column,
    Measure,
    Section,
    SectionContext,
    SectionReport,
    Skipped,
    Subject,
    Table,
)
from stages.stage import StageConfig

if TYPE_CHECKING:
    import numpy as np

    from stages.evaluation.exact_bytes.passages import Passage
    from stages.evaluation.windows import Document

ABOUT = (
    "At places drawn from the held-out text, inside words and between them, every model says what the next byte is, "
    "from the same bytes before. KL: the divergence of its distribution over the 256 bytes and the end of the text "
    "from the teacher's, KL(teacher || model), in nats; a byte to which a model gives less than e^-30 counts as e^-30. "
    "Same first: how often the most probable byte is the teacher's. Own byte: bits for the byte that the text has "
    "there. Distributions are exact sums over the coverings of the text by tokens. Coverings: {estimator}"
)
FLOOR = -30.0
"""Log-probability in nats that a byte has at least, where models are compared."""
KL, SAME, OWN = "KL to teacher", "same first", "own byte"


class NextByteOptions(StageConfig):
    """Next-byte distributions at places of the held-out text."""

    positions: int = Field(200, ge=2)
    """Places at which models are asked, drawn from all documents alike."""
    context_bytes: int = Field(512, ge=16)
    """Documents are cut into passages of so many bytes; no model sees beyond its passage."""
    seed: int = Field(0, ge=0)
    """Draws the places."""
    estimator: EstimatorName = "valid"
    """Which token sequences count: those that the tokenizer could have made, or those with any last token."""


@dataclass(frozen=True)
class NextByteSection:
    """The next byte at drawn places."""

    name: ClassVar[str] = "next_byte"
    relies_on: ClassVar[frozenset[Ability]] = frozenset({"score_texts"})

    options: NextByteOptions
    asked: Sequence[tuple[Passage, Sequence[int]]]
    skipped: Sequence[Skipped]
    context: SectionContext

    def score(self, subject: Subject, watch: Watch) -> dict[str, Any]:
        """The distributions at all places, float32 [positions, 257] as base64.

        Raises:
            StageError: the model's next-token distributions cannot be had.
        """
        import numpy as np

        from stages.evaluation.exact_bytes.scorer import ExactByteScorer, Places

        scorer = ExactByteScorer.of_subject(
            subject, batch_tokens=self.context.batch_tokens, estimator=self.options.estimator
        )
        places = [Places(passage.text.encode(), ends) for passage, ends in self.asked]
        found = scorer.masses(places, what_next=True, watch=watch)
        logp = np.stack([masses.next_logp for row in found for masses in row])
        return {"logp": base64.b64encode(logp.astype("<f4").tobytes()).decode(), "method": scorer.covers.method}

    def report(self, results: Mapping[str, Mapping[str, Any]]) -> SectionReport:
        """Means over the places, with bootstrap intervals over documents."""
        from stages.evaluation.statistics import compare, ratio

        values = {row: self._values(result, results.get(TEACHER)) for row, result in results.items()}
        domains = [passage.domain for passage, ends in self.asked for _ in ends]
        units = [passage.document for passage, ends in self.asked for _ in ends]
        sides = {
            row: {column: by_document(column_values, units) for column, column_values in named.items()}
            for row, named in values.items()
        }
        rows = {row: {column: ratio(*side) for column, side in named.items()} for row, named in sides.items()}
        columns = (
            Column(KL, "nats", "lower", digits=4),
            Column(SAME, "%", "higher", digits=1),
            Column(OWN, "bits", "lower", digits=3),
        )
        shown = tuple(column for column in columns if any(column.name in named for named in rows.values()))
        return SectionReport(
            name=self.name,
            title="The next byte",
            about=ABOUT.format(estimator=ESTIMATORS[self.options.estimator]),
            tables=(Table("Next-byte distributions", shown, rows, compare(sides, self.context.references())),),
            bars=_bars(values, domains, units),
            skipped=tuple(self.skipped),
            facts={
                **self.options.model_dump(mode="json"),
                "positions": len(units),
                "valid sequences known by": {row: result["method"] for row, result in results.items()},
            },
            metrics={
                f"{row}.{name}": named[column].value
                for row, named in rows.items()
                for name, column in (("kl_nats", KL), ("same_first_percent", SAME), ("own_byte_bits", OWN))
                if column in named
            },
        )

    def _values(self, result: Mapping[str, Any], teacher: Mapping[str, Any] | None) -> dict[str, list[float]]:
        """Column -> a value for each place. The teacher itself is at no distance."""
        import numpy as np

        logp = _read(result)
        symbols = [passage.text.encode()[end] for passage, ends in self.asked for end in ends]
        own = -np.maximum(logp[np.arange(len(symbols)), symbols], FLOOR) / np.log(2)
        found = {OWN: own.tolist()}
        if teacher is not None and teacher is not result:
            reference = _read(teacher)
            found[KL] = divergence(reference, logp).tolist()
            found[SAME] = (100.0 * (logp.argmax(1) == reference.argmax(1))).tolist()
        return found


def divergence(reference: np.ndarray, logp: np.ndarray) -> np.ndarray:
    """float64 [positions]: KL(reference || model) in nats of log-probabilities [positions, 257]."""
    import numpy as np

    difference = np.maximum(reference, FLOOR) - np.maximum(logp, FLOOR)
    return (np.exp(reference) * difference).sum(axis=1)


def by_document(values: Sequence[float], documents: Sequence[str]) -> tuple[list[float], list[float]]:
    """Sums and counts of each document's values: what a ratio with an interval over documents is made of."""
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    for value, document in zip(values, documents, strict=True):
        sums[document] = sums.get(document, 0.0) + value
        counts[document] = counts.get(document, 0.0) + 1
    return list(sums.values()), list(counts.values())


def sections(options: NextByteOptions, documents: Sequence[Document], context: SectionContext) -> list[Section]:
    """The section of ``next_byte``.

    Raises:
        StageError: there is no text that all tokenizers spell.
    """
    import numpy as np

    from stages.evaluation.exact_bytes.passages import passages, spelled_by_all

    kept, skipped = spelled_by_all(documents, context, NextByteSection.name)
    cut = passages(kept, options.context_bytes)
    # At a passage's first byte there is nothing before it.
    places = [(index, end) for index, passage in enumerate(cut) for end in range(1, len(passage.text.encode()))]
    rng = np.random.default_rng(options.seed)
    chosen = sorted(rng.choice(len(places), size=min(options.positions, len(places)), replace=False).tolist())
    asked: dict[int, list[int]] = {}
    for place in chosen:
        index, end = places[place]
        asked.setdefault(index, []).append(end)
    return [NextByteSection(options, [(cut[index], ends) for index, ends in asked.items()], skipped, context)]


def _read(result: Mapping[str, Any]) -> np.ndarray:
    import numpy as np

    return np.frombuffer(base64.b64decode(result["logp"]), dtype="<f4").reshape(-1, 257).astype(np.float64)


def _bars(
    values: Mapping[str, Mapping[str, Sequence[float]]], domains: Sequence[str], documents: Sequence[str]
) -> tuple[Bars, ...]:
    """KL by domain, of the rows that have one."""
    from stages.evaluation.statistics import ratio

    found: dict[str, dict[str, Measure]] = {}
    for row, named in values.items():
        for domain in dict.fromkeys(domains) if KL in named else ():
            here = [index for index, name in enumerate(domains) if name == domain]
            sums = by_document([named[KL][index] for index in here], [documents[index] for index in here])
            found.setdefault(row, {})[domain] = ratio(*sums)
    return (Bars("KL of the next byte to the teacher, by domain", "nats", found),) if found else ()
