"""``recipes/reference.yaml``: a valid recipe with every key, those that it does not give as comments with defaults."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from pipeline.recipe import Resources
from pipeline.reference import skeleton
from pipeline.reference.schema import REQUIRED, Option, Section, section_of
from pipeline.reference.stage_facts import inputs_in_words, stage_summary
from stages import load_stage
from stages.document_sets import DocumentSet
from stages.sources import ModelSourceConfig

WIDTH = 118

_HEAD = """\
Every key that a recipe can have, with what it does, what it may be, and its default.

Made by `python -m pipeline.reference > recipes/reference.yaml` from the options themselves; docs/reference.md is the
same as a page. This is a valid recipe, but one to copy from: its stages show options and make no sense together. A line
that begins with '#' and no space is a key that is not given, with its default, or with an example where `null` or no
default says nothing; remove that '#' from it (and from the lines below that belong to it) to give it. `[no key]` marks
options that change how a stage runs but not what it computes: changing them makes nothing anew.
A reference is ./path, package:NAME==VERSION/path/inside, or org/name@revision on the Hugging Face hub.\
"""


def render() -> str:
    """The whole file."""
    return "\n".join([*_Page().lines(), ""])


class _Page:
    """Writes each mapping out in full once, and afterwards says where that is."""

    def __init__(self) -> None:
        self._written: dict[str, str] = {}

    def lines(self) -> Iterator[str]:
        for paragraph in _HEAD.split("\n"):
            yield f"# {paragraph}".rstrip()
        for key, meaning in skeleton.SECTIONS.items():
            yield from ("", *_comment(meaning))
            yield from {
                "name": lambda: iter(["name: reference"]),
                "experiment": lambda: iter(["#experiment: null"]),
                "seed": lambda: iter(["seed: 0"]),
                "models": self._models,
                "data": self._data,
                "stages": self._stages,
                "resources": self._resources,
            }[key]()

    def _models(self) -> Iterator[str]:
        yield "models:"
        section = section_of(ModelSourceConfig)
        for name, (meaning, given) in skeleton.MODELS.items():
            # What a model's own tokenizer and the target tokenizer are is the same; the target is written out.
            own = {"TokenizerSpec": "models.student.tokenizer"}
            self._written |= {} if "tokenizer" in given else own
            yield from _indented(_comment(meaning))
            if given:
                yield from _indented([f"{name}:", *_indented(self._section(section, given, name))])
            else:
                yield from _indented(_disabled([f"{name}:", *_indented(self._section(section, None, name))]))
            self._written.pop("TokenizerSpec", None)
        self._written["TokenizerSpec"] = "models.student.tokenizer"

    def _data(self) -> Iterator[str]:
        yield "data:"
        section = section_of(DocumentSet)
        for name, (meaning, given) in skeleton.DATA.items():
            yield from _indented(_comment(meaning))
            first = section.model not in self._written
            lines = self._section(section, given, f"data.{name}") if first else [_pair("path", given["path"])]
            yield from _indented([f"{name}:", *_item(lines)])
            self._written[section.model] = "data.train"

    def _stages(self) -> Iterator[str]:
        yield "stages:"
        for index, (kind, shown) in enumerate(skeleton.STAGES.items()):
            stage = load_stage(kind)
            yield from [""] if index else []
            head = f"{kind}: {stage_summary(stage)}"
            yield from _indented([*_comment(head), *_comment(inputs_in_words(stage))])
            needs = [f"needs: [{', '.join(shown.needs)}]"] if shown.needs else []
            options = self._section(section_of(stage.Config), None if shown.disabled else shown.given, kind)
            lines = [f"{kind}:", *_indented([f"uses: {kind}", *needs, *options])]
            if shown.disabled:
                yield from _indented([*_comment(f"Not given here, since {shown.disabled}."), *_disabled(lines)])
            else:
                yield from _indented(lines)

    def _resources(self) -> Iterator[str]:
        yield "resources:"
        name = skeleton.RESOURCES
        options = self._section(section_of(Resources), {"launcher": "local"}, "resources")
        yield from _indented([f"{name}:", *_indented(options)])

    def _section(self, section: Section, given: Mapping[str, Any] | None, place: str) -> list[str]:
        """The lines of a mapping's keys.

        Args:
            section: the mapping.
            given: the keys that are given, others being comments; None where the whole mapping is a comment already, so
                that each key has its default in it.
            place: where it stands, for references to it.
        """
        lines: list[str] = []
        for option in section.options:
            lines += _comment(skeleton.MEANINGS.get(f"{place}.{option.name}", option.meaning))
            where = f"{place}.{option.name}"
            value = skeleton.EXAMPLES.get((section.model, option.name), option.default)
            if given is None:
                block = self._blocks(option, option.values if option.constant else value, where)
                alternative = (section.model, option.name) in skeleton.ALTERNATIVES
                lines += _as_comments(block) if alternative else block[0]
            elif option.name in given:
                lines += self._given(option, given[option.name], where)
            else:
                lines += _as_comments(self._blocks(option, value, where))
        return lines

    def _given(self, option: Option, value: Any, place: str) -> list[str]:
        """An option that the recipe gives, and as comments what else could stand there."""
        if option.shape == "mapping" and len(option.sections) == 1 and isinstance(value, Mapping):
            (section,) = option.sections
            return [f"{option.name}:", *_indented(self._section(section, value, place))]
        others = self._blocks(option, None, place) if option.sections else []
        return [_pair(option.name, value, _note(option)), *_as_comments(others)]

    def _blocks(self, option: Option, value: Any, place: str) -> list[list[str]]:
        """The ways to write an option: one, or where it may be one of several mappings one for each.

        Lines that begin with ``# `` are about the block; the others are YAML.
        """
        if not option.sections:
            return [[_pair(option.name, _written(value, option), _note(option))]]
        known = self._written.get(option.sections[0].model)
        if known is not None:
            return [[_pair(option.name, value, f"{_note(option)}, as in {known}")]]
        self._written |= {section.model: place for section in option.sections}
        return [self._block(option, section, value, place) for section in option.sections]

    def _block(self, option: Option, section: Section, value: Any, place: str) -> list[str]:
        about = _comment(section.meaning) if len(option.sections) > 1 else []
        below = self._section(_with_defaults(section, value), None, place)
        if section.wrapped:
            below = [f"{section.name}:", *_indented(below)]
        if not [line for line in below if not line.startswith("# ")]:
            return [*about, f"{option.name}: {{}}"]
        if option.shape == "names":
            below = ["NAME:", *_indented(below)]
        return [*about, f"{option.name}:", *(_item(below) if option.shape == "list" else _indented(below))]


def _as_comments(blocks: list[list[str]]) -> list[str]:
    """The blocks as comments; what is a comment already stays as it is."""
    return [line if line.startswith("# ") else f"#{line}" for block in blocks for line in block]


def _with_defaults(section: Section, values: Any) -> Section:
    """The section with the defaults that the option around it gives."""
    if not isinstance(values, Mapping):
        return section
    options = (
        Option(**vars(option) | {"default": values[option.name]}) if option.name in values else option
        for option in section.options
    )
    return Section(section.model, section.name, section.meaning, tuple(options), section.wrapped)


def _written(value: Any, option: Option) -> Any:
    """The value, if there is one.

    Raises:
        LookupError: it is required, and nothing says what to write.
    """
    if value is REQUIRED:
        raise LookupError(f"{option.name} has no default: give an example of it in pipeline/reference/skeleton.py")
    return value


def _note(option: Option) -> str:
    if option.constant:
        return ""
    required = ", required" if option.required else ""
    return f"{option.values}{required}{'' if option.keyed else ' [no key]'}"


def _pair(key: str, value: Any, note: str = "") -> str:
    """``key: value  # note``."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).strip()
    text = text.removesuffix("...").strip()
    line = f"{key}: {text}"
    return f"{line}  # {note}" if note else line


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, WIDTH - 12, break_on_hyphens=False, break_long_words=False)]


def _indented(lines: list[str] | Iterator[str]) -> list[str]:
    return [f"  {line}" if line else "" for line in lines]


def _disabled(lines: list[str]) -> list[str]:
    return [f"#{line}" for line in lines]


def _item(lines: list[str]) -> list[str]:
    """The lines of a mapping as an item of a list: a dash before its first key."""
    first = next(index for index, line in enumerate(lines) if not line.lstrip().startswith("#"))
    return [f"- {line}" if index == first else f"  {line}" for index, line in enumerate(lines)]
