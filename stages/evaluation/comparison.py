"""All models on the same documents: their windows before scoring, their scores per document after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from alignment.byte_view import ByteView, InexactEncoding
from stages.evaluation.agreement import ScoredTokens, window_agreement
from stages.evaluation.scoring import ModelScores
from stages.evaluation.statistics import DocumentScore
from stages.evaluation.windows import Document, Window, common_boundaries, cut, window
from stages.stage import StageError


@dataclass(frozen=True)
class Row:
    """One model of the comparison, and the windows as its tokenizer spells them."""

    name: str
    path: Path
    view: ByteView
    windows: Sequence[Window]


def prepare(
    paths: Mapping[str, Path], documents: Sequence[Document], window_bytes: int
) -> tuple[list[Document], list[Row]]:
    """Cut ``documents`` for all models of ``paths`` (row name -> model directory) alike.

    Returns:
        The documents that have something to score, and one row a model with a window for every span.

    Raises:
        StageError: a tokenizer does not reproduce a document, or a domain has nothing to score.
    """
    views = {name: ByteView.from_tokenizer(path) for name, path in paths.items()}
    # Models that share a tokenizer share its encodings and windows.
    distinct = {view.fingerprint: view for view in views.values()}
    windows: dict[str, list[Window]] = {fingerprint: [] for fingerprint in distinct}
    kept: list[Document] = []
    for document in documents:
        try:
            encodings = {fingerprint: view.encode(document.text) for fingerprint, view in distinct.items()}
        except InexactEncoding as error:
            raise StageError(f"document {document.id}: {error}") from error
        spans = cut(common_boundaries([encoding.byte_ends for encoding in encodings.values()]), window_bytes)
        if not spans:
            continue
        for fingerprint, encoding in encodings.items():
            windows[fingerprint] += [window(len(kept), encoding.ids, encoding.byte_ends, span) for span in spans]
        kept.append(document)
    empty = {document.domain for document in documents} - {document.domain for document in kept}
    if empty or not kept:
        raise StageError(
            f"nothing to score in the evaluation data ({', '.join(sorted(empty)) or 'no documents'}): no window of "
            f"{window_bytes} bytes has two token ends common to all tokenizers; give longer documents"
        )
    rows = [Row(name, path, views[name], windows[views[name].fingerprint]) for name, path in paths.items()]
    return kept, rows


def document_scores(
    teacher: Row, teacher_scores: ModelScores, model: Row, model_scores: ModelScores, documents: int
) -> list[DocumentScore]:
    """What ``model`` scored on each of the ``documents``, and how far it is from ``teacher`` there."""
    totals = [DocumentScore(0, 0.0, 0, 0, 0.0, 0)] * documents
    sides = zip(
        teacher.windows, _tokens(teacher, teacher_scores), model.windows, _tokens(model, model_scores), strict=True
    )
    for teacher_window, teacher_tokens, model_window, model_tokens in sides:
        if teacher_window.begin != model_window.begin:
            raise ValueError(f"{teacher.name} and {model.name} are scored from different bytes of a document")
        found = window_agreement(
            teacher_tokens,
            model_tokens,
            teacher.view.token_bytes,
            model.view.token_bytes,
            begin=model_window.begin,
        )
        total = totals[model_window.document]
        totals[model_window.document] = replace(
            total,
            bytes=total.bytes + model_window.scored_bytes,
            nats=total.nats - float(model_tokens.logp.sum(dtype=np.float64)),
            tokens=total.tokens + model_window.scored_tokens,
            chunks=total.chunks + found.chunks,
            absolute_difference=total.absolute_difference + found.absolute_difference,
            same_top1=total.same_top1 + found.same_top1,
        )
    return totals


def _tokens(row: Row, scores: ModelScores) -> Iterator[ScoredTokens]:
    """The scored tokens of each window of ``row``."""
    offset = 0
    for part in row.windows:
        here = slice(offset, offset + part.scored_tokens)
        yield ScoredTokens(part.ends[part.first_scored :], scores.logp[here], scores.greedy[here])
        offset = here.stop
