"""A recipe's YAML with its overrides applied, as plain values that know which line they came from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.errors import RecipeError
from pipeline.nearest import did_you_mean
from pipeline.reading.problems import Location, Problem, dotted

SET_OPTION = "--set"

RECIPES = Path("recipes")
"""Where recipes usually are: what is not found elsewhere may be there."""

MOST_VALUES = 100_000
"""Keys and list items of a recipe, an alias counted with all that it stands for: a few lines of aliases of aliases can
stand for more than any memory holds."""

Origin = int | Literal["--set"]
"""A line of the recipe, counted from 1, or the command line."""


@dataclass(frozen=True)
class YamlSource:
    """A parsed recipe.

    Attributes:
        text: the file as written.
        values: plain dicts, lists and scalars; interpolations resolved.
        origins: where each key and list item was written.
        problems: interpolations and overrides that lead nowhere.
    """

    text: str
    values: dict[str, Any]
    origins: Mapping[Location, Origin]
    problems: tuple[Problem, ...]


def read_yaml(path: Path, overrides: Sequence[str] = ()) -> YamlSource:
    """Read ``path`` and apply ``overrides`` (``a.b[0].c=value``, the value in YAML).

    Numbers such as ``1e-4`` are floats; ``${a.b}`` stands for another value of the recipe.

    Raises:
        RecipeError: the file is unreadable, is not YAML, is no mapping, or repeats a key (all repeats are named).
    """
    text = _read_text(path)
    try:
        origins = _origins(text, path)
        config = OmegaConf.create(text)
    except yaml.MarkedYAMLError as error:
        raise _not_yaml(error, path, text) from None
    except RecursionError:
        raise RecipeError(f"{path}: lists and mappings are nested too deeply to be read") from None
    problems: list[Problem] = []
    for override in overrides:
        try:
            location = _apply(config, override)
        except ValueError as error:
            problems.append(Problem((SET_OPTION, override), str(error)))
            continue
        for known in [known for known in origins if known[: len(location)] == location]:
            del origins[known]
        origins[location] = SET_OPTION
    values = _plain(config, (), (), problems)
    return YamlSource(text, values, origins, tuple(problems))


def as_yaml(values: Mapping[str, Any]) -> str:
    """``values`` as a recipe that ``read_yaml`` reads as the same: ``${`` is text again, and ``'1e5'`` no number."""
    return OmegaConf.to_yaml(OmegaConf.create(_escaped(values)))


def _escaped(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_escaped(item) for item in value]
    # A backslash keeps an interpolation from being one, and those before it must be doubled to stay.
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        known = [str(found) for folder in (path.parent, RECIPES) for found in sorted(folder.glob("*.yaml"))]
        near = did_you_mean(str(path), known) or did_you_mean(str(RECIPES / path.with_suffix(".yaml").name), known)
        raise RecipeError(f"{path}: there is no such recipe file{near}") from None
    except IsADirectoryError:
        raise RecipeError(f"{path} is a directory; give the recipe file") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None


def _compose(text: str, path: Path) -> yaml.MappingNode:
    """The document as nodes, which keep their marks and the repeated keys that a loaded mapping has lost."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise _not_yaml(error, path, text) from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(root, yaml.MappingNode):
        raise RecipeError(f"{path}: a recipe is a mapping with name, models, data and stages")
    return root


_NO_BLANK = re.compile(r"\s*(?:- )?(?P<key>[A-Za-z_][\w-]*):(?P<value>[^\s:/\\].*)")
"""A line such as ``name:hand``, which is text to YAML; ``C:/`` and ``https://`` are not meant."""


def _not_yaml(error: yaml.MarkedYAMLError, path: Path, text: str) -> RecipeError:
    if error.problem_mark is None:
        return RecipeError(f"{path}: not valid YAML: {error.problem}")
    line, advice = _likely_cause(text, error.problem_mark.line + 1, str(error.problem))
    return RecipeError(f"{path}:{line}: not valid YAML: {error.problem}{advice}")


def _likely_cause(text: str, line: int, problem: str) -> tuple[int, str]:
    """The line that is probably wrong, and what to do about it, where YAML met ``problem`` at ``line``, from 1.

    Text may go on over several lines, so YAML stumbles over what follows ``name:hand``.
    """
    written = dict(enumerate(text.splitlines(), start=1))
    before = [number for number in range(1, line) if written[number].partition("#")[0].strip()]
    for number in (line, *before[-1:]):
        if match := _NO_BLANK.fullmatch(written.get(number, "").rstrip()):
            meant = f"{match['key']}: {match['value']}"
            return number, f"; a blank is missing after a colon: write {meant!r}"
    colon_in_text = problem == "mapping values are not allowed here"
    return line, "; a key stands on a line of its own, and text that holds ': ' needs quotes" if colon_in_text else ""


def _origins(text: str, path: Path) -> dict[Location, Origin]:
    """The line of every key and list item."""
    origins: dict[Location, Origin] = {}
    problems: list[str] = []

    def visit(node: yaml.Node, location: Location, enclosing: tuple[yaml.Node, ...]) -> None:
        if len(origins) > MOST_VALUES:
            raise RecipeError(f"{path}: more than {MOST_VALUES:,} values, counting what aliases (*name) stand for")
        if node in enclosing:
            problems.append(f"{path}:{origins[location]}: {dotted(location)}: an alias that contains itself")
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                child, line = (*location, str(key.value)), key.start_mark.line + 1
                if not key.tag.endswith((":str", ":merge")):
                    problems.append(f"{path}:{line}: {dotted(child)}: keys must be strings: put it in quotes")
                if child in origins:
                    first = origins[child]
                    problems.append(f"{path}:{line}: {dotted(child)}: duplicate key, first given in line {first}")
                else:
                    origins[child] = line
                    visit(value, child, (*enclosing, node))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                origins[(*location, index)] = value.start_mark.line + 1
                visit(value, (*location, index), (*enclosing, node))

    visit(_compose(text, path), (), ())
    if problems:
        raise RecipeError(problems)
    return origins


def _apply(config: DictConfig, override: str) -> Location:
    """Set one value in ``config``. A path may begin with the name of a stage instead of ``stages``.

    Raises:
        ValueError: the text is no ``path=value``, or the path runs through a scalar or past the end of a list.
    """
    path, equals, text = override.partition("=")
    parts = re.findall(r"\[\d+\]|[^.\[\]]+", path.strip())
    if not equals or not parts:
        raise ValueError("expected PATH=VALUE, such as stages.distill.steps=100")
    if parts[0] not in config and parts[0] in (config.get("stages") or {}):
        parts.insert(0, "stages")
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]
    except yaml.YAMLError:
        raise ValueError(f"{text!r} is not a YAML value") from None
    location: list[str | int] = []
    node: Any = config
    for depth, part in enumerate(parts):
        key = _key(node, part, tuple(location))
        location.append(key)
        if depth == len(parts) - 1:
            node[key] = value
        else:
            node = _section(node, key, tuple(location))
    return tuple(location)


def _section(parent: DictConfig | ListConfig, key: str | int, location: Location) -> Any:
    """What stands at ``key`` of ``parent``; a section that is not there yet begins empty."""
    if OmegaConf.is_interpolation(parent, key):
        raise ValueError(f"{dotted(location)} is {_raw(parent, key)}: set it as a whole, or set what it refers to")
    if OmegaConf.is_missing(parent, key) or (isinstance(parent, DictConfig) and parent.get(key) is None):
        parent[key] = {}
    return parent[key]


def _key(node: Any, part: str, location: Location) -> str | int:
    """The key or index that ``part`` of a path, such as ``steps``, ``[0]`` or ``0``, means in ``node``."""
    if isinstance(node, DictConfig):
        if part.startswith("["):
            raise ValueError(f"{dotted(location)} is no list: it has no item {part}")
        return part
    part = part.strip("[]")
    if not isinstance(node, ListConfig):
        raise ValueError(f"{dotted(location)} is a single value, it has no {part!r}")
    if not part.isdecimal() or int(part) >= len(node):
        raise ValueError(f"{dotted(location)} is a list of {len(node)}, it has no item {part!r} (they count from 0)")
    return int(part)


def _plain(node: Any, location: Location, enclosing: tuple[Any, ...], problems: list[Problem]) -> Any:
    """Resolve every interpolation, noting those that fail instead of stopping at the first."""
    if not isinstance(node, (DictConfig, ListConfig)):
        return node
    values: dict[str | int, Any] = {}
    for key in node if isinstance(node, DictConfig) else range(len(node)):
        place = (*location, key)
        try:
            child = node[key]
        except OmegaConfBaseException as error:
            problems.append(Problem(place, f"{str(error).splitlines()[0]} (in {_raw(node, key)})"))
            child = None
        if child is node or any(child is outer for outer in enclosing):
            problems.append(Problem(place, f"{_raw(node, key)} contains itself"))
            child = None
        values[key] = _plain(child, place, (*enclosing, node), problems)
    return values if isinstance(node, DictConfig) else list(values.values())


def _raw(node: DictConfig | ListConfig, key: str | int) -> str:
    return str(OmegaConf.to_container(node, resolve=False)[key])
