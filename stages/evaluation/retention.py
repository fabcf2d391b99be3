"""What a model kept: bits per byte on held-out text by domain, and how close it stays to its teacher."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stages.evaluation import retention_tables
from stages.evaluation.comparison import Comparison, Row, document_scores, prepare, with_agreement
from stages.evaluation.core import Ability, Watch
from stages.evaluation.preflight import lost_domains
from stages.evaluation.report import build_report, flat_metrics, to_data
from stages.evaluation.scoring import ModelScores, RowScorer, score_windows
from stages.evaluation.sections import TEACHER, SectionContext, SectionReport, Skipped, Subject
from stages.evaluation.statistics import DocumentScore
from stages.evaluation.windows import Document
from stages.stage import StageError


class Retention:
    """All models on the same windows of the same documents."""

    name = "retention"
    relies_on: frozenset[Ability] = frozenset({"score_texts"})

    def __init__(self, documents: Sequence[Document], context: SectionContext, window_bytes: int) -> None:
        views = {row: view for row, view in context.views.items() if not lost_domains(documents, context.changed[row])}
        self._context = context
        self._window_bytes = window_bytes
        self._asked = len(documents)
        self._comparison = prepare(views, documents, window_bytes) if views else Comparison([], {}, {})

    def score(self, subject: Subject, watch: Watch) -> dict[str, Any]:
        """Log-probability and greedy token of every scored token; of a model that is none of tokens, nats and tokens
        of every document.

        Raises:
            StageError: a window is longer than the model's context, or it gives no log-probabilities.
        """
        if subject.model is not None:
            row = self._comparison.rows[subject.name]
            scores = score_windows(
                subject.model,
                row.windows,
                prefix_ids=row.view.prefix_ids,
                vocab_size=row.view.vocab_size,
                batch_tokens=self._context.batch_tokens,
                on_batch=watch,
            )
        elif isinstance(subject.scorer, RowScorer):
            scores = subject.scorer.score_rows(self._comparison.rows[subject.name].windows, watch)
        else:
            return self._score_by_requests(subject, watch)
        return {"logp": _packed(scores.logp), "greedy": _packed(scores.greedy)}

    def _score_by_requests(self, subject: Subject, watch: Watch) -> dict[str, Any]:
        spans = self._comparison.spans
        scores = subject.scorer.score(self._comparison.requests(), watch)
        problems = [score.problem for score in scores if score.problem is not None]
        if problems:
            raise StageError(f"{len(problems)} of {len(scores)} windows have no score: the first {problems[0]}")
        totals = [[0, 0.0, 0] for _ in self._comparison.documents]
        for span, score in zip(spans, scores, strict=True):
            total = totals[span.document]
            total[:] = [total[0] + score.bytes, total[1] + score.nats, total[2] + score.tokens]
        return {"documents": totals}

    def report(self, results: Mapping[str, Any]) -> SectionReport:
        """Tables of bits per byte and of agreement with the teacher, and every document's numbers."""
        comparison, context = self._comparison, self._context
        scores = self._scores(results)
        report = build_report(
            comparison.documents,
            scores,
            trained=context.trained_domains,
            initial=context.initial,
            references=context.references(),
        )
        tables = retention_tables.tables(report)
        return SectionReport(
            name=self.name,
            title="Retention",
            about=retention_tables.about(report),
            tables=tables,
            bars=(retention_tables.bars(report, tables[0]),),
            skipped=tuple(Skipped(f"document {name}", why) for name, why in comparison.left_out.items()),
            warnings=report.warnings,
            facts={
                "window_bytes": self._window_bytes,
                "documents": f"{len(comparison.documents)} of {self._asked}",
                "scored bytes": sum(score.bytes for score in next(iter(scores.values()))),
            },
            metrics=flat_metrics(report),
            data=to_data(report, comparison.documents, scores),
        )

    def _scores(self, results: Mapping[str, Any]) -> dict[str, list[DocumentScore]]:
        count = len(self._comparison.documents)
        tokens = {
            name: ModelScores(_unpacked(result["logp"], np.float32), _unpacked(result["greedy"], np.int32))
            for name, result in results.items()
            if "logp" in result
        }
        rows = self._comparison.rows
        scores = {}
        for name, result in results.items():
            if name not in tokens:
                scores[name] = [DocumentScore(*total, 0, 0.0, 0) for total in result["documents"]]
                continue
            scores[name] = document_scores(rows[name], tokens[name], count)
            if TEACHER in tokens:
                teacher: Row = rows[TEACHER]
                scores[name] = with_agreement(scores[name], teacher, tokens[TEACHER], rows[name], tokens[name])
        return scores


def _packed(array: np.ndarray) -> str:
    """Bit for bit, and a third of what the numbers take as text."""
    return base64.b64encode(array.tobytes()).decode()


def _unpacked(text: str, dtype: type[np.generic]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=dtype)
