"""Asks every model of every section, one model in memory after another, and writes down what all of them said.

Knows nothing of what a section computes. What a section has of a model is kept in the stage's work directory as soon
as it is there, so an interrupted evaluation goes on with the next section.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from alignment.byte_view import ByteView
from alignment.tokenizer_facts import load_tokenizer
from stages.artifacts import write_json
from stages.evaluation import page
from stages.evaluation.conversations import Conversations
from stages.evaluation.core import ABILITIES, Watch
from stages.evaluation.ensembles.contestant import EnsembleContestant, shared_views
from stages.evaluation.ensembles.options import EnsembleOptions
from stages.evaluation.failures import SectionFailed, check_finite, naming
from stages.evaluation.preflight import Preflight, changed_documents, examine
from stages.evaluation.retention import Retention
from stages.evaluation.scoring import load_model
from stages.evaluation.sections import (
    SCHEMA_VERSION,
    Section,
    SectionContext,
    SectionReport,
    Sections,
    Skipped,
    Subject,
)
from stages.evaluation.table import render
from stages.evaluation.text_start import TextStart
from stages.evaluation.token_scorer import TokenScorer
from stages.evaluation.training_curves import read_training
from stages.evaluation.windows import Conversation, Document
from stages.stage import StageContext, StageError, StageInterrupted

SECONDS_BETWEEN_PROGRESS = 5.0
PREFLIGHT = "preflight"
PACKAGES = ("torch", "transformers", "tokenizers", "numpy")


class Contestant:
    """One model of a recipe, loaded when it is first asked something and forgotten with this object."""

    def __init__(self, name: str, path: Path, context: SectionContext) -> None:
        self.name = name
        self._path = path
        self._context = context

    @cached_property
    def subject(self) -> Subject:
        """The loaded model."""
        model, view = load_model(self._path), self._context.views[self.name]
        scorer = TokenScorer(self.name, model, view, self._start, batch_tokens=self._context.batch_tokens)
        return Subject(self.name, self._path, view, scorer, model)

    def examine(self, documents: Sequence[Document]) -> Preflight:
        """The preflight."""
        view, changed = self._context.views[self.name], self._context.changed[self.name]
        return examine(self.subject.model, self._tokenizer, view, self._start, documents, changed)

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self._path, trust_remote_code=False)

    @cached_property
    def _start(self) -> TextStart:
        return TextStart.of(self._tokenizer, self._context.views[self.name])


def evaluate(
    ctx: StageContext,
    paths: Mapping[str, Path],
    documents: Sequence[Document],
    conversations: Sequence[Conversation],
    makers: Mapping[str, Any],
    *,
    first: Sequence[SectionReport] = (),
) -> None:
    """Write the report of all models of ``paths`` (row name -> directory, the teacher's first) and of the ensembles
    into ``ctx.out``.

    Args:
        makers: "module:function" of ``Sections`` -> the value of its option.
        first: reports that are about the documents and no model; they come before the others.

    Raises:
        StageError: options do not fit the models or documents, or nothing could be measured of any model.
        StageInterrupted: asked to stop.
    """
    context = _context(ctx, paths, documents, conversations)
    sections = _sections(documents, context, makers)
    preflights: dict[str, Preflight] = {}
    results: dict[str, dict[str, Any]] = {section.name: {} for section in sections}
    skipped: dict[str, list[Skipped]] = {section.name: [] for section in sections}
    contestants = _contestants(paths, ctx.config.ensembles, context)
    for number, (row, contestant) in enumerate(contestants.items(), start=1):
        label = f"{row} {number}/{len(contestants)}"
        # Not bound to a name: the model must be gone before the next one is loaded.
        preflights[row], answers = _ask_all(ctx, sections, contestant(), documents, label)
        for section, answer in zip(sections, answers, strict=True):
            if "skipped" in answer:
                skipped[section.name].append(Skipped(section.name, answer["skipped"], row))
            else:
                results[section.name][row] = answer["result"]
    if not any(results.values()):
        reasons = "; ".join(
            f"{entry.what} of {entry.model}: {entry.why}" for found in skipped.values() for entry in found
        )
        raise StageError(f"nothing could be measured of any model: {reasons}")
    ctx.progress("writing the report")
    reports = [
        *first,
        *(_report(section, results[section.name], skipped[section.name]) for section in sections),
    ]
    _write(ctx, paths, reports, preflights)


def _contestants(
    paths: Mapping[str, Path], ensembles: Mapping[str, EnsembleOptions] | None, context: SectionContext
) -> dict[str, Callable[[], Contestant | EnsembleContestant]]:
    """Row name -> what makes its contestant, which loads nothing yet."""

    def of_members(name: str, options: EnsembleOptions) -> EnsembleContestant:
        members = [Contestant(row, paths[row], context) for row in options.rows]
        return EnsembleContestant(name, options, members, context)

    return {
        **{row: partial(Contestant, row, path, context) for row, path in paths.items()},
        **{name: partial(of_members, name, options) for name, options in (ensembles or {}).items()},
    }


def _context(
    ctx: StageContext,
    paths: Mapping[str, Path],
    documents: Sequence[Document],
    conversations: Sequence[Conversation],
) -> SectionContext:
    views = {row: ByteView.from_tokenizer(path) for row, path in paths.items()}
    views |= shared_views(ctx.config.ensembles or {}, views)
    # Models that share a tokenizer share what it changes.
    distinct = {view.fingerprint: view for view in views.values()}
    changed = {fingerprint: changed_documents(view, documents) for fingerprint, view in distinct.items()}
    return SectionContext(
        paths=paths,
        views=views,
        trained_domains=ctx.config.trained_domains,
        initial=ctx.config.initial,
        control=ctx.config.control,
        changed={row: changed[view.fingerprint] for row, view in views.items()},
        conversations=conversations,
        batch_tokens=ctx.config.batch_tokens,
        cache=ctx.cache,
        window_bytes=ctx.config.window_bytes,
    )


def _sections(documents: Sequence[Document], context: SectionContext, makers: Mapping[str, Any]) -> list[Section]:
    found: list[Section] = [Retention(documents, context, context.window_bytes)] if documents else []
    if context.conversations:
        found.append(Conversations(context.conversations, context))
    for target, options in makers.items():
        module, attribute = target.split(":")
        make: Sections = getattr(importlib.import_module(module), attribute)
        found += make(options, documents, context)
    names = [section.name for section in found]
    if len(set(names)) < len(names):
        raise ValueError(f"two sections have one name: {', '.join(names)}")
    return found


def _ask_all(
    ctx: StageContext,
    sections: Sequence[Section],
    model: Contestant | EnsembleContestant,
    documents: Sequence[Document],
    label: str,
) -> tuple[Preflight, list[dict[str, Any]]]:
    """The preflight and what every section has of one model, made or read from what an earlier attempt kept."""
    kept = {section.name: ctx.work / f"{section.name}-{model.name}.json" for section in sections}
    checks = ctx.work / f"{PREFLIGHT}-{model.name}.json"
    if checks.exists() and all(file.exists() for file in kept.values()):
        ctx.progress(f"{label}, done by an earlier attempt")
    elif ctx.should_stop():
        raise StageInterrupted(f"evaluate: stopped before {label}; what is finished is kept")
    else:
        ctx.progress(f"{label}, loading")
    if not checks.exists():
        _keep(checks, model.examine(documents).to_json())
    preflight = Preflight.from_json(_read(checks))
    answers = []
    for section in sections:
        file = kept[section.name]
        if not file.exists():
            _keep(file, _ask(section, model, preflight, _watch(ctx, f"{label}, {section.name}")))
        answers.append(_read(file))
    return preflight, answers


def _ask(
    section: Section, model: Contestant | EnsembleContestant, preflight: Preflight, watch: Watch
) -> dict[str, Any]:
    """``{"result": what the section has of the model}``, or ``{"skipped": why it has nothing}``.

    Raises:
        SectionFailed: something else went wrong than a section foresees, or a number is not finite.
    """
    denied = preflight.denied(getattr(section, "relies_on", ABILITIES))
    if denied is not None:
        return {"skipped": denied}
    watch(0.0)
    try:
        with naming(section.name, model.name):
            result = section.score(model.subject, watch)
    except SectionFailed:
        raise
    except StageError as error:
        return {"skipped": str(error)}
    check_finite(result, section.name, model.name)
    return {"result": result}


def _watch(ctx: StageContext, label: str) -> Watch:
    """Says now and then how far it is, and stops the stage when it is asked to."""
    last = time.monotonic()

    def report(share: float) -> None:
        nonlocal last
        if ctx.should_stop():
            raise StageInterrupted(f"evaluate: stopped at {label}; what is finished is kept")
        if time.monotonic() - last >= SECONDS_BETWEEN_PROGRESS:
            ctx.progress(f"{label}, {share:.0%}")
            last = time.monotonic()

    return report


def _keep(path: Path, value: Any) -> None:
    """Write ``value`` as JSON: afterwards it is there in full or not at all."""
    partial_file = path.with_suffix(".partial")
    with partial_file.open("w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    partial_file.replace(path)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _report(section: Section, results: Mapping[str, Any], skipped: Sequence[Skipped]) -> SectionReport:
    if not results:
        return SectionReport(section.name, section.name, "No model could be asked.", skipped=tuple(skipped))
    with naming(section.name):
        report = section.report(results)
    return replace(report, skipped=(*skipped, *report.skipped))


def _write(
    ctx: StageContext, paths: Mapping[str, Path], reports: Sequence[SectionReport], preflights: Mapping[str, Preflight]
) -> None:
    content = {
        "schema_version": SCHEMA_VERSION,
        "title": f"Evaluation of {', '.join(preflights)}",
        "sections": [report.to_json() for report in reports],
        "curves": read_training(paths),
        "settings": ctx.config.model_dump(mode="json", exclude={"batch_tokens"}, exclude_none=True),
        "preflight": {row: preflight.to_json() for row, preflight in preflights.items()},
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
    }
    write_json(ctx.out / "report.json", content)
    content = _read(ctx.out / "report.json")  # the page and the table show what programs read, no more and no less
    (ctx.out / "report.html").write_text(page.render(content), encoding="utf-8")
    (ctx.out / "table.txt").write_text(render(content), encoding="utf-8")
    metrics = {f"{report.name}.{name}": value for report in reports for name, value in report.metrics.items()}
    write_json(ctx.out / "metrics.json", metrics)
    for report in reports:
        for name, text in report.files.items():
            file = ctx.out / report.name / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        for line in report.warnings:
            ctx.progress(f"WARNING: {line}")
        if report.skipped:
            ctx.progress(f"{report.name}: {len(report.skipped)} entries skipped; the report lists them")
