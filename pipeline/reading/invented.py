"""Overrides change what a recipe has: one for a stage or section that is not there is a slip, never a new one."""

from __future__ import annotations

from typing import Any

from pipeline.nearest import unknown_name
from pipeline.reading.problems import Problem
from pipeline.reading.yaml_source import SET_OPTION, YamlSource
from pipeline.recipe import Outline


def mapping(value: Any) -> dict[str, Any]:
    """``value`` if it is a mapping; what else it may be is reported by the outline."""
    return value if isinstance(value, dict) else {}


def drop_invented(source: YamlSource) -> list[Problem]:
    """Take out of ``source`` what overrides alone have brought, and say what it was."""
    return _drop_stages(source) + _drop_sections(source)


def _drop_stages(source: YamlSource) -> list[Problem]:
    stages = mapping(source.values.get("stages"))
    invented = [
        name
        for name, entry in stages.items()
        if ("stages", name) not in source.origins and "uses" not in mapping(entry)
    ]
    for name in invented:
        del stages[name]
    return [
        Problem((SET_OPTION, f"stages.{name}"), f"no stage is called {name!r}{unknown_name(name, list(stages))}")
        for name in invented
    ]


def _drop_sections(source: YamlSource) -> list[Problem]:
    """A path may begin with the name of a stage or of a section, so the nearest may be either."""
    known = [*Outline.model_fields, *mapping(source.values.get("stages"))]
    invented = [
        name for name in source.values if name not in known and source.origins.get((name,), SET_OPTION) == SET_OPTION
    ]
    for name in invented:
        del source.values[name]
    return [
        Problem((SET_OPTION, name), f"no section and no stage is called {name!r}{unknown_name(name, known)}")
        for name in invented
    ]
