"""What ``pipeline card`` and ``pipeline mixture`` are given on the command line, found on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import RecipeError
from stages.documents import without_compression
from stages.references import ReferenceProblem, parse
from stages.sources import RANK_SUFFIXES, TOKENIZER_FILES
from stages.stage import StageError

_NAMED = re.compile(r"(?P<name>[\w.-]+)=(?!=)(?P<place>.+)")
"""Not ``package==VERSION/PATH``."""


def find_tokenizers(references: Sequence[str]) -> dict[str, Path]:
    """Name -> the directory or file of each tokenizer, given as recipes refer to them, or as ``NAME=REFERENCE``.

    Without a name it is called by the last parts of its reference that tell it from the others.

    Raises:
        RecipeError: one cannot be found, two have one name, or one is a rank file, which is not a whole tokenizer.
    """
    named = [_NAMED.fullmatch(reference) for reference in references]
    places = [match["place"] if match else reference for match, reference in zip(named, references, strict=True)]
    names = [match["name"] if match else short for match, short in zip(named, short_names(places), strict=True)]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise RecipeError(
            f"several tokenizers are called {', '.join(repeated)}; write NAME=TOKENIZER with another name"
        )
    for place in places:
        if place.endswith(RANK_SUFFIXES):
            raise RecipeError(
                f"{place}: a tiktoken rank file lacks the pattern and the special tokens. Name it in a recipe and run "
                "that: the directory of its first stage under runs holds the whole tokenizer"
            )
    try:
        paths = [parse(place, Path.cwd()).locate(TOKENIZER_FILES) for place in places]
    except ReferenceProblem as error:
        raise RecipeError(str(error)) from None
    return dict(zip(names, paths, strict=True))


def find_texts(texts: Sequence[str]) -> dict[str, Path]:
    """Name -> path of texts given as ``NAME=FILE``, or as ``FILE``, which is called by its name without its suffix.

    Raises:
        RecipeError: two have one name, or a file does not exist.
    """
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, place = text.partition("=")
        path = Path(place if equals else text)
        name = name if equals else without_compression(path).stem
        if not name or name in found:
            problem = f"two texts are called {name!r}" if name else "the name is empty"
            raise RecipeError(f"{text}: {problem}; write NAME=FILE with a name of its own")
        if not path.exists():
            raise RecipeError(f"{path}: no such file or directory")
        found[name] = path
    return found


@contextmanager
def as_usage_error() -> Iterator[None]:
    """Show what the user can act on as a problem of the command line."""
    try:
        yield
    except StageError as error:
        raise RecipeError(str(error)) from None


def short_names(names: Sequence[str]) -> list[str]:
    """The last part of each path, with as many parts before it as tell equal ones apart."""
    parts = [name.rstrip("/").split("/") for name in names]
    depths = [1] * len(names)
    while True:
        short = ["/".join(part[-depth:]) for part, depth in zip(parts, depths, strict=True)]
        longer = [
            short.count(name) > 1 and depth < len(part) for name, depth, part in zip(short, depths, parts, strict=True)
        ]
        if not any(longer):
            return short
        depths = [depth + more for depth, more in zip(depths, longer, strict=True)]
