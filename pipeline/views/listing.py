"""What ``pipeline ls`` lists: names, and a line on what each is, out of the code and files that define them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

from pipeline.runs import kept_recipes
from stages import STAGES, load_stage

RECIPES = Path("recipes")


def listing(kind: str, runs: Path) -> dict[str, str]:
    """Name -> a line; ``kind`` is ``stages``, ``losses``, ``initializers``, ``recipes`` or ``runs``."""
    if kind == "stages":
        return {name: first_sentence(load_stage(name).__doc__) for name in STAGES if not name.startswith("source-")}
    if kind == "losses":
        from stages.objectives import LossEntry

        return {name: first_sentence(field.description) for name, field in LossEntry.model_fields.items()}
    if kind == "initializers":
        return dict(_initializers())
    if kind == "recipes":
        return {str(path): _first_comment(path) for path in sorted(RECIPES.glob("*.yaml"))}
    return {name: str(path) for name, path in kept_recipes(runs).items()}


def _initializers() -> Iterable[tuple[str, str]]:
    from stages.initializers import Entry

    union, _ = get_args(Entry)
    for options in get_args(union):
        (method,) = get_args(options.model_fields["method"].annotation)
        yield method, first_sentence(options.__doc__)


def first_sentence(text: str | None) -> str:
    """The first paragraph of a docstring, on one line, up to the first full stop that ends a sentence."""
    paragraph = " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split())
    return paragraph.split(". ")[0].rstrip(".").replace("``", "")


def _first_comment(path: Path) -> str:
    """What the recipe says of itself."""
    with path.open(encoding="utf-8") as file:
        line = file.readline()
    return first_sentence(line.lstrip("# ")) if line.startswith("#") else ""
