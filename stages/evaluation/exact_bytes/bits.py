"""The section ``exact_bytes``: bits per byte of all that a text could have been cut into, beside its own tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from stages.evaluation.core import Ability, Watch
from stages.evaluation.exact_bytes.options import ESTIMATORS, EstimatorName
from stages.evaluation.sections import Column, Measure, Section, SectionContext, SectionReport, Skipped, Subject, Table
from stages.stage import StageConfig

if TYPE_CHECKING:
    from stages.evaluation.exact_bytes.passages import Passage
    from stages.evaluation.windows import Document

ABOUT = (
    "Passages of the held-out text, cut after a number of bytes wherever that falls. Exact: bits per byte of the "
    "probability that a text begins with the passage, summed over the coverings of its last bytes by tokens. "
    "Canonical: bits per byte of the one sequence of tokens that the tokenizer makes of the passage, which pays for a "
    "token that happens to be cut. Their difference is what a comparison at such cuts would charge to the tokenizer. "
    "Tokens computed: those of the exact sums, for each one of the canonical sequence. Coverings: {estimator}"
)
EXACT, CANONICAL, GAP, WORK = "exact", "canonical", "canonical - exact", "tokens computed"


class ExactBytesOptions(StageConfig):
    """Exact bits per byte beside canonical ones."""

    passages: int = Field(20, ge=1)
    """Passages of each domain, from the start; at most so many."""
    passage_bytes: int = Field(512, ge=16)
    """Longest passage."""
    estimator: EstimatorName = "valid"
    """Which token sequences count: those that the tokenizer could have made, or those with any last token."""


@dataclass(frozen=True)
class ExactBytesSection:
    """Exact and canonical probabilities of passages."""

    name: ClassVar[str] = "exact_bytes"
    relies_on: ClassVar[frozenset[Ability]] = frozenset({"score_texts"})

    options: ExactBytesOptions
    passages: Sequence[Passage]
    skipped: Sequence[Skipped]
    context: SectionContext

    def score(self, subject: Subject, watch: Watch) -> dict[str, Any]:
        """Nats of every passage, exact and canonical, and the work.

        Raises:
            StageError: the model's next-token distributions cannot be had.
        """
        from stages.evaluation.exact_bytes.scorer import ExactByteScorer

        scorer = ExactByteScorer.of_subject(
            subject, batch_tokens=self.context.batch_tokens, estimator=self.options.estimator
        )
        found = scorer.documents([passage.text for passage in self.passages], watch)
        return {
            "exact": [-document.log_probability for document in found],
            "canonical": [-document.canonical for document in found],
            "tokens": sum(document.tokens for document in found),
            "computed": scorer.tokens.cost.tokens,
            "passes": scorer.tokens.cost.passes,
            "method": scorer.covers.method,
        }

    def report(self, results: Mapping[str, Mapping[str, Any]]) -> SectionReport:
        """Ratios of sums over passages, with bootstrap intervals over documents."""
        from stages.evaluation.statistics import compare, ratio

        sides = {row: self._sides(result) for row, result in results.items()}
        rows = {row: {column: ratio(*side) for column, side in named.items()} for row, named in sides.items()}
        columns = (
            Column(EXACT, "bits per byte", "lower"),
            Column(CANONICAL, "bits per byte", "lower"),
            Column(GAP, "bits per byte", digits=4),
            Column(WORK, digits=2),
        )
        for row, result in results.items():
            rows[row][WORK] = Measure(result["computed"] / result["tokens"])
        return SectionReport(
            name=self.name,
            title="Exact bits per byte",
            about=ABOUT.format(estimator=ESTIMATORS[self.options.estimator]),
            tables=(Table("Bits per byte of passages", columns, rows, compare(sides, self.context.references())),),
            skipped=tuple(self.skipped),
            facts={
                **self.options.model_dump(mode="json"),
                "passages": len(self.passages),
                "bytes": sum(len(passage.text.encode()) for passage in self.passages),
                "forward passes": {row: result["passes"] for row, result in results.items()},
                "valid sequences known by": {row: result["method"] for row, result in results.items()},
            },
            metrics={
                f"{row}.{name}": named[column].value
                for row, named in rows.items()
                for name, column in (("bits_per_byte", EXACT), ("canonical_bits_per_byte", CANONICAL))
            },
        )

    def _sides(self, result: Mapping[str, Any]) -> dict[str, tuple[list[float], list[float]]]:
        """Column -> bits and bytes of every document."""
        documents = list(dict.fromkeys(passage.document for passage in self.passages))
        size, exact, canonical = (dict.fromkeys(documents, 0.0) for _ in range(3))
        for passage, left, right in zip(self.passages, result["exact"], result["canonical"], strict=True):
            size[passage.document] += len(passage.text.encode())
            exact[passage.document] += left / math.log(2)
            canonical[passage.document] += right / math.log(2)
        gap = [canonical[name] - exact[name] for name in documents]
        bytes_ = list(size.values())
        return {
            EXACT: (list(exact.values()), bytes_),
            CANONICAL: (list(canonical.values()), bytes_),
            GAP: (gap, bytes_),
        }


def sections(options: ExactBytesOptions, documents: Sequence[Document], context: SectionContext) -> list[Section]:
    """The section of ``exact_bytes``.

    Raises:
        StageError: there is no text that all tokenizers spell.
    """
    from stages.evaluation.exact_bytes.passages import passages, spelled_by_all

    kept, skipped = spelled_by_all(documents, context, ExactBytesSection.name)
    cut = passages(kept, options.passage_bytes)
    asked = [
        passage
        for domain in dict.fromkeys(passage.domain for passage in cut)
        for passage in [other for other in cut if other.domain == domain][: options.passages]
    ]
    return [ExactBytesSection(options, asked, skipped, context)]
