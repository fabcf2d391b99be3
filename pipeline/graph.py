"""The graph of a recipe: which stage feeds which, and in what order they can run; ``views.drawing`` draws it."""

from __future__ import annotations

import graphlib
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.nearest import unknown_name
from pipeline.reading.problems import Problem, dotted
from stages.artifacts import Artifact, ModelArtifact
from stages.stage import Input

Edges = Mapping[str, Sequence[str]]
"""Stage -> the stages it reads from."""


@dataclass(frozen=True)
class Node:
    """What the graph needs to know of one stage of a recipe."""

    needs: tuple[str, ...]
    inputs: Mapping[str, Input]
    output: type[Artifact]
    named: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Binding:
    """Which stages fill the inputs of one stage.

    Attributes:
        inputs: input name -> upstream stages, in the order of ``needs``.
        sources: input name -> the part of ``models`` or ``data`` that fills it.
    """

    inputs: Mapping[str, tuple[str, ...]]
    sources: Mapping[str, str]


def bind(nodes: Mapping[str, Node | None]) -> tuple[dict[str, Binding], list[Problem]]:
    """Give every input of every stage the stages of ``needs`` that make its kind of artifact.

    An input with a ``source`` is filled from the recipe's sections, unless it is ``replaceable`` and a stage fills it;
    any other one by exactly one stage (``many``: at least one). Problems: a name in ``needs`` that is no stage or fills
    no input, and an input that none, or more than one, would fill. None stands for a stage that is wrong in itself:
    nothing is said about what it makes.
    """
    bindings: dict[str, Binding] = {}
    problems: list[Problem] = []
    for name, node in nodes.items():
        if node is None:
            continue
        place = ("stages", name, "needs")
        wrong_names = [
            Problem((*place, index), message)
            for index, needed in enumerate(node.needs)
            if (message := _wrong_name(needed, node.needs[:index], list(nodes)))
        ]
        problems.extend(wrong_names)
        bindings[name] = _bind_inputs(node, nodes)
        if not wrong_names and all(nodes[needed] for needed in node.needs):
            problems.extend(Problem(place, message) for message in _mismatches(name, bindings[name], nodes))
    return bindings, problems


def _wrong_name(needed: str, before: Sequence[str], known: Sequence[str]) -> str | None:
    if needed not in known:
        return f"no stage is called {needed!r}{unknown_name(needed, known)}"
    return f"{needed!r} is listed twice" if needed in before else None


def _makes(node: Node | None, wanted: Input) -> bool:
    return node is not None and issubclass(node.output, wanted.replacement or wanted.artifact)


def _kind(wanted: Input) -> str:
    """The kind of artifact that a stage of ``needs`` may fill the input with, in words."""
    accepted = wanted.replacement or wanted.artifact
    kinds = accepted if isinstance(accepted, tuple) else (accepted,)
    return " or ".join(repr(kind.kind) for kind in kinds)


def _bind_inputs(node: Node, nodes: Mapping[str, Node | None]) -> Binding:
    named = {other for names in node.named.values() for other in names}
    makers = {
        name: tuple(
            needed
            for needed in node.needs
            if _makes(nodes.get(needed), wanted) and needed in node.named.get(name, {needed} - named)
        )
        for name, wanted in node.inputs.items()
        if wanted.source is None or wanted.replaceable
    }
    inputs = {name: made for name, made in makers.items() if made or node.inputs[name].source is None}
    # A stage that is wrong in itself may be what takes a source's place.
    undecided = any(nodes.get(needed) is None for needed in node.needs)
    sources = {
        name: wanted.source
        for name, wanted in node.inputs.items()
        if name not in inputs and not (undecided and wanted.replaceable)
    }
    return Binding(inputs, sources)


def _mismatches(stage: str, binding: Binding, nodes: Mapping[str, Node | None]) -> list[str]:
    """What is wrong between the ``needs`` of a stage and its inputs, as messages."""
    messages: list[str] = []
    node = nodes[stage]
    for name, bound in binding.inputs.items():
        wanted = node.inputs[name]
        kind = _kind(wanted)
        if not bound:
            makers = [other for other in nodes if other != stage and _makes(nodes[other], wanted)]
            way_out = (
                f"name a stage that makes a {kind} artifact ({' or '.join(makers)})"
                if makers
                else f"this recipe has no stage that makes a {kind} artifact; add one and name it here"
            )
            messages.append(f"nothing here fills input {name!r}: {way_out}")
        elif len(bound) > 1 and not wanted.many:
            messages.append(
                f"input {name!r} takes one {kind} artifact, but {' and '.join(bound)} make one each: keep one"
            )
    used = {needed for bound in binding.inputs.values() for needed in bound}
    for needed in node.needs:
        if needed not in used:
            kind = repr(nodes[needed].output.kind)
            messages.append(f"{needed!r} makes a {kind} artifact, which fills no input of {stage!r}: remove it")
    return messages


def passed_over(nodes: Mapping[str, Node | None], bindings: Mapping[str, Binding]) -> tuple[str, ...]:
    """Stages that no other one needs though some could: they read a section of the recipe instead (dotted names).

    A model that no stage needs is a result, and nothing that was forgotten.
    """
    needed = {other for node in nodes.values() if node for other in node.needs}
    wanted = [
        node.inputs[name]
        for stage, node in nodes.items()
        if node
        for name in bindings[stage].sources
        if node.inputs[name].replaceable
    ]
    return tuple(
        dotted(("stages", stage))
        for stage, node in nodes.items()
        if stage not in needed
        and not (node and issubclass(node.output, ModelArtifact))
        and any(_makes(node, item) for item in wanted)
    )


def in_order(edges: Edges) -> list[str]:
    """The stages so that each comes after those it reads from, otherwise in the order given.

    Raises:
        graphlib.CycleError: no such order exists; see ``find_cycle``.
    """
    position = {name: index for index, name in enumerate(edges)}
    sorter = graphlib.TopologicalSorter(edges)
    sorter.prepare()
    ready: list[tuple[int, str]] = []
    order: list[str] = []
    while sorter.is_active():
        for name in sorter.get_ready():
            heapq.heappush(ready, (position[name], name))
        _, name = heapq.heappop(ready)
        order.append(name)
        sorter.done(name)
    return order


def find_cycle(edges: Edges) -> list[str] | None:
    """One cycle, each stage followed by one that reads from it, the first repeated at the end; None without cycle."""
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None
