"""Paths as the recipe has them: a run keeps absolute ones, which lead nowhere on another machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import yaml

from pipeline.keys import map_references
from pipeline.recipe import Recipe


def as_written(recipe: Recipe, text: str) -> Recipe:
    """``recipe`` with every path that ``text`` gives relatively spelled as there, in its stages and ``resolved``.

    Args:
        recipe: with absolute paths, as a run keeps it.
        text: the same recipe as it was written. Paths that are not in it, such as those of ``--set``, stay absolute.
    """
    relative = _relative_paths(yaml.safe_load(text))
    stages = {
        name: replace(spec, config=map_references(spec.config, lambda _, path: _spelled(path, relative)))
        for name, spec in recipe.stages.items()
    }
    return replace(recipe, stages=stages, resolved=_respelled(recipe.resolved, relative))


def _relative_paths(value: Any) -> dict[tuple[str, ...], str]:
    """Parts of what may be a relative path, without what leads upwards -> the path as it stands in ``value``."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        return {parts: text for item in value for parts, text in _relative_paths(item).items()}
    if not isinstance(value, str) or PurePath(value).is_absolute():
        return {}
    parts = tuple(part for part in PurePath(os.path.normpath(value)).parts if part not in ("..", "."))
    return {parts: value} if parts else {}


def _spelled(path: str, relative: Mapping[tuple[str, ...], str]) -> str:
    """An absolute path as the longest relative one that it ends with; everything else as it is."""
    if not PurePath(path).is_absolute():
        return path
    parts = Path(path).parts
    ends = (parts[start:] for start in range(1, len(parts)))
    return next((relative[end] for end in ends if end in relative), path)


def _respelled(value: Any, relative: Mapping[tuple[str, ...], str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _respelled(item, relative) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_respelled(item, relative) for item in value]
    return _spelled(value, relative) if isinstance(value, str) else value
