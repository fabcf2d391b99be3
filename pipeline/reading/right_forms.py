"""The right form of a value that has the wrong one, made from the schema and from what was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

_LONGEST = 100
"""Characters of a form that is worth showing."""


def list_form(value: Any, members: Sequence[Any]) -> str:
    """``[init]`` for ``init`` where a list is wanted.

    Args:
        value: what was given.
        members: what the list may hold, a type each.
    """
    models = [member for member in members if is_model(member)]
    fits = isinstance(value, Mapping) or not models or any(_accepts(member, value) for member in members)
    item = value if fits else _filled(models[0], value)
    return _shown([item]) if item else ""


def mapping_form(value: Any, allowed: Sequence[Any]) -> str:
    """``{model: ./teacher}`` for ``./teacher`` where a mapping is wanted; nothing if no schema has its keys.

    Args:
        value: what was given.
        allowed: what may stand there, a type each.
    """
    form = next((_filled(model, value) for model in allowed if is_model(model)), {})
    return _shown(form) if form else ""


def is_model(annotation: Any) -> bool:
    """Whether it is a class of pydantic's."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _filled(model: type[BaseModel], value: Any) -> dict[str, Any]:
    """The required options, ``value`` as the first that takes it; of a model that requires none, one with a number."""
    form: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if field.is_required():
            taken = value not in form.values() and _accepts(field.rebuild_annotation(), value)
            form[name] = value if taken else "…"
    numbers = {name: field.default for name, field in model.model_fields.items() if _is_number(field.default)}
    return form or dict(list(numbers.items())[:1])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _accepts(annotation: Any, value: Any) -> bool:
    try:
        TypeAdapter(annotation).validate_python(value)
    except ValidationError:
        return False
    return True


def _shown(form: Any) -> str:
    text = yaml.safe_dump(form, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True).strip()
    return text if len(text) <= _LONGEST else ""
