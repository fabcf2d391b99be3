"""What is wrong with a recipe, in words its author can act on."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, Union

from pydantic import BaseModel, ValidationError

from pipeline.nearest import did_you_mean, unknown_name
from pipeline.reading.other_names import called_here
from pipeline.reading.right_forms import is_model, list_form, mapping_form

REFERENCE_PAGE = "docs/reference.md"
"""Where every key of every section is listed."""

Location = tuple[str | int, ...]
"""Where a value stands in a recipe: keys of mappings and indices of lists, from the top."""


class Problem(NamedTuple):
    """One thing that is wrong, and where."""

    location: Location
    message: str


def dotted(location: Location) -> str:
    """Spell a location as ``--set`` takes it: ``data.train[0].weight``."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def leaves(value: Any, location: Location = ()) -> Iterator[tuple[Location, Any]]:
    """Every scalar and empty container inside ``value``, with its location."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from leaves(item, (*location, key))
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from leaves(item, (*location, index))
    else:
        yield location, value


def describe(error: ValidationError, model: type[BaseModel], also_known: Collection[str] = ()) -> list[Problem]:
    """Turn pydantic's errors about ``model`` into problems, one a location.

    ``also_known`` are keys that may stand beside the model's own, for the nearest name.

    Each member of a union reports for itself, under a location that names the member: those names are taken out, and
    what is said of one location is joined by "or". Where something inside a value is wrong, complaints about the
    value as a whole (other members of the union, a list that lost its wrong items) are dropped.
    """
    found: dict[Location, list[str]] = {}
    for details in error.errors(include_url=False):
        # An error about a key itself has this mark behind the key.
        location, owners, allowed = _follow(model, tuple(part for part in details["loc"] if part != "[key]"))
        messages = found.setdefault(location, [])
        known = [
            *(also_known if len(location) == 1 else ()),
            *(name for owner in owners for name in owner.model_fields),
        ]
        message = _message(details, known, allowed)
        if message not in messages:
            messages.append(message)
    return [
        Problem(location, " or ".join(messages))
        for location, messages in found.items()
        if not _has_deeper(location, found)
    ]


def _has_deeper(location: Location, others: Iterable[Location]) -> bool:
    return any(len(other) > len(location) and other[: len(location)] == location for other in others)


def _message(details: Mapping[str, Any], known: Collection[str], allowed: Sequence[Any]) -> str:
    """What pydantic found, in our words; ``known`` are the keys, ``allowed`` the types of the place."""
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key{_meant(str(details['loc'][-1]), known)}"
    if kind == "missing":
        return "required, but not given"
    if kind == "value_error":
        return str(context["error"])
    if kind == "too_short":
        return f"should have at least {context['min_length']}, not {context['actual_length']}"
    if kind == "union_tag_invalid":
        key, tags = context["discriminator"].strip("'"), re.findall(r"'([^']*)'", context["expected_tags"])
        return f"unknown {key} {context['tag']!r}{unknown_name(context['tag'], tags)}"
    if kind == "union_tag_not_found":
        return f"{context['discriminator'].strip(chr(39))} is required, but not given"
    message = details["msg"].replace("Input should", "should")
    message = re.sub(r"a valid (tuple|list)", "a list", message)
    message = re.sub(r"a valid dictionary( or (instance of \w+|object to extract fields from))?", "a mapping", message)
    message, form = f"{message[0].lower()}{message[1:]}", _form(kind, value, allowed)
    message = f"{message}, such as {form}, not {_short(value)}" if form else f"{message}, not {_short(value)}"
    if kind in {"literal_error", "enum"} and isinstance(value, str):
        message += did_you_mean(value, re.findall(r"'([^']*)'", context["expected"]))
    return message


def _meant(name: str, known: Collection[str]) -> str:
    key, colon, value = name.partition(":")
    if colon and key in known:
        return f" (a blank is missing after the colon: write '{key}: {value}')"
    return called_here(name, known) or unknown_name(name, known, listed_in=REFERENCE_PAGE)


def _form(kind: str, value: Any, allowed: Sequence[Any]) -> str:
    """The right form, where pydantic's error of this kind says that ``value`` has a wrong one."""
    if kind in {"list_type", "tuple_type"}:
        return list_form(value, [member for annotation in allowed for member in _children(annotation, 0)])
    if kind in {"dict_type", "model_type", "model_attributes_type"}:
        return mapping_form(value, allowed)
    return ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _follow(model: type[BaseModel], location: Location) -> tuple[Location, list[type[BaseModel]], list[Any]]:
    """Walk ``location`` through the annotations of ``model``.

    Returns the location without the names of union members, the models that own its last key, and the types of what
    may stand there.
    """
    path: list[str | int] = []
    current: list[Any] = [model]
    owners: list[type[BaseModel]] = []
    chosen = False
    for part in location:
        inner = [child for candidate in current for child in _children(candidate, part)]
        if not inner and len(current) > 1 and not chosen:
            # Inside a union the first part names a member, the next one is a key of that member.
            current = [candidate for candidate in current if part in _member_names(candidate)] or current
            chosen = True
            continue
        path.append(part)
        owners = [candidate for candidate in current if is_model(candidate)]
        current, chosen = inner, False
    return tuple(path), owners, current


def _member_names(annotation: Any) -> list[Any]:
    """What pydantic may call a member of a union: its name, or its tag where a discriminator chooses."""
    fields = annotation.model_fields.values() if is_model(annotation) else ()
    tags = [
        tag
        for field in fields
        if typing.get_origin(field.annotation) is typing.Literal and field.is_required()
        for tag in typing.get_args(field.annotation)
    ]
    return [getattr(annotation, "__name__", None), *tags]


def _children(annotation: Any, part: str | int) -> list[Any]:
    """What stands at ``part`` of a value annotated so; empty when it has no such part."""
    if is_model(annotation):
        fields = annotation.model_fields
        return _alternatives(fields[part].annotation) if part in fields else []
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (list, tuple, set, frozenset) and isinstance(part, int):
        return _alternatives(arguments[0])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _alternatives(arguments[1])
    return []


def _alternatives(annotation: Any) -> list[Any]:
    """The members of a union, without None; otherwise the annotation itself."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _alternatives(typing.get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [
            part for member in typing.get_args(annotation) if member is not type(None) for part in _alternatives(member)
        ]
    return [annotation]
