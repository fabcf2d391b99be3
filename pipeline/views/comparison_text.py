"""A comparison of runs for people: tables and curves in the terminal, or one page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from rich.table import Table
from rich.text import Text

from pipeline import durable
from pipeline.errors import RecipeError
from pipeline.plan import State
from pipeline.views.comparison import Comparison
from pipeline.views.render import print_table, table_width
from pipeline.views.text_curves import Points, overlaid

_MISSING = "-"
_DIGITS = 6
_BETWEEN = 3
"""Spaces between two columns, at most."""
_DRAWN = ("loss", "eval.bits_per_byte")
"""Measures of training whose curves the terminal shows; the page has all."""
_MOST_NAMED = 4
"""Runs that a title names."""


def show_comparison(comparison: Comparison, file: IO[str], *, everything: bool) -> None:
    """Print what differs; with ``everything``, also metrics that do not."""
    runs = comparison.runs
    print("recipes differ in:" if comparison.recipe else "the recipes differ in nothing but their names", file=file)
    if comparison.recipe:
        _show(comparison.recipe, runs, file, json.dumps)
    unfinished = {
        stage: states for stage, states in comparison.states.items() if set(states.values()) != {State.FRESH.value}
    }
    if unfinished:
        print("\nstages that are not up to date in every run:", file=file)
        _show(unfinished, runs, file, str)
    metrics = {
        name: values
        for name, values in comparison.metrics.items()
        if everything or len(values) < len(runs) or len(set(values.values())) > 1
    }
    if metrics:
        print("\nfinal numbers" + ("" if everything else " that differ (--all shows the others)") + ":", file=file)
        _show(metrics, runs, file, lambda value: f"{value:.{_DIGITS}g}")
    for stage, measure, lines in _curves_that_differ(comparison):
        if measure in _DRAWN:
            print("", f"{stage}: {measure} by step", *overlaid(lines), sep="\n", file=file)
    for stage, report in comparison.evaluations.items():
        from stages.evaluation.table import render

        print(f"\n{stage}:\n{render(report)}", end="", file=file)


def comparison_page(comparison: Comparison, path: Path) -> None:
    """Write the evaluations of a comparison and its training curves as one page.

    Raises:
        RecipeError: no run has finished an evaluation or a training.
    """
    from stages.evaluation.page import render
    from stages.evaluation.sections import SCHEMA_VERSION

    if not comparison.evaluations and not comparison.curves:
        raise RecipeError("--html shows evaluations and training curves, and no run has finished a stage that has any")
    reports = comparison.evaluations
    page: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "title": f"{', '.join(reports) or 'training'} of {_few(comparison.runs)}",
        "sections": [section for stage in reports for section in _sections(comparison, stage)],
        "settings": {"recipes differ in": {key: json.dumps(values) for key, values in comparison.recipe.items()}},
    }
    page |= {part: _joined(reports, part) for part in ("curves", "preflight", "versions")}
    page["settings"] |= _joined(reports, "settings")
    if curves := [
        {"title": f"{stage}: {measure}", "x_label": "step", "y_label": measure, "lines": _rows(stage, lines)}
        for stage, measure, lines in _curves_that_differ(comparison)
    ]:
        page["sections"].append({**_CURVES, "curves": curves})
    durable.write_text(path, render(page))


def _few(runs: Sequence[str]) -> str:
    return ", ".join(runs) if len(runs) <= _MOST_NAMED else f"{len(runs)} runs"


_CURVES: Mapping[str, Any] = {
    "name": "training-of-the-runs",
    "title": "Training of the runs",
    "about": "The same stage of several runs in one picture. Losses of different objectives do not compare.",
    **{kind: [] for kind in ("tables", "bars", "items", "samples", "skipped", "warnings")},
    **{kind: {} for kind in ("facts", "metrics", "data")},
}


def _sections(comparison: Comparison, stage: str) -> Iterator[Mapping[str, Any]]:
    """The sections of one evaluation, told apart from those of others by its name where there are several."""
    for section in comparison.evaluations[stage]["sections"]:
        several = len(comparison.evaluations) > 1
        own = {"name": f"{stage}-{section['name']}", "title": f"{stage}: {section['title']}"} if several else {}
        yield {**section, **own}


def _joined(reports: Mapping[str, Mapping[str, Any]], part: str) -> dict[str, Any]:
    return {name: value for report in reports.values() for name, value in report[part].items()}


def _curves_that_differ(comparison: Comparison) -> Iterator[tuple[str, str, dict[str, Points]]]:
    """Stage, measure, and the curves of all runs, those of runs that share a result as one."""
    for stage, trainings in comparison.curves.items():
        for measure in dict.fromkeys(name for training in trainings.values() for name in training["measures"]):
            shared: dict[str, list[str]] = {}
            for run, training in trainings.items():
                if measure in training["measures"]:
                    shared.setdefault(json.dumps(training["measures"][measure]), []).append(run)
            if len(shared) > 1:
                yield stage, measure, {", ".join(runs): json.loads(points) for points, runs in shared.items()}


def _rows(stage: str, lines: Mapping[str, Points]) -> dict[str, Points]:
    """The lines under the names that the models have in the evaluation of several runs."""
    return {f"{run}/{stage}": points for run, points in lines.items()}


def _show(rows: Mapping[str, Mapping[str, Any]], runs: Sequence[str], file: IO[str], text: Any) -> None:
    """A column for each run; where they do not fit beside each other, a line for each run."""
    cells = {name: [text(values[run]) if run in values else _MISSING for run in runs] for name, values in rows.items()}
    columns = zip(runs, *cells.values(), strict=True)
    width = max(map(len, rows)) + sum(max(map(len, column)) + _BETWEEN for column in columns)
    if width > table_width(file):
        longest = max(map(len, runs))
        for name, shown in cells.items():
            print(name, file=file)
            for run, cell in zip(runs, shown, strict=True):
                print(f"  {run:<{longest}}  {cell}", file=file)
        return
    table = Table("", *runs, box=None, header_style="bold", padding=(0, 1))
    for name, shown in cells.items():
        table.add_row(Text(name), *map(Text, shown))
    print_table(table, file)
