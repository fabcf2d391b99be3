"""Cache keys: what a stage computes, as one hash (runner specification, R1, R3 and R6).

A key covers the stage kind, its VERSION, the options that change its result, the content of everything outside that
it names, and the keys of its inputs. How the YAML is written, where files lie and how the stage is launched are not
in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import PurePath
from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.reading.problems import Location

KEY_SCHEMA = 1
"""Raise it when this module's rules change, which makes every earlier result unknown."""

REFERENCE = "content"
"""The one key of the object that stands for a reference in a key's parameters."""

VERSION = "VERSION"
"""Class attribute of nested options, and the key of its value in a key's parameters (rule R5)."""

Model = TypeVar("Model", bound=BaseModel)

Identify = Callable[[Location, str], str]
"""Gives what a reference stands for: its place in the configuration and its spelling -> an identity of its content."""


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, integers apart from floats.

    Raises:
        ValueError: there is a NaN or an infinity in it.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def cache_key(ingredients: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON, in hex."""
    return hashlib.sha256(canonical_json(ingredients).encode()).hexdigest()


def key_ingredients(
    uses: str, version: int, params: Mapping[str, Any], inputs: Mapping[str, Sequence[str | tuple[str, str]]]
) -> dict[str, Any]:
    """What is hashed into a key.

    Args:
        uses, version: the stage kind and its VERSION.
        params: from ``keyed_params``.
        inputs: input name -> the upstream stages' keys; for an input that takes many stages, which sees their
            names, pairs (name, key).
    """
    return {
        "key_schema": KEY_SCHEMA,
        "uses": uses,
        "version": version,
        "params": dict(params),
        "inputs": {
            name: [list(item) if isinstance(item, tuple) else item for item in keys] for name, keys in inputs.items()
        },
    }


def keyed_params(config: BaseModel, identify: Identify, location: Location = ()) -> dict[str, Any]:
    """The options that change the result, as JSON values.

    Fields marked as not keyed are left out, and so are those that are None: a new optional field then leaves the keys
    of earlier results as they were. References are replaced by what they stand for. Nested models may bear the
    same marks. What is made from nested options may change while they stay the same: their class then has a
    ``VERSION``, which is left out as long as it is 1.

    Raises:
        TypeError: a value is of a kind that has no JSON form.
    """
    version = getattr(type(config), VERSION, 1)
    params: dict[str, Any] = {} if version == 1 else {VERSION: version}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if value is not None and _mark(field, "keyed", True):
            params[name] = _json(
                value, identify if _mark(field, "reference", False) else None, identify, (*location, name)
            )
    return params


def map_references(config: Model, replace: Identify, location: Location = ()) -> Model:
    """A copy of ``config`` in which every reference was put through ``replace``.

    Fields that hold none stay as they are, unset ones unset: stages may ask which fields the recipe gave.
    """
    changed = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        mapped = _map(value, _mark(field, "reference", False), replace, (*location, name))
        if mapped != value:
            changed[name] = mapped
    return config.model_copy(update=changed)


def _mark(field: FieldInfo, mark: str, default: bool) -> bool:
    extra = field.json_schema_extra
    return bool(extra.get(mark, default)) if isinstance(extra, dict) else default


def _json(value: Any, as_reference: Identify | None, identify: Identify, location: Location) -> Any:
    if isinstance(value, BaseModel):
        return keyed_params(value, identify, location)
    if isinstance(value, Mapping):
        return {str(key): _json(item, as_reference, identify, (*location, str(key))) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(item, as_reference, identify, (*location, index)) for index, item in enumerate(value)]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (str, PurePath)):
        return {REFERENCE: as_reference(location, str(value))} if as_reference else str(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    raise TypeError(f"{location}: a {type(value).__name__} cannot be part of a cache key")


def _map(value: Any, is_reference: bool, replace: Identify, location: Location) -> Any:
    if isinstance(value, BaseModel):
        return map_references(value, replace, location)
    if isinstance(value, Mapping):
        return {key: _map(item, is_reference, replace, (*location, str(key))) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_map(item, is_reference, replace, (*location, index)) for index, item in enumerate(value))
    return replace(location, value) if is_reference and isinstance(value, str) else value
