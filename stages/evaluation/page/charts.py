"""The page's charts: bars with intervals, and curves, in colours of the page's style sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stages.evaluation.numbers import is_number
from stages.pages import svg

MODEL_COLOURS = 8
"""The style sheet has so many; models after that begin again, in the next turn."""

_LINES = ("-", "--", ":")
_OPACITIES = (1.0, 0.55, 0.25)
"""Of the first, second and third turn of the colours; the style sheet's legends show the same."""

_INK, _GRID = "#010101", "#020202"
_MODELS = tuple(f"#0300{index:02x}" for index in range(MODEL_COLOURS))
_COLOURS = {
    _INK: "var(--ink)",
    _GRID: "var(--line)",
    **{drawn: f"var(--model-{index})" for index, drawn in enumerate(_MODELS)},
}
"""Stand-ins that the figures are drawn with -> what the page has in their place, so that it may be light or dark."""

_BAR_INCHES = 0.17


class Charts:
    """Draws the charts of one page; a model has the same colour in all of them.

    Args:
        models: all rows of the report.
    """

    def __init__(self, models: Sequence[str]) -> None:
        self._models = {name: index for index, name in enumerate(models)}

    def style_class(self, row: str) -> str:
        """Classes of the style sheet that mark a model's name with its colour and, after the first turn, its line."""
        turn = self._turn(row)
        return f"model-{self._models[row] % MODEL_COLOURS}" + (f" turn-{turn}" if turn else "")

    def bars(self, name: str, bars: Mapping[str, Any]) -> Markup:
        """``Bars`` as groups of horizontal bars; what a model lacks is left empty.

        Args:
            name: of the figure; unique in the page.
        """
        rows = list(bars["values"])
        groups = list(dict.fromkeys(group for values in bars["values"].values() for group in values))
        with svg.style(name):
            height = 0.9 + (len(rows) * _BAR_INCHES + 0.16) * len(groups)
            figure = Figure(figsize=(8, height), layout="constrained")
            axes = figure.add_subplot()
            thickness = 0.84 / max(1, len(rows))
            for place, row in enumerate(rows):
                offset = (place - (len(rows) - 1) / 2) * thickness
                self._row(axes, row, bars["values"][row], groups, offset, thickness)
            axes.axvline(0, color=_INK, linewidth=0.8)
            axes.set_yticks(range(len(groups)), groups)
            axes.set(xlabel=bars["unit"], ylim=(len(groups) - 0.5, -0.5))
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x", color=_GRID, linewidth=0.8)
            return self._finish(figure, axes, name, f"{bars['title']}: bars for {', '.join(rows)}; numbers below.")

    def _row(
        self,
        axes: Axes,
        row: str,
        values: Mapping[str, Mapping[str, float | None]],
        groups: Sequence[str],
        offset: float,
        thickness: float,
    ) -> None:
        present = [(place, values[group]) for place, group in enumerate(groups) if group in values]
        present = [(place, measure) for place, measure in present if is_number(measure["value"])]
        axes.barh(
            [place + offset for place, _ in present],
            [measure["value"] for _, measure in present],
            thickness * 0.9,
            color=self._colour(row),
            alpha=_OPACITIES[self._turn(row)],
            label=row,
        )
        for place, measure in present:
            if is_number(measure["low"]) and is_number(measure["high"]):
                axes.plot([measure["low"], measure["high"]], [place + offset] * 2, color=_INK, linewidth=1.1)

    def curve(self, name: str, curve: Mapping[str, Any]) -> Markup:
        """``Curve`` as lines.

        Args:
            name: of the figure; unique in the page.
        """
        with svg.style(name):
            figure = Figure(figsize=(5.2, 3), layout="constrained")
            axes = figure.add_subplot()
            for row, points in curve["lines"].items():
                axes.plot(
                    [x for x, _ in points],
                    [y for _, y in points],
                    color=self._colour(row),
                    linestyle=_LINES[self._turn(row)],
                    linewidth=1.4,
                    marker="o" if len(points) < 20 else "",
                    markersize=3.5,
                    label=row,
                )
            axes.set(xlabel=curve["x_label"], ylabel=curve["y_label"])
            axes.grid(color=_GRID, linewidth=0.8)
            lines = ", ".join(curve["lines"])
            return self._finish(figure, axes, name, f"{curve['title']}: lines for {lines}; numbers below.")

    def _finish(self, figure: Figure, axes: Axes, name: str, description: str) -> Markup:
        axes.set_axisbelow(True)
        for part in (*axes.spines.values(), *axes.xaxis.get_ticklines(), *axes.yaxis.get_ticklines()):
            part.set_color(_GRID)
        axes.tick_params(colors=_INK, color=_GRID)
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set_color(_INK)
        return Markup(svg.element(figure, name, description, _COLOURS))

    def _colour(self, row: str) -> str:
        return _MODELS[self._models[row] % MODEL_COLOURS]

    def _turn(self, row: str) -> int:
        return self._models[row] // MODEL_COLOURS % len(_LINES)
