"""Where to draw the stages of a graph: in layers from top to bottom, so that arrows lead down and rarely cross.

The method of Sugiyama, Tagawa and Toda (1981) in its simplest form: layers by the longest path, invisible points where
an arrow passes a layer, order within a layer by the mean place of the neighbours, then coordinates the same way.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.graph import in_order

_SWEEPS = 12
_POINT_WIDTH = 16.0
"""Of the place that is kept free where an arrow passes a layer."""

Node = str | tuple[str, str, int]
"""A stage, or the point at which the arrow (from, to) passes a layer."""


@dataclass(frozen=True)
class Layout:
    """In any unit of length; x grows to the right from 0.

    Attributes:
        centres: stage -> x of its centre, and number of its layer from the top.
        paths: (from, to) -> the points (x, layer) of the arrow, its ends included.
        width: of the whole.
        depth: how many layers there are.
    """

    centres: Mapping[str, tuple[float, int]]
    paths: Mapping[tuple[str, str], tuple[tuple[float, int], ...]]
    width: float
    depth: int


def arrange(edges: Mapping[str, Sequence[str]], widths: Mapping[str, float], gap: float) -> Layout:
    """Lay out a graph without cycles.

    Args:
        edges: stage -> the stages that it reads from.
        widths: of the stages' boxes.
        gap: least distance between two boxes of a layer.
    """
    layer = _layers(edges)
    chains = {(other, name): _chain(other, name, layer) for name in edges for other in edges[name]}
    neighbours: dict[Node, list[Node]] = {name: [] for name in edges}
    for chain in chains.values():
        for upper, lower in itertools.pairwise(chain):
            neighbours.setdefault(upper, []).append(lower)
            neighbours.setdefault(lower, []).append(upper)
    depth = max(layer.values(), default=-1) + 1
    rows: list[list[Node]] = [[] for _ in range(depth)]
    for node in neighbours:
        rows[_layer_of(node, layer)].append(node)
    _order(rows, neighbours)
    space = {node: widths[node] if isinstance(node, str) else _POINT_WIDTH for node in neighbours}
    x = _places(rows, neighbours, space, gap)
    left = min((x[node] - space[node] / 2 for node in x), default=0.0)
    right = max((x[node] + space[node] / 2 for node in x), default=0.0)
    return Layout(
        {name: (x[name] - left, layer[name]) for name in edges},
        {ends: tuple((x[node] - left, _layer_of(node, layer)) for node in chain) for ends, chain in chains.items()},
        right - left,
        depth,
    )


def _layers(edges: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Each stage below all that it reads from; one that reads nothing just above the first that reads it."""
    order = in_order(edges)
    layer: dict[str, int] = {}
    for name in order:
        layer[name] = max((layer[other] + 1 for other in edges[name]), default=0)
    readers: dict[str, list[int]] = {}
    for name in order:
        for other in edges[name]:
            readers.setdefault(other, []).append(layer[name])
    for name in order:
        if not edges[name] and name in readers:
            layer[name] = min(readers[name]) - 1
    return layer


def _chain(upper: str, lower: str, layer: Mapping[str, int]) -> tuple[Node, ...]:
    """The ends of an arrow and the points between them, one a layer."""
    return (upper, *((upper, lower, level) for level in range(layer[upper] + 1, layer[lower])), lower)


def _layer_of(node: Node, layer: Mapping[str, int]) -> int:
    return layer[node] if isinstance(node, str) else node[2]


def _order(rows: list[list[Node]], neighbours: Mapping[Node, Sequence[Node]]) -> None:
    """Sort each layer by the mean place of the neighbours in the one before, downwards and upwards in turn."""
    for sweep in range(_SWEEPS):
        indices = range(1, len(rows)) if sweep % 2 == 0 else range(len(rows) - 2, -1, -1)
        for index in indices:
            before = rows[index - 1] if sweep % 2 == 0 else rows[index + 1]
            place = {node: number for number, node in enumerate(before)}
            own = {node: number for number, node in enumerate(rows[index])}

            def mean(node: Node, place: Mapping[Node, int] = place, own: Mapping[Node, int] = own) -> float:
                found = [place[other] for other in neighbours[node] if other in place]
                return sum(found) / len(found) if found else float(own[node])

            rows[index].sort(key=mean)


def _places(
    rows: Sequence[Sequence[Node]], neighbours: Mapping[Node, Sequence[Node]], space: Mapping[Node, float], gap: float
) -> dict[Node, float]:
    """x of each node: as near to the mean of its neighbours as the order and the gaps allow."""
    x: dict[Node, float] = {}
    for row in rows:
        _pack(row, {node: 0.0 for node in row}, space, gap, x)
    for sweep in range(_SWEEPS):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            wanted = {
                node: sum(x[other] for other in neighbours[node]) / len(neighbours[node])
                if neighbours[node]
                else x[node]
                for node in row
            }
            _pack(row, wanted, space, gap, x)
    return x


def _pack(
    row: Sequence[Node], wanted: Mapping[Node, float], space: Mapping[Node, float], gap: float, x: dict[Node, float]
) -> None:
    """Put each node where it wants to be; those too near are pushed apart to either side alike."""

    def pushed(nodes: Sequence[Node], sign: int) -> dict[Node, float]:
        found: dict[Node, float] = {}
        last: Node | None = None
        for node in nodes:
            found[node] = sign * wanted[node]
            if last is not None:
                found[node] = max(found[node], found[last] + (space[last] + space[node]) / 2 + gap)
            last = node
        return {node: sign * place for node, place in found.items()}

    from_left, from_right = pushed(row, 1), pushed(list(reversed(row)), -1)
    x.update({node: (from_left[node] + from_right[node]) / 2 for node in row})
