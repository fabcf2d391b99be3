"""A pydantic model as options to be written down: name, meaning, values in words, default, and what stands below."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

REQUIRED: Any = object()
"""The default of an option that has none."""

ONE_OF = {"LossEntry"}
"""Models of which a recipe gives one field alone: the field's name says which of several things it is."""

Shape = Literal["value", "mapping", "list", "names"]


@dataclass(frozen=True)
class Section:
    """The keys of one mapping.

    Attributes:
        model: the name of the pydantic model, the same wherever it is used.
        name: the method or loss that it is, where it is one of several; else empty.
        meaning: the model's docstring.
        options: its keys, in the order of the fields.
        wrapped: a recipe writes the name as a key with the options below it (``alm: {...}``).
    """

    model: str
    name: str
    meaning: str
    options: tuple[Option, ...]
    wrapped: bool = False


@dataclass(frozen=True)
class Option:
    """One key.

    Attributes:
        name: the key.
        meaning: the docstring under the field.
        values: what it may be, in words.
        default: a JSON value, or REQUIRED.
        keyed: whether it is part of the cache key.
        constant: whether it has but one value, as the name of a method has.
        shape: whether it is a value, a mapping, a list of mappings, or mappings by names of the user's choice.
        sections: the mapping, or those of which each item is one.
    """

    name: str
    meaning: str
    values: str
    default: Any
    keyed: bool = True
    constant: bool = False
    shape: Shape = "value"
    sections: tuple[Section, ...] = ()

    @property
    def required(self) -> bool:
        """Whether a recipe must give it."""
        return self.default is REQUIRED


def section_of(model: type[BaseModel]) -> Section:
    """Every key of ``model``, and of the models inside it."""
    schema = model.model_json_schema()
    return _section(schema, schema.get("$defs", {}))


def _section(
    schema: Mapping[str, Any], definitions: Mapping[str, Any], name: str = "", wrapped: bool = False
) -> Section:
    required = schema.get("required", ())
    options = [_option(key, value, definitions, key in required) for key, value in schema.get("properties", {}).items()]
    options.sort(key=lambda option: not option.constant)
    return Section(schema["title"], name, _one_line(schema.get("description", "")), tuple(options), wrapped)


def _option(name: str, schema: Mapping[str, Any], definitions: Mapping[str, Any], required: bool) -> Option:
    shape, sections = _below(schema, definitions)
    meaning = schema.get("description", "")
    if not meaning and len(sections) == 1:
        meaning = sections[0].meaning
    return Option(
        name=name,
        meaning=_one_line(meaning),
        values=_in_words(schema),
        default=REQUIRED if required else schema.get("default", _empty(schema)),
        keyed=schema.get("keyed", True),
        constant="const" in schema,
        shape=shape,
        sections=sections,
    )


def _empty(schema: Mapping[str, Any]) -> Any:
    """The default of a container that the schema does not tell because it is made anew each time."""
    return {"object": {}, "array": []}.get(schema.get("type"))


def _below(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> tuple[Shape, tuple[Section, ...]]:
    """How mappings with keys of their own stand in a value, and which they may be."""
    for member in _members(schema):
        if member.get("type") == "array" and "items" in member:
            _, sections = _below(member["items"], definitions)
            if sections:
                return "list", sections
        if "$ref" in (values := _values(member)):
            return "names", (_section(_resolve(values, definitions), definitions),)
        if "discriminator" in member:
            tags = {reference: tag for tag, reference in member["discriminator"]["mapping"].items()}
            names = [(tags[each["$ref"]], _resolve(each, definitions)) for each in member["oneOf"]]
            return "mapping", tuple(_section(target, definitions, name) for name, target in names)
        if "$ref" in member:
            target = _resolve(member, definitions)
            if target["title"] in ONE_OF:
                return "mapping", _alternatives(target, definitions)
            return "mapping", (_section(target, definitions),)
    return "value", ()


def _values(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a mapping with any names, the schema of its values; empty where they may be anything, and for other types."""
    by_pattern = list(schema.get("patternProperties", {}).values())
    values = by_pattern[0] if by_pattern else schema.get("additionalProperties")
    return values if isinstance(values, dict) else {}


def _alternatives(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> tuple[Section, ...]:
    """The sections of a model of ``ONE_OF``, one a field."""
    targets = {
        name: next(_resolve(member, definitions) for member in _members(value) if "$ref" in member)
        for name, value in schema["properties"].items()
    }
    return tuple(_section(target, definitions, name, wrapped=True) for name, target in targets.items())


def _members(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The members of a union without null; the schema itself if it is none."""
    return [member for member in schema.get("anyOf", [schema]) if member.get("type") != "null"]


def _resolve(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    return definitions[schema["$ref"].removeprefix("#/$defs/")]


def _in_words(schema: Mapping[str, Any]) -> str:
    """What a value may be, e.g. ``integer >= 1`` or ``sum | best``."""
    return " or ".join(dict.fromkeys(_type(member, schema) for member in _members(schema)))


def _type(schema: Mapping[str, Any], field: Mapping[str, Any]) -> str:
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "$ref" in schema or "discriminator" in schema:
        return "mapping"
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return f"{kind}{_range(schema)}"
    if kind == "array":
        return _list(schema)
    if kind == "object":
        values = _values(schema)
        if "$ref" in values:
            return "mappings by names"
        return f"mapping of names to {_in_words(values)}" if values else "mapping"
    if kind == "string":
        return "reference" if field.get("reference") else "text"
    return {"boolean": "true | false"}.get(kind, "anything")


def _list(schema: Mapping[str, Any]) -> str:
    if "prefixItems" in schema:
        return f"list of {len(schema['prefixItems'])}: {_in_words(schema['prefixItems'][0])}"
    least = f", at least {schema['minItems']}" if "minItems" in schema else ""
    items = schema.get("items", {})
    return f"list of {'mappings' if '$ref' in items or 'discriminator' in items else _in_words(items)}{least}"


def _range(schema: Mapping[str, Any]) -> str:
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    words = [f"{sign} {schema[key]:.10g}" for key, sign in bounds.items() if key in schema]
    return f" {', '.join(words)}" if words else ""


def _one_line(text: str) -> str:
    """A docstring's first paragraph, in the one kind of quotes that comments and pages share."""
    first = re.split(r"\n\s*\n", text.strip())[0]
    return re.sub(r"\s+", " ", first).replace("``", "`")
