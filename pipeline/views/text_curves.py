"""Curves in a terminal: several lines in one frame of characters, each drawn with a letter of its own."""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Mapping, Sequence

Points = Sequence[tuple[float, float]]
"""x and y, in ascending x."""

WIDTH, HEIGHT = 60, 12
"""Columns and rows of the frame."""
MOST_LINES = len(string.ascii_letters)
_SEVERAL = "#"
_DIGITS = 4


def overlaid(lines: Mapping[str, Points]) -> list[str]:
    """A picture of all ``lines``, and below it which letter is whose; ``#`` is where several meet.

    Between two of its points a line goes straight. Lines without a finite point are named, and nothing is drawn of
    them; those after the first ``MOST_LINES`` are counted.
    """
    finite = {
        name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)] for name, points in lines.items()
    }
    drawn = dict([(name, points) for name, points in finite.items() if points][:MOST_LINES])
    places = [place for points in drawn.values() for place in points]
    if not places:
        return ["nothing to draw"]
    (left, right), (bottom, top) = _range([x for x, _ in places]), _range([y for _, y in places])
    frame = [[" "] * WIDTH for _ in range(HEIGHT)]
    for letter, points in zip(string.ascii_letters, drawn.values(), strict=False):
        for column, height in _columns(points, left, right):
            row = round((top - height) / (top - bottom) * (HEIGHT - 1))
            frame[row][column] = letter if frame[row][column] == " " else _SEVERAL
    labels = {0: _number(top), HEIGHT - 1: _number(bottom)}
    margin = max(map(len, labels.values()))
    picture = [f"{labels.get(number, ''):>{margin}} │{''.join(row)}".rstrip() for number, row in enumerate(frame)]
    first, last = _number(left), _number(right)
    legend = [f"{letter} {name}" for letter, name in zip(string.ascii_letters, drawn, strict=False)]
    missing = [f"  {name}: no finite value" for name, points in finite.items() if not points]
    more = sum(bool(points) for points in finite.values()) - len(drawn)
    return [
        *picture,
        f"{'':>{margin}} └{'─' * WIDTH}",
        f"{'':>{margin}}  {first}{last:>{WIDTH - len(first)}}",
        *(f"  {line}" for line in legend),
        *missing,
        *([f"  and {more} more"] if more else []),
    ]


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Least and greatest value; apart also where all are the same."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _columns(points: Points, left: float, right: float) -> list[tuple[int, float]]:
    """The columns over which a line runs, each once, with its height there."""
    column_of = [round((x - left) / (right - left) * (WIDTH - 1)) for x, _ in points]
    heights = {column: y for column, (_, y) in zip(column_of, points, strict=True)}
    known = sorted(heights)
    for before, after in itertools.pairwise(known):
        for column in range(before + 1, after):
            share = (column - before) / (after - before)
            heights[column] = heights[before] + share * (heights[after] - heights[before])
    return sorted(heights.items())


def _number(value: float) -> str:
    return f"{value:.{_DIGITS}g}"
