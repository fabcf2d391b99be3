"""Numbers and pieces of text in print. What could not be measured is a dash."""

from __future__ import annotations

NOTHING = "–"

_DECIMAL_UNITS = ("", " k", " M", " G", " T", " P", " E", " Z", " Y")


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a percentage; one that is not quite nothing or everything never reads as 0 % or 100 %."""
    if share is None:
        return NOTHING
    text = f"{share:.{digits}%}"
    smallest = f"{10.0**-digits:.{digits}f}"
    if share > 0 and float(text[:-1]) == 0:
        return f"<{smallest}%"
    if share < 1 and float(text[:-1]) == 100:
        return f">{100 - 10.0**-digits:.{digits}f}%"
    return text


def number(value: float | None, digits: int) -> str:
    """A number with so many decimals."""
    return NOTHING if value is None else f"{value:,.{digits}f}"


def count(value: int) -> str:
    """A whole number with separators."""
    return f"{value:,}"


def quantity(value: float | None) -> str:
    """A weighted count: whole where it is large, with a decimal where that shows."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:,.1f}"


def size(value: float | None) -> str:
    """Bytes, in decimal units."""
    return NOTHING if value is None else f"{scaled(value)}B"


def scaled(value: float) -> str:
    """Three digits and a decimal prefix: ``12.3 M``; ends with the space or prefix that a unit follows."""
    for unit in _DECIMAL_UNITS:
        if abs(value) < 999.5 or unit == _DECIMAL_UNITS[-1]:
            break
        value /= 1000
    digits = 0 if value >= 99.95 or (value == round(value) and not unit) else 1 if value >= 9.95 else 2
    return f"{value:.{digits}f}{unit or ' '}"


def quoted(text: str) -> str:
    """A piece of text in quotes on one line, so that white space at its ends shows."""
    visible = text.replace("\r", "\\r").replace("\n", "\\n").replace("\t", "\\t")
    return f"'{visible}'"
