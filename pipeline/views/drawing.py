"""Pictures of a recipe's graph: lines of text, mermaid, dot and a page; coloured by what there is of each stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from rich.text import Text

from pipeline.graph import in_order
from pipeline.plan import State

GraphFormat = Literal["ascii", "mermaid", "dot", "html"]
FORMATS: tuple[GraphFormat, ...] = get_args(GraphFormat)


class Colour(NamedTuple):
    """Of a state: on a terminal (rich's name), and of a box and its border, on a light and on a dark page."""

    terminal: str
    fill: str
    border: str
    dark_fill: str
    dark_border: str


COLOURS: Mapping[State, Colour] = {
    State.FRESH: Colour("green", "#dcf3e0", "#2f8f46", "#17381f", "#4fb569"),
    State.STALE: Colour("yellow", "#fcf2c4", "#a88400", "#3d3410", "#d0aa2a"),
    State.MISSING: Colour("", "#f2f2f2", "#8a8a8a", "#2a2a2a", "#8f8f8f"),
    State.INTERRUPTED: Colour("yellow", "#fde3c8", "#c06a10", "#43290f", "#e09447"),
    State.FAILED: Colour("red", "#fadbd8", "#c0392b", "#46201c", "#ea7467"),
    State.RUNNING: Colour("cyan", "#d9e9fb", "#2471c0", "#16304c", "#64a8ee"),
}

PLAIN = COLOURS[State.MISSING]
"""Of a stage of which nothing is known."""


@dataclass(frozen=True)
class Picture:
    """What is drawn.

    Attributes:
        title: the recipe's name.
        edges: stage -> the stages that it reads from.
        kinds: stage -> what it is.
        states: stage -> what there is of it; empty if there is no run to ask.
        details: stage -> that in words.
    """

    title: str
    edges: Mapping[str, Sequence[str]]
    kinds: Mapping[str, str]
    states: Mapping[str, State] = field(default_factory=dict)
    details: Mapping[str, str] = field(default_factory=dict)

    @property
    def legend(self) -> list[State]:
        """The states that are there, in the order of ``State``."""
        return [state for state in State if state in self.states.values()]


def lines(picture: Picture) -> Text:
    """A line a stage, upstream first; the word for its state, which bears the colour, is the legend."""
    width = max(map(len, picture.edges), default=0)
    kind_width = max(map(len, picture.kinds.values()), default=0) if picture.states else 0
    state_width = max((len(state) for state in picture.states.values()), default=0)
    drawn = []
    for name in in_order(picture.edges):
        line = Text(f"{name:<{width}}  {picture.kinds[name]:<{kind_width}}")
        if picture.states:
            state = picture.states[name]
            line.append("  ").append(f"{state.value:<{state_width}}", style=COLOURS[state].terminal)
        if picture.edges[name]:
            line.append(f"  ← {', '.join(picture.edges[name])}")
        line.rstrip()
        drawn.append(line)
    return Text("\n").join(drawn)


def mermaid(picture: Picture) -> str:
    """A flowchart, which pages of many kinds show; the legend is a box of its own."""
    identity = {name: f"n{index}" for index, name in enumerate(picture.edges)}
    boxes = [f'    {identity[name]}["{name}<br/>{picture.kinds[name]}"]' for name in picture.edges]
    arrows = [f"    {identity[other]} --> {identity[name]}" for name, other in _arrows(picture)]
    if not picture.states:
        return "\n".join(["graph TD", *boxes, *arrows])
    legend = ["    subgraph legend", *(f'        {state}_["{state}"]' for state in picture.legend), "    end"]
    classes = []
    for state in picture.legend:
        colour = COLOURS[state]
        members = [identity[name] for name in picture.edges if picture.states[name] is state]
        classes += [
            f"    classDef {state} fill:{colour.fill},stroke:{colour.border},color:#111",
            f"    class {','.join([*members, f'{state}_'])} {state}",
        ]
    return "\n".join(["graph TD", *boxes, *arrows, *legend, *classes])


def dot(picture: Picture) -> str:
    """For Graphviz; the legend is a cluster of its own."""
    boxes = [
        f'    "{name}" [label="{name}\\n{picture.kinds[name]}"{_fill(picture.states.get(name))}];'
        for name in picture.edges
    ]
    arrows = [f'    "{other}" -> "{name}";' for name, other in _arrows(picture)]
    legend = []
    if picture.states:
        keys = [f'        "legend/{state}" [label="{state}"{_fill(state)}];' for state in picture.legend]
        legend = ["    subgraph cluster_legend {", '        label="legend";', *keys, "    }"]
    return "\n".join(["digraph recipe {", "    node [shape=box];", *boxes, *arrows, *legend, "}"])


def _fill(state: State | None) -> str:
    if state is None:
        return ""
    return f' style=filled fillcolor="{COLOURS[state].fill}" color="{COLOURS[state].border}"'


def _arrows(picture: Picture) -> Iterable[tuple[str, str]]:
    """(reader, what it reads from) of every edge."""
    return ((name, other) for name, others in picture.edges.items() for other in others)
