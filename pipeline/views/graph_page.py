"""The graph as a page that needs no other: a drawing in SVG without scripts, light or dark as the screen is."""

from __future__ import annotations

from html import escape

from pipeline.plan import State
from pipeline.views.drawing import COLOURS, PLAIN, Colour, Picture
from pipeline.views.layers import arrange

_CHARACTER = 7.4  # pixels of the page's fixed-width type
_PADDING, _GAP, _MARGIN = 14.0, 22.0, 16.0
_HEIGHT, _ROW = 46.0, 92.0


def page(picture: Picture) -> str:
    """The picture, with a legend where states are known."""
    states = f"<ul>{''.join(f'<li class={state.value!r}>{state.value}</li>' for state in picture.legend)}</ul>"
    return _PAGE.format(
        title=escape(picture.title),
        light=_rules(dark=False),
        dark=_rules(dark=True),
        legend=states if picture.states else "",
        drawing=_drawing(picture),
    )


def _rules(*, dark: bool) -> str:
    return " ".join(_rule(state.value, colour, dark) for state, colour in COLOURS.items()) + _rule("plain", PLAIN, dark)


def _rule(name: str, colour: Colour, dark: bool) -> str:
    fill, border = (colour.dark_fill, colour.dark_border) if dark else (colour.fill, colour.border)
    return (
        f".{name} rect {{ fill: {fill}; stroke: {border} }} li.{name} {{ background: {fill}; border-color: {border} }}"
    )


def _drawing(picture: Picture) -> str:
    widths = {
        name: max(len(name), len(_second_line(picture, name))) * _CHARACTER + 2 * _PADDING for name in picture.edges
    }
    layout = arrange(picture.edges, widths, _GAP)
    width = layout.width + 2 * _MARGIN
    height = max(layout.depth - 1, 0) * _ROW + _HEIGHT + 2 * _MARGIN
    arrows = [
        _arrow([(x + _MARGIN, level) for x, level in path], f"{upper} → {lower}")
        for (upper, lower), path in layout.paths.items()
    ]
    boxes = [_box(picture, name, x + _MARGIN, level, widths[name]) for name, (x, level) in layout.centres.items()]
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" role="img" '
        f'aria-label="{escape(picture.title)}">\n{_ARROW_HEAD}\n' + "\n".join([*arrows, *boxes]) + "\n</svg>"
    )


def _second_line(picture: Picture, name: str) -> str:
    state = picture.states.get(name)
    return picture.kinds[name] if state is None else f"{picture.kinds[name]} · {state.value}"


def _arrow(path: list[tuple[float, int]], title: str) -> str:
    """A curve from the lower edge of the first box to the upper edge of the last, straight down past other layers."""
    tops = [(x, _MARGIN + level * _ROW) for x, level in path]
    x, y = tops[0][0], tops[0][1] + _HEIGHT
    commands = [f"M{x:.1f} {y:.1f}"]
    for index, (next_x, next_y) in enumerate(tops[1:], start=1):
        middle = (y + next_y) / 2
        commands.append(f"C{x:.1f} {middle:.1f} {next_x:.1f} {middle:.1f} {next_x:.1f} {next_y:.1f}")
        x, y = next_x, next_y
        if index < len(tops) - 1:
            y += _HEIGHT
            commands.append(f"L{x:.1f} {y:.1f}")
    return f'<path d="{" ".join(commands)}"><title>{escape(title)}</title></path>'


def _box(picture: Picture, name: str, x: float, level: int, width: float) -> str:
    top = _MARGIN + level * _ROW
    state: State | None = picture.states.get(name)
    detail = picture.details.get(name) or picture.kinds[name]
    return (
        f'<g class="{state.value if state else "plain"}"><title>{escape(f"{name}: {detail}")}</title>'
        f'<rect x="{x - width / 2:.1f}" y="{top:.1f}" width="{width:.1f}" height="{_HEIGHT:.0f}" rx="6"/>'
        f'<text class="name" x="{x:.1f}" y="{top + 19:.1f}">{escape(name)}</text>'
        f'<text class="kind" x="{x:.1f}" y="{top + 36:.1f}">{escape(_second_line(picture, name))}</text></g>'
    )


_ARROW_HEAD = (
    '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    '<path class="head" d="M0 0 L8 4 L0 8 z"/></marker></defs>'
)

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}: stages</title>
<style>
:root {{ color-scheme: light dark; --text: #1b1b1b; --faint: #5c5c5c; --line: #8a8a8a; --page: #ffffff }}
{light}
@media (prefers-color-scheme: dark) {{
:root {{ --text: #ececec; --faint: #b0b0b0; --line: #8f8f8f; --page: #161616 }}
{dark}
}}
body {{ margin: 1.5rem; background: var(--page); color: var(--text); font: 15px/1.4 system-ui, sans-serif }}
h1 {{ font-size: 1.2rem; margin: 0 0 .6rem }}
ul {{ display: flex; flex-wrap: wrap; gap: .5rem; list-style: none; margin: 0 0 1rem; padding: 0 }}
li {{ border: 1px solid; border-radius: 4px; padding: .05rem .5rem; font-size: .85rem }}
.drawing {{ overflow-x: auto }}
rect {{ stroke-width: 1.2 }}
path {{ fill: none; stroke: var(--line); stroke-width: 1.3; marker-end: url(#head) }}
path.head {{ fill: var(--line); stroke: none; marker-end: none }}
text {{ text-anchor: middle; font: 12px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace }}
text.name {{ fill: var(--text); font-weight: 600 }}
text.kind {{ fill: var(--faint) }}
</style>
</head>
<body>
<h1>{title}</h1>
{legend}
<div class="drawing">
{drawing}
</div>
</body>
</html>
"""
