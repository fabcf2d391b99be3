"""The ``evaluate`` stage: bits per byte and agreement with the teacher, for every model on the same bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from stages.artifacts import DocumentsArtifact, ModelArtifact, ReportArtifact, write_json
from stages.stage import Input, StageConfig, StageContext, StageError, StageInterrupted, not_keyed

if TYPE_CHECKING:
    from stages.evaluation.comparison import Row
    from stages.evaluation.scoring import ModelScores
    from stages.evaluation.statistics import DocumentScore
    from stages.evaluation.windows import Document

SECONDS_BETWEEN_PROGRESS = 5.0


class EvaluateConfig(StageConfig):
    """What to compare, and on how much text."""

    initial: str | None = None
    """Stage whose model is the zero point of "gap closed"; without it that column is left out."""
    trained_domains: tuple[str, ...] = ()
    """Domains of the evaluation data that the students were trained on; only marks them in the table."""
    window_bytes: int = Field(1500, ge=16)
    """Documents are cut into windows of at most this many bytes; no model sees past its window."""
    max_documents: int | None = Field(None, ge=1)
    """Evaluate on the first so many documents of each domain; all by default."""
    batch_tokens: int = not_keyed(4096, ge=1)
    """Tokens of one forward pass, padding included."""


class Evaluate:
    """Scores the teacher and every model under ``needs`` on held-out documents."""

    VERSION: ClassVar[int] = 1
    Config = EvaluateConfig
    inputs: ClassVar[Mapping[str, Input]] = {
        "models": Input(ModelArtifact, many=True),
        "teacher": Input(ModelArtifact, source="teacher"),
        "documents": Input(DocumentsArtifact, source="eval"),
    }
    output = ReportArtifact

    def run(self, ctx: StageContext) -> None:
        """Write ``report.json``, ``metrics.json``, ``table.txt`` and ``curves.png``.

        The scores of each finished model are kept in ``ctx.work``, so an interrupted evaluation goes on with the
        next model.

        Raises:
            StageError: the configuration names what is not there, the documents give nothing to score, or a model
                cannot be scored.
            StageInterrupted: asked to stop.
        """
        from stages.evaluation.comparison import prepare
        from stages.evaluation.plot import draw, read_curve
        from stages.evaluation.report import TEACHER, build_report, flat_metrics, to_json
        from stages.evaluation.table import render
        from stages.evaluation.windows import read_documents

        if ctx.world_size > 1:
            raise StageError("evaluate runs in one process; give it `launcher: local` under resources")
        if TEACHER in ctx.inputs["models"]:
            raise StageError(f"a model stage under needs is called {TEACHER!r}, which is the teacher's row; rename it")
        paths = {TEACHER: ctx.input("teacher"), **ctx.inputs["models"]}
        documents = read_documents(ctx.input("documents"), ctx.config.max_documents)
        _check_names(ctx.config, ctx.inputs["models"], documents)

        documents, rows = prepare(paths, documents, ctx.config.window_bytes)
        scores = _score_all(ctx, documents, rows)
        report = build_report(documents, scores, trained=ctx.config.trained_domains, initial=ctx.config.initial)
        settings = ctx.config.model_dump(mode="json", include={"window_bytes", "max_documents"})
        write_json(ctx.out / "report.json", to_json(report, documents, scores, settings))
        write_json(ctx.out / "metrics.json", flat_metrics(report))
        (ctx.out / "table.txt").write_text(render(report), encoding="utf-8")
        curves = {name: curve for name, path in paths.items() if (curve := read_curve(path)) is not None}
        draw(report, curves, ctx.out / "curves.png")
        for line in report.warnings:
            ctx.progress(f"evaluate: WARNING: {line}")


def _check_names(config: EvaluateConfig, models: Mapping[str, Path], documents: Sequence[Document]) -> None:
    """Refuse names that would silently leave out a column or mislabel one."""
    if config.initial is not None and config.initial not in models:
        raise StageError(f"initial: {config.initial!r} is not among the models under needs: {', '.join(models)}")
    domains = dict.fromkeys(document.domain for document in documents)
    unknown = [domain for domain in config.trained_domains if domain not in domains]
    if unknown:
        raise StageError(
            f"trained_domains: {', '.join(unknown)} not in the evaluation data; its domains are {', '.join(domains)}"
        )


def _score_all(ctx: StageContext, documents: Sequence[Document], rows: Sequence[Row]) -> dict[str, list[DocumentScore]]:
    """Row name -> one score a document. The teacher's is the first row."""
    from stages.evaluation.comparison import document_scores

    scores = {}
    teacher: ModelScores | None = None
    for number, row in enumerate(rows, start=1):
        result = _score_model(ctx, row, f"{row.name} {number}/{len(rows)}")
        teacher = teacher or result
        scores[row.name] = document_scores(rows[0], teacher, row, result, len(documents))
    return scores


def _score_model(ctx: StageContext, row: Row, label: str) -> ModelScores:
    """The model's scores, computed or read from what an earlier attempt saved."""
    from stages.evaluation.scoring import ModelScores, load_model, score_windows

    saved = ctx.work / f"{row.name}.npz"
    if saved.exists():
        ctx.progress(f"evaluate: {label}, scored by an earlier attempt")
        return ModelScores.load(saved)
    ctx.progress(f"evaluate: {label}, loading")
    scores = score_windows(
        load_model(row.path),
        row.windows,
        prefix_ids=row.view.prefix_ids,
        vocab_size=row.view.vocab_size,
        batch_tokens=ctx.config.batch_tokens,
        on_batch=_progress(ctx, label),
    )
    scores.save(saved)
    return scores


def _progress(ctx: StageContext, label: str) -> Callable[[float], None]:
    """A callback for the share done: says so now and then, and stops the stage when it is asked to."""
    last = time.monotonic()

    def report(share: float) -> None:
        nonlocal last
        if ctx.should_stop():
            raise StageInterrupted(f"evaluate: stopped at {label}; finished models are kept")
        if time.monotonic() - last >= SECONDS_BETWEEN_PROGRESS:
            ctx.progress(f"evaluate: {label}, {share:.0%}")
            last = time.monotonic()

    return report
