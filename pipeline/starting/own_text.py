"""The document sets of a first recipe, out of the files that somebody names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import RecipeError
from pipeline.starting.held_out import split
from pipeline.views.display import counted
from stages.document_sets import DocumentSet, set_files
from stages.documents import DocumentProblem, holds_records, read_records, without_compression
from stages.references import HubReference, LocalReference, ReferenceProblem, parse

ENOUGH_HELD_OUT = 10
"""With fewer held-out documents the intervals of differences are too wide to tell models apart that are alike."""

Set = dict[str, Any]
"""A document set as a recipe has it."""


def sets_of(references: Sequence[str], directory: Path, *, field: str | None = None) -> list[Set]:
    """The files as document sets of a recipe in ``directory``, each a domain of its own name.

    Args:
        references: paths from the current directory, or data sets of the hub, which are streamed.
        directory: where the recipe will be.
        field: the field of records that holds the text; None for ``text``, or ``messages`` if they have that.

    Raises:
        RecipeError: a file is not there, is not text, or its records hold neither; two have one name.
    """
    sets = [_set_of(reference, directory, field) for reference in references]
    names = [each["name"] for each in sets]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise RecipeError(f"several files are called {', '.join(repeated)}: rename them, since each is a domain")
    return sets


def parts_of(sets: Sequence[Set], name: str) -> tuple[list[Set], list[Set]]:
    """The sets that ``hold_out`` will make of ``sets``, below ``name``-data: to train on, and held out."""
    train, held_out = (
        [
            {"name": each["name"], "path": (PurePosixPath(f"{name}-data") / part / f"{each['name']}.jsonl").as_posix()}
            | ({"messages": "messages"} if "messages" in each else {})
            for each in sets
        ]
        for part in ("train", "eval")
    )
    return train, held_out


def hold_out(sets: Sequence[Set], train: Sequence[Set], held_out: Sequence[Set], directory: Path) -> list[str]:
    """Divide each of ``sets`` into its two parts; paths are relative to ``directory``.

    Returns:
        A line on each, and a note on those of which little is held out.

    Raises:
        RecipeError: one cannot be divided, or a file is there already; then none was written.
    """
    lines: list[str] = []
    written: list[Path] = []
    for each, *parts in zip(sets, train, held_out, strict=True):
        files = [directory / part["path"] for part in parts]
        try:
            if each.get("stream"):
                raise ValueError(f"{each['path']} is not copied: name held-out text with --eval")
            counts = split(DocumentSet(**each), directory / each["path"], *files)
        except (ValueError, OSError, DocumentProblem) as error:
            for file in written:
                file.unlink()
            raise RecipeError(str(error)) from None
        written += files
        lines.append(f"{each['name']}: {counted(counts[0], 'document')} to train on, {counts[1]:,} held out")
        if counts[1] < ENOUGH_HELD_OUT:
            lines.append(
                f"note: {each['name']}: with fewer than {ENOUGH_HELD_OUT} held-out documents the intervals are wide, "
                "and only great differences stand out: give more text, or held-out text with --eval"
            )
    return lines


def check_literal(text: str) -> None:
    """Refuse a name that would stand for something else in a recipe.

    Raises:
        RecipeError: it has ``${``.
    """
    if "${" in text:
        raise RecipeError(f"{text}: ${{ stands for another value in a recipe: rename it")


def _check_form(path: Path) -> None:
    """Refuse files of records that would be read as one plain text, marks and all."""
    kind = without_compression(PurePosixPath(path.name)).suffix.lower()
    loader = _LOADERS.get(kind)
    if loader is not None and path.is_file():
        raise RecipeError(
            f"{path}: {kind} would be read as plain text, with its commas, quotes and brackets: write it as .jsonl, "
            f"for instance\n  python -c \"import datasets; datasets.load_dataset('{loader}', data_files='{path.name}')"
            f"['train'].to_json('{path.stem}.jsonl')\""
        )


_LOADERS = {".csv": "csv", ".tsv": "csv", ".json": "json"}
"""Form of file -> what ``datasets`` calls it."""


def _set_of(text: str, directory: Path, field: str | None) -> Set:
    check_literal(text)
    try:
        reference = parse(text, Path.cwd())
        if not isinstance(reference, HubReference):
            reference.locate()
    except ReferenceProblem as problem:
        raise RecipeError(str(problem)) from None
    if isinstance(reference, HubReference):
        name = reference.repository.rpartition("/")[2]
        return {"name": name, "path": text, "stream": True, **({"text": field} if field else {})}
    if not isinstance(reference, LocalReference):
        raise RecipeError(f"{text}: name a file, a directory, or hub:datasets/org/name")
    _check_form(reference.path)
    path = Path(os.path.relpath(reference.path, directory.absolute())).as_posix()
    name = without_compression(PurePosixPath(reference.path.name)).stem
    return {"name": name, "path": path, **_field(reference.path, field)}


def _field(path: Path, field: str | None) -> Set:
    """What must be said of where the text stands in a file's records, if it has some."""
    try:
        first = next((file for file in set_files(path) if holds_records(file)), None)
        if first is None:
            return {}
        place, record = next(iter(read_records(first)))
    except (DocumentProblem, StopIteration) as problem:
        raise RecipeError(str(problem) or f"{path}: the file is empty") from None
    if field is None and "text" in record:
        return {}
    if field is None and "messages" in record:
        return {"messages": "messages"}
    if field in record:
        return {} if field == "text" else {"text": field}
    raise RecipeError(
        f"{place}: the text is not in a field {field or 'text'!r}; say with --text which: {', '.join(record)}"
    )
