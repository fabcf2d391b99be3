"""A comparison of runs for people: tables in the terminal, or one page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from rich.table import Table
from rich.text import Text

from pipeline import durable
from pipeline.comparison import Comparison
from pipeline.errors import RecipeError
from pipeline.plan import State
from pipeline.render import print_table

_MISSING = "-"
_DIGITS = 6


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
    for stage, report in comparison.evaluations.items():
        from stages.evaluation.table import render

        print(f"\n{stage}:\n{render(report)}", end="", file=file)


def comparison_page(comparison: Comparison, path: Path) -> None:
    """Write the evaluations of a comparison as one page.

    Raises:
        RecipeError: no run has finished an evaluation, or several stages evaluate.
    """
    from stages.evaluation.page import render

    if len(comparison.evaluations) != 1:
        found = ", ".join(comparison.evaluations) or "none is finished"
        raise RecipeError(f"--html shows the one evaluation that the runs share; here: {found}")
    (report,) = comparison.evaluations.values()
    differing = {key: json.dumps(values) for key, values in comparison.recipe.items()}
    page = {**report, "settings": {"recipes differ in": differing, **report["settings"]}}
    durable.write_text(path, render(page))


def _show(rows: Mapping[str, Mapping[str, Any]], runs: Sequence[str], file: IO[str], text: Any) -> None:
    table = Table("", *runs, box=None, header_style="bold", padding=(0, 1))
    for name, values in rows.items():
        table.add_row(Text(name), *(Text(text(values[run]) if run in values else _MISSING) for run in runs))
    print_table(table, file)
