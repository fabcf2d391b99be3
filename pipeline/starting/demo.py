"""``pipeline demo``: an ordinary recipe with texts that come along, for who wants to see the whole path first.

The models and vocabularies are those of the quickstart, out of Python packages; the texts are in this package. What is
written can be read, changed and run again like any other recipe.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from pipeline.errors import RecipeError
from pipeline.starting.starter import Starter, default_target, default_teacher, render
from stages.references import PackageReference, ReferenceProblem, parse

NAME = "demo"
RECIPE = f"{NAME}.yaml"
DOMAINS = ("novel", "speeches")
"""Chapters of Moby Dick (public domain) and addresses to the US Congress (CC0), of the quickstart's texts."""


def missing_packages() -> list[str]:
    """What has to be installed first, as pip takes it."""
    references = (default_teacher(), str(default_target()["file"]))
    missing = []
    for reference in references:
        found = parse(reference, Path.cwd())
        assert isinstance(found, PackageReference)
        try:
            found.locate()
        except ReferenceProblem:
            missing.append(f"{found.distribution}=={found.version}" if found.version else found.distribution)
    return missing


def write(directory: Path) -> bool:
    """Write recipe and texts to a new or empty ``directory``; False if they are there already, however changed.

    Raises:
        RecipeError: something else is there.
    """
    recipe = directory / RECIPE
    if recipe.exists():
        return False
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise RecipeError(f"{directory} is there and holds no {RECIPE}: name a new or an empty directory")
    try:
        (directory / "data").mkdir(parents=True, exist_ok=True)
        for text in sorted((files("pipeline.starting") / "demo_texts").iterdir(), key=lambda text: text.name):
            (directory / "data" / text.name).write_bytes(text.read_bytes())
        # Last: whoever finds the recipe finds everything.
        recipe.write_text(render(_starter()), encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"{error.filename or directory} cannot be written: {error.strerror}") from None
    return True


def _starter() -> Starter:
    def sets(part: str) -> tuple[dict[str, str], ...]:
        return tuple({"name": domain, "path": f"data/{part}-{domain}.jsonl"} for domain in DOMAINS)

    return Starter(
        name=NAME,
        use="transfer",
        teacher=default_teacher(),
        student=None,
        target=default_target(),
        train=sets("train"),
        evaluation=sets("eval"),
    )
