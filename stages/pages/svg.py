"""A matplotlib figure as an SVG element of a page: text stays text, and equal numbers give equal bytes."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager

import matplotlib
from matplotlib.figure import Figure

_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names come from the user and from the text
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def style(name: str) -> AbstractContextManager[None]:
    """Settings under which a figure must be made and turned into an element; ``name`` is the figure's in its page."""
    return matplotlib.rc_context(_STYLE | {"svg.hashsalt": name})


def element(figure: Figure, name: str, description: str, colours: Mapping[str, str] | None = None) -> str:
    """The figure as an element that is announced as an image with this description.

    Args:
        name: of the figure; unique in the page, and fit for an id.
        colours: ``#rrggbb`` in the figure -> what stands in the page instead, such as a variable of its style sheet.
    """
    buffer = io.StringIO()
    figure.savefig(
        buffer,
        format="svg",
        transparent=colours is not None,
        metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
    )
    svg = buffer.getvalue()
    label = html.escape(description, quote=True)
    svg = svg[svg.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    # Fixed sizes in points would not shrink with the window; the viewBox keeps the proportions.
    svg = re.sub(r'\s(?:width|height)="[\d.]+pt"', "", svg, count=2)
    for drawn, shown in (colours or {}).items():
        svg = re.sub(rf"(?<=: ){drawn}\b", shown, svg)
    # Every figure numbers its parts from 1, but in a page an id is used once.
    return re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
