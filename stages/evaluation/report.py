"""The numbers of retention: all models on the same documents, pooled by domain, and as programs read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stages.evaluation.sections import TEACHER
from stages.evaluation.statistics import (
    SMALLEST_GAP,
    DocumentScore,
    DomainResult,
    gap_closed,
    summarise,
)
from stages.evaluation.windows import Document

DEFINITIONS = {
    "bits_per_byte": "sum of nats / (ln 2 * sum of bytes) over all documents of a domain; bytes of the original UTF-8 "
    "text. Every model predicts the same bytes after the same bytes of context: windows are cut, and scoring starts, "
    "where tokens of all models end. A BOS is context and only where the tokenizer adds one; an EOS is not counted. "
    "The text is spelled as each tokenizer spells it, so this is an upper bound.",
    "agreement_nats": "mean |log p(teacher) - log p(model)| over the chunks between byte boundaries that the tokens of "
    "both share, in nats; 0 is perfect.",
    "top1": "share of those chunks at whose start the most probable tokens of teacher and model agree: the bytes of "
    "one are a prefix of the other's; a special token agrees only with a special token.",
    "tokens_per_byte": "tokens that spell the scored bytes / scored bytes.",
    "nats_per_chunk": "the model's own mean negative log-probability of a chunk.",
    "gap_closed": "(initial - model) / (initial - teacher) in bits per byte; domains where initial - teacher is below "
    f"{SMALLEST_GAP} are left out.",
    "difference": "the model minus the reference, with a 95 % paired bootstrap interval over documents; none where "
    "the domain has one document.",
}


@dataclass(frozen=True)
class ModelResult:
    """One row of the table.

    Attributes:
        domains: domain -> numbers.
        gap_closed: domain -> share of the gap closed; empty without an initial model or a teacher.
    """

    name: str
    domains: Mapping[str, DomainResult]
    gap_closed: Mapping[str, float]

    @property
    def gap_closed_mean(self) -> float | None:
        """Mean over the domains that have a gap; None if there is none."""
        return sum(self.gap_closed.values()) / len(self.gap_closed) if self.gap_closed else None

    @property
    def tokens_per_byte(self) -> float:
        """Over all domains together."""
        total = sum(result.bytes for result in self.domains.values())
        return sum(result.tokens_per_byte * result.bytes for result in self.domains.values()) / total


@dataclass(frozen=True)
class Report:
    """The numbers of the documents.

    Attributes:
        models: the rows, the teacher first if it was scored.
        scores: row name -> domain -> one score a document.
        references: role -> row that the others are compared with.
        trained, untrained: domains; all are in ``untrained`` when the recipe does not say which were trained on.
        initial: the row from which "gap closed" counts, if any.
        no_gap: domains left out of "gap closed" because initial student and teacher are equally good there.
        warnings: lines for the user.
    """

    models: tuple[ModelResult, ...]
    scores: Mapping[str, Mapping[str, Sequence[DocumentScore]]]
    references: Mapping[str, str]
    trained: tuple[str, ...]
    untrained: tuple[str, ...]
    initial: str | None
    no_gap: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def domains(self) -> tuple[str, ...]:
        """Trained domains first."""
        return self.trained + self.untrained

    def note(self, domain: str) -> str:
        """Whether a domain was trained on, where the recipe says so."""
        return ("trained" if domain in self.trained else "untrained") if self.trained else ""


def build_report(
    documents: Sequence[Document],
    scores: Mapping[str, Sequence[DocumentScore]],
    *,
    trained: Sequence[str],
    initial: str | None,
    references: Mapping[str, str],
) -> Report:
    """Pool ``scores`` (row name -> one score a document) by the documents' domains.

    ``initial`` and ``references`` (role -> row) count as far as they are among the rows.
    """
    members: dict[str, list[int]] = {}
    for index, document in enumerate(documents):
        members.setdefault(document.domain, []).append(index)
    by_domain = {
        name: {domain: [values[index] for index in indices] for domain, indices in members.items()}
        for name, values in scores.items()
    }
    results = {
        name: {domain: summarise(values) for domain, values in domains.items()} for name, domains in by_domain.items()
    }
    with_gap = initial in results and TEACHER in results
    models = tuple(
        ModelResult(name, domains, gap_closed(domains, results[initial], results[TEACHER]) if with_gap else {})
        for name, domains in results.items()
    )
    return Report(
        models=models,
        scores=by_domain,
        references=references,
        trained=tuple(domain for domain in members if domain in trained),
        untrained=tuple(domain for domain in members if domain not in trained),
        initial=initial if with_gap else None,
        no_gap=tuple(domain for domain in members if domain not in models[0].gap_closed) if with_gap else (),
        warnings=tuple(_misalignments(models)),
    )


def _misalignments(models: Sequence[ModelResult]) -> list[str]:
    return [
        f"{model.name} on {domain}: differs from the teacher by {result.agreement_nats:.3f} nats a chunk, more than "
        f"its own {result.nats_per_chunk:.3f}; this looks misaligned. If the teacher itself does well on this text, "
        f"look for bytes that are shifted between the two"
        for model in models
        for domain, result in model.domains.items()
        if result.agreement_nats is not None and result.agreement_nats > result.nats_per_chunk
    ]


def to_data(
    report: Report, documents: Sequence[Document], scores: Mapping[str, Sequence[DocumentScore]]
) -> dict[str, Any]:
    """The numbers for programs: of each model by domain, and of each document by model."""
    return {
        "definitions": DEFINITIONS,
        "trained_domains": list(report.trained),
        "untrained_domains": list(report.untrained),
        "initial": report.initial,
        "domains_without_gap": list(report.no_gap),
        "models": {
            model.name: {
                "gap_closed_mean": model.gap_closed_mean,
                "domains": {
                    domain: {**asdict(result), "gap_closed": model.gap_closed.get(domain)}
                    for domain, result in model.domains.items()
                },
            }
            for model in report.models
        },
        "documents": [
            {
                "id": document.id,
                "domain": document.domain,
                "models": {name: asdict(values[index]) for name, values in scores.items()},
            }
            for index, document in enumerate(documents)
        ],
    }


def flat_metrics(report: Report) -> dict[str, float]:
    """``<row>.<measure>.<domain>`` and ``<row>.gap_closed_mean``."""
    metrics = {}
    for model in report.models:
        for domain, result in model.domains.items():
            for measure in ("bits_per_byte", "agreement_nats", "top1"):
                if (value := getattr(result, measure)) is not None:
                    metrics[f"{model.name}.{measure}.{domain}"] = value
        metrics[f"{model.name}.tokens_per_byte"] = model.tokens_per_byte
        if model.gap_closed_mean is not None:
            metrics[f"{model.name}.gap_closed_mean"] = model.gap_closed_mean
    return metrics
