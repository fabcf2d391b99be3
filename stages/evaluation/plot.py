"""The evaluation as a picture: training curves above, bits per byte below."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stages.evaluation.report import Report


class Curve(NamedTuple):
    """Training loss by optimiser step."""

    steps: list[int]
    losses: list[float]


def read_curve(model: Path) -> Curve | None:
    """The loss in ``training.jsonl`` of a model directory; None if the model was not trained here."""
    path = model / "training.jsonl"
    if not path.is_file():
        return None
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    records = [record for record in records if "loss" in record]
    return Curve([record["step"] for record in records], [record["loss"] for record in records])


def draw(report: Report, curves: Mapping[str, Curve], path: Path) -> None:
    """Write a PNG to ``path``. Each curve has axes of its own: losses of different objectives do not compare."""
    figure = Figure(figsize=(max(8, 4 * len(curves)), 8 if curves else 4), layout="constrained")
    rows = 2 if curves else 1
    grid = figure.add_gridspec(rows, max(1, len(curves)))
    for column, (name, curve) in enumerate(curves.items()):
        axes = figure.add_subplot(grid[0, column])
        axes.plot(curve.steps, curve.losses, linewidth=1)
        axes.set(title=name, xlabel="step", ylabel="training loss")
    _bars(figure.add_subplot(grid[rows - 1, :]), report)
    figure.savefig(path, dpi=120)


def _bars(axes: Axes, report: Report) -> None:
    width = 0.8 / len(report.models)
    positions = np.arange(len(report.domains))
    for index, model in enumerate(report.models):
        heights = [model.domains[domain].bits_per_byte for domain in report.domains]
        axes.bar(positions + (index - (len(report.models) - 1) / 2) * width, heights, width, label=model.name)
    labels = [f"{domain} (trained)" if domain in report.trained else domain for domain in report.domains]
    axes.set_xticks(positions, labels)
    axes.set(ylabel="bits per byte (lower is better)")
    axes.legend()
