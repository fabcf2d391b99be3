"""Numbers of a report as people read them: the same in the table and on the page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeGuard

MISSING = "-"


def is_number(value: float | None) -> TypeGuard[float]:
    """Neither missing nor NaN nor infinite."""
    return value is not None and math.isfinite(value)


def shown(value: float | None, digits: int, *, sign: bool = False) -> str:
    """``value`` with so many decimals; ``-`` if it is missing or not finite, and never a negative zero."""
    if not is_number(value):
        return MISSING
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.replace("-", "+" if sign else "") if float(text) == 0 else text


def interval(measure: Mapping[str, Any], digits: int, *, sign: bool = False) -> str:
    """``[low, high]`` of a measure; nothing where it has none."""
    if not (is_number(measure["low"]) and is_number(measure["high"])):
        return ""
    return f"[{shown(measure['low'], digits, sign=sign)}, {shown(measure['high'], digits, sign=sign)}]"


def best_rows(
    values: Mapping[str, float | None], better: Literal["lower", "higher"] | None, digits: int
) -> frozenset[str]:
    """Rows with the best number as it is shown; none where fewer than two have a number, or all show the same.

    Args:
        values: row name -> value, of the rows that compete: the teacher does not.
    """
    numbers = {row: value for row, value in values.items() if is_number(value)}
    if better is None or len({shown(value, digits) for value in numbers.values()}) < 2:
        return frozenset()
    best = shown((min if better == "lower" else max)(numbers.values()), digits)
    return frozenset(row for row, value in numbers.items() if shown(value, digits) == best)
