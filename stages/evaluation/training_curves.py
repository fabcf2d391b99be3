"""How the evaluated models were trained: the curves of their stages, as they are shown in the report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.training.monitoring.curve import NAME

MOST_POINTS = 400
"""Of one curve in the report; a longer one is thinned evenly. ``training.jsonl`` keeps all."""

_ALWAYS = ("loss", "eval.bits_per_byte", "gradient_norm", "learning_rate")
_WEIGHT = ".weight"


def read_training(models: Mapping[str, Path]) -> dict[str, Any]:
    """Row name -> its training, of the models that were trained here.

    Returns:
        For each model ``steps``, the last one logged; ``points``, as many lines as its file has; ``not_finite``, how
        many values were left out as they are NaN or infinite; and ``measures``: the loss, each objective's own, bits
        per byte on held-out text, gradient norm and learning rate, as far as they were logged, each a list of [step,
        value] in ascending step.
    """
    files = {name: path / NAME for name, path in models.items()}
    return {name: _training(file) for name, file in files.items() if file.is_file()}


def _training(file: Path) -> dict[str, Any]:
    points = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    logged = dict.fromkeys(name for point in points for name in point)
    objectives = [name.removesuffix(_WEIGHT) for name in logged if name.endswith(_WEIGHT)]
    curves = {
        name: [(point["step"], point[name]) for point in points if name in point]
        for name in (*_ALWAYS, *objectives)
        if name in logged
    }
    finite = {name: [point for point in curve if math.isfinite(point[1])] for name, curve in curves.items()}
    return {
        "steps": max((point["step"] for point in points), default=0),
        "points": len(points),
        "not_finite": sum(len(curve) - len(finite[name]) for name, curve in curves.items()),
        "measures": {name: [list(point) for point in _thinned(curve)] for name, curve in finite.items() if curve},
    }


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most ``MOST_POINTS`` of ``points``, evenly spread, the first and the last among them."""
    if len(points) <= MOST_POINTS:
        return list(points)
    spacing = (len(points) - 1) / (MOST_POINTS - 1)
    return [points[round(index * spacing)] for index in range(MOST_POINTS)]
