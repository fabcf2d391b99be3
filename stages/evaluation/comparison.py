"""All models on the same documents: their windows before scoring, their scores per document after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from alignment.byte_view import ByteView, InexactEncoding
from stages.evaluation.agreement import ScoredTokens, window_agreement
from stages.evaluation.core import Request
from stages.evaluation.scoring import ModelScores
from stages.evaluation.statistics import DocumentScore
from stages.evaluation.windows import Document, Window, cut, shared_ends, window
from stages.stage import StageError


@dataclass(frozen=True)
class Row:
    """One model of the comparison, and the windows as its tokenizer spells them."""

    name: str
    view: ByteView
    windows: Sequence[Window]


@dataclass(frozen=True)
class Comparison:
    """What all models are scored on.

    Attributes:
        documents: those that have something to score.
        rows: row name -> a window for every span of them.
        left_out: id -> why a document is scored for no model.
    """

    documents: Sequence[Document]
    rows: Mapping[str, Row]
    left_out: Mapping[str, str]

    @property
    def spans(self) -> Sequence[Window]:
        """The windows as one of the models has them: their documents and bytes are the same for all."""
        return next(iter(self.rows.values())).windows

    def requests(self) -> list[Request]:
        """The windows in text, for scorers that are none of tokens."""
        found = []
        for span in self.spans:
            data = self.documents[span.document].text.encode()
            context, end = span.context_begin, int(span.ends[-1])
            found.append(Request(data[context : span.begin].decode(), data[span.begin : end].decode()))
        return found


def prepare(views: Mapping[str, ByteView], documents: Sequence[Document], window_bytes: int) -> Comparison:
    """Cut ``documents`` for all models of ``views`` (row name -> tokenizer) alike.

    A document that one of the tokenizers does not reproduce is left out for all models, so that all numbers are of the
    same bytes; and so is one that is too short to have anything to score.

    Raises:
        StageError: a domain has nothing to score.
    """
    # Models that share a tokenizer share its encodings and windows.
    distinct = {view.fingerprint: view for view in views.values()}
    windows: dict[str, list[Window]] = {fingerprint: [] for fingerprint in distinct}
    kept: list[Document] = []
    left_out: dict[str, str] = {}
    for document in documents:
        try:
            encodings = {fingerprint: view.encode(document.text) for fingerprint, view in distinct.items()}
        except InexactEncoding as error:
            left_out[document.id] = str(error)
            continue
        spans = cut(shared_ends(document.text, [encoding.byte_ends for encoding in encodings.values()]), window_bytes)
        if not spans:
            left_out[document.id] = f"no window of {window_bytes} bytes has two token ends common to all tokenizers"
            continue
        for fingerprint, encoding in encodings.items():
            windows[fingerprint] += [window(len(kept), encoding.ids, encoding.byte_ends, span) for span in spans]
        kept.append(document)
    empty = [domain for domain in _domains(documents) if domain not in _domains(kept)]
    if empty:
        reason = next(left_out[document.id] for document in documents if document.domain in empty)
        raise StageError(
            f"nothing to score in the evaluation data ({', '.join(empty)}): {reason}; give other or longer documents, "
            "or leave the domain out of data.eval"
        )
    rows = {name: Row(name, view, windows[view.fingerprint]) for name, view in views.items()}
    return Comparison(kept, rows, left_out)


def _domains(documents: Sequence[Document]) -> dict[str, None]:
    return dict.fromkeys(document.domain for document in documents)


def document_scores(model: Row, scores: ModelScores, documents: int) -> list[DocumentScore]:
    """What ``model`` scored on each of the ``documents``, without a teacher."""
    totals = [DocumentScore(0, 0.0, 0, 0, 0.0, 0)] * documents
    for part, tokens in zip(model.windows, _tokens(model, scores), strict=True):
        total = totals[part.document]
        totals[part.document] = replace(
            total,
            bytes=total.bytes + part.scored_bytes,
            nats=total.nats - float(tokens.logp.sum(dtype=np.float64)),
            tokens=total.tokens + part.scored_tokens,
        )
    return totals


def with_agreement(
    totals: Sequence[DocumentScore], teacher: Row, teacher_scores: ModelScores, model: Row, model_scores: ModelScores
) -> list[DocumentScore]:
    """``totals`` of ``model``, and how far it is from ``teacher`` on each document."""
    totals = list(totals)
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
