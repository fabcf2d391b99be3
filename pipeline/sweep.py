"""Many runs of one recipe: every combination of the alternatives that ``--set`` gives."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import RecipeError
from pipeline.reading.loading import load_recipe
from pipeline.reading.yaml_source import read_yaml
from pipeline.recipe import LONGEST_NAME, Recipe
from stages.masking import holds_token, is_secret_name

MOST_RUNS = 1000
"""In one sweep; more are taken for a slip. Each is checked and planned before the first one runs."""

_BRACKETS = {"[": "]", "{": "}", "(": ")"}


def alternatives(override: str) -> list[str]:
    """``a.b=1,2`` -> ``a.b=1`` and ``a.b=2``. Commas inside brackets or quotes separate nothing.

    Raises:
        RecipeError: the text is no ``path=value``, or an alternative is empty or given twice.
    """
    path, equals, values = override.partition("=")
    if not equals:
        raise RecipeError(f"--set {override}: expected PATH=VALUE,VALUE..., such as init.input.method=omp,piece_mean")
    parts, depth, quote = [""], [], ""
    for character in values:
        if character == "," and not depth and not quote:
            parts.append("")
            continue
        parts[-1] += character
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in _BRACKETS:
            depth.append(_BRACKETS[character])
        elif depth and character == depth[-1]:
            depth.pop()
    if len(parts) > 1 and not all(part.strip() for part in parts):
        raise RecipeError(f"--set {override}: there is nothing before or after a comma")
    values = [part.strip() for part in parts]
    if repeated := [value for value in dict.fromkeys(values) if values.count(value) > 1]:
        raise RecipeError(f"--set {path}: {', '.join(repeated)} is given more than once: it would be the same run")
    return [f"{path}{equals}{value}" for value in values]


def combinations(path: Path, overrides: Sequence[str]) -> list[Recipe]:
    """One recipe for every combination of alternatives, in the order in which they are written, the last varying first.

    Each is called ``<name>--<key>-<value>…`` after what differs, and all are of one MLflow experiment.

    Raises:
        RecipeError: no override has alternatives, one has alternatives that cannot be, or there are too many
            combinations; or a combination is wrong: the problems of all of them, each once.
    """
    choices = [alternatives(override) for override in overrides]
    _check_choices(choices)
    if all(len(choice) == 1 for choice in choices):
        raise RecipeError(
            "nothing to sweep over: give alternatives, such as --set init.input.method=omp,piece_mean; for one value "
            "use `pipeline run`"
        )
    recipes: list[Recipe] = []
    problems: dict[str, None] = {}
    given = read_yaml(path, [choice[0] for choice in choices]).values
    base, experiment = given.get("name"), given.get("experiment") or given.get("name")
    several = [len(choice) > 1 for choice in choices]
    combined = list(itertools.product(*choices))
    names = run_names(str(base), [list(itertools.compress(chosen, several)) for chosen in combined])
    for name, chosen in zip(names, combined, strict=True):
        # A name that is none is left for the recipe's own check to report.
        shared = [f"name={name}", f"experiment={json.dumps(experiment)}"] if isinstance(base, str) else []
        try:
            recipes.append(load_recipe(path, [*chosen, *shared]))
        except RecipeError as error:
            problems.update(dict.fromkeys(error.problems))
    if problems:
        raise RecipeError(list(problems))
    return recipes


def _check_choices(choices: Sequence[Sequence[str]]) -> None:
    count = math.prod(map(len, choices))
    if count > MOST_RUNS:
        raise RecipeError(f"that would be {count:,} runs; a sweep has at most {MOST_RUNS:,}: sweep over fewer values")
    paths = [choice[0].partition("=")[0].strip() for choice in choices]
    for path, choice in zip(paths, choices, strict=True):
        if len(choice) > 1 and paths.count(path) > 1:
            raise RecipeError(f"--set {path} is given twice, and the later would take the place of the other")
        if len(choice) > 1 and (is_secret_name(re.split(r"[.\[\]]+", path)[-1]) or any(map(holds_token, choice))):
            raise RecipeError(f"--set {path}: one value; a secret would become part of the names of runs")
        if len(choice) > 1 and path in ("name", "experiment"):
            raise RecipeError(
                f"--set {path}: one value; the runs of a sweep are named after what differs, in one experiment"
            )


def run_names(base: str, varied: Sequence[Sequence[str]]) -> list[str]:
    """A name for each run: ``base``, and what was varied as the last keys of its paths and the values.

    Paths that end alike are told apart by more of their keys; names that are alike or too long, by a digest.
    """
    names = [_run_name(base, texts) for texts in varied]
    return [
        name
        if names.count(name) == 1 and len(name) <= LONGEST_NAME
        else f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(repr(texts).encode()).hexdigest()[:8]}"
        for name, texts in zip(names, varied, strict=True)
    ]


def _run_name(base: str, varied: Sequence[str]) -> str:
    pairs = [text.partition("=")[::2] for text in varied]
    keys = [re.findall(r"[^.\[\]]+", path) for path, _ in pairs]
    words = [f"{_shortest_suffix(parts, keys)}-{value}" for parts, (_, value) in zip(keys, pairs, strict=True)]
    return "--".join([base, *(re.sub(r"[^A-Za-z0-9_-]+", "_", word).strip("_") for word in words)])


def _shortest_suffix(parts: Sequence[str], others: Sequence[Sequence[str]]) -> str:
    for length in range(1, len(parts)):
        suffix = parts[-length:]
        if sum(list(other[-length:]) == list(suffix) for other in others) == 1:
            return ".".join(suffix)
    return ".".join(parts)
