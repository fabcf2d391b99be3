"""Why a stage's key is another one than last time, in words (runner specification, R12)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.keys import REFERENCE
from pipeline.reading.problems import Location, dotted, leaves
from pipeline.recipe import StageSpec

_MOST_SHOWN = 3


def key_changes(spec: StageSpec, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between the ingredients of two keys of one stage, apart from its inputs.

    ``params: losses[0].alm.gamma 0.1 → 0.2``, ``input changed: data.train[0].path (content)``, ``stage version 1 → 2``.
    """
    changes: list[str] = []
    if old["uses"] != new["uses"]:
        return [f"uses: {old['uses']} → {new['uses']}"]
    before, after = dict(leaves(old["params"])), dict(leaves(new["params"]))
    options: list[str] = []
    for location in [*after, *(gone for gone in before if gone not in after)]:
        if before.get(location) == after.get(location):
            continue
        if location[-1:] == (REFERENCE,):
            changes.append(f"input changed: {dotted(spec.place(location[:-1]))} (content)")
        else:
            options.append(f"{dotted(location)} {_value(before, location)} → {_value(after, location)}")
    if options:
        more = f" and {len(options) - _MOST_SHOWN} more" if len(options) > _MOST_SHOWN else ""
        changes.insert(0, f"params: {', '.join(options[:_MOST_SHOWN])}{more}")
    for name, words in {"version": "stage version", "key_schema": "rules of keys"}.items():
        if old[name] != new[name]:
            changes.append(f"{words} {old[name]} → {new[name]}")
    return changes


def input_changes(spec: StageSpec, old: Mapping[str, Any], keys: Mapping[str, str]) -> list[str]:
    """The upstream stages of ``spec`` whose key is not among those that ``old`` was made from.

    Args:
        spec: the stage.
        old: ingredients of its earlier key.
        keys: stage name -> key now.
    """
    known = {item[-1] if isinstance(item, list) else item for items in old["inputs"].values() for item in items}
    return [name for names in spec.inputs.values() for name in names if keys[name] not in known]


def _value(values: Mapping[Location, Any], location: Location) -> str:
    return json.dumps(values[location], ensure_ascii=False) if location in values else "(none)"
