"""``docs/reference.md``: a table for each mapping of a recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pipeline.recipe import Resources
from pipeline.reference import skeleton
from pipeline.reference.schema import Option, Section, section_of
from pipeline.reference.stage_facts import inputs_in_words, stage_summary
from stages import load_stage
from stages.document_sets import DocumentSet
from stages.sources import ModelSourceConfig

_HEAD = """\
# Every key of a recipe

Made by `python -m pipeline.reference --markdown > docs/reference.md` from the options themselves. As one file to copy
from: [recipes/reference.yaml](../recipes/reference.yaml). What they are for: [writing a recipe](recipe.md).

A *reference* is `./path`, `package:NAME==VERSION/path/inside` or `org/name@revision`. Options marked ○ change how a
stage runs but not what it computes: changing one makes nothing anew. A default of – is none: what an option then does
is said beside it.
"""


def render() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *_Page().lines()]).rstrip() + "\n"


class _Page:
    """Writes each mapping once, and afterwards links to it."""

    def __init__(self) -> None:
        self._written: dict[str, str] = {}

    def lines(self) -> Iterator[str]:
        yield from ("## The recipe", "", "| key | |", "|---|---|")
        yield from (f"| `{key}` | {meaning} |" for key, meaning in skeleton.SECTIONS.items())
        yield ""
        models = "\n".join(f"* `{name}`: {meaning}" for name, (meaning, _) in skeleton.MODELS.items())
        yield from self._chapter("models", section_of(ModelSourceConfig), [models, "Each has these keys."])
        texts = "\n".join(f"* `{name}`: {meaning}" for name, (meaning, _) in skeleton.DATA.items())
        yield from self._chapter("data", section_of(DocumentSet), [texts, "Each is a list of sets with these keys."])
        yield from ("## Stages", "", "Every stage has `uses`, its kind, and `needs`, the stages that it reads.", "")
        for kind in skeleton.STAGES:
            stage = load_stage(kind)
            about = [_escaped(stage_summary(stage)), _escaped(inputs_in_words(stage))]
            yield from self._chapter(kind, section_of(stage.Config), about)
        yield from self._chapter("resources", section_of(Resources), ["For a stage, how it is launched."])

    def _chapter(self, name: str, section: Section, about: list[str]) -> Iterator[str]:
        level = "##" if name in skeleton.SECTIONS else "###"
        yield from (f"{level} `{name}`", "")
        for paragraph in about:
            yield from (paragraph, "")
        yield from self._tables(section, name)

    def _tables(self, section: Section, place: str) -> Iterator[str]:
        """The section's table, and then those of what stands inside its options."""
        below = [
            (option, inner, _place(place, option, inner))
            for option in section.options
            for inner in option.sections
            if inner.model not in self._written
        ]
        self._written |= {inner.model: where for _, inner, where in below}
        if section.options:
            yield from ("| option | may be | default | |", "|---|---|---|---|")
            yield from (self._row(option) for option in section.options if not option.constant)
            yield ""
        for option, inner, where in below:
            yield from (f"#### `{where}`", "")
            if inner.meaning and inner.meaning != option.meaning:
                yield from (_escaped(inner.meaning), "")
            if any(not each.constant for each in inner.options):
                yield from self._tables(inner, where)

    def _row(self, option: Option) -> str:
        mark = "" if option.keyed else " ○"
        places = [self._written[section.model] for section in option.sections]
        links = ", ".join(f"[{_last(place)}](#{_anchor(place)})" for place in places)
        values = f"{_escaped(option.values)}: {links}" if links else _escaped(option.values)
        return f"| `{option.name}`{mark} | {values} | {_default(option)} | {_escaped(option.meaning)} |"


def _place(place: str, option: Option, section: Section) -> str:
    return ".".join(filter(None, (place, option.name, section.name)))


def _last(place: str) -> str:
    return place.rpartition(".")[2]


def _anchor(place: str) -> str:
    """The anchor that a heading of this text gets."""
    return place.lower().replace(".", "")


def _default(option: Option) -> str:
    if option.required:
        return "required"
    value: Any = option.default
    if value is None or (option.sections and isinstance(value, dict)):
        return "–"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"`{_escaped(text)}`" if text else "–"


def _escaped(text: str) -> str:
    """Text for a cell of a table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*.", "\\*.")
