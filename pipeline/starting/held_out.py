"""Somebody's own text, divided into what is trained on and what is held out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.document_sets import DocumentSet, read_file, set_files
from stages.documents import holds_records

EVERY = 10
"""One document of so many is held out."""

DOCUMENT_BYTES = 4000
"""Texts without records are cut, at blank lines where possible, into documents of at most so many bytes."""

MOST_BYTES = 100 << 20
"""Larger texts are not copied; whoever has them has held-out text of his own."""


def split(documents: DocumentSet, path: Path, train: Path, held_out: Path) -> tuple[int, int]:
    """Write every tenth document of the set at ``path`` to ``held_out``, the others to ``train``, as JSON lines.

    A set of fewer than ten documents holds out its last one.

    Returns:
        How many documents are in ``train`` and in ``held_out``.

    Raises:
        ValueError: the set is too large to be copied, or has only one document.
        DocumentProblem: a file does not hold what the set says.
        FileExistsError: a file that is to be written is there already; neither is changed.
    """
    size = sum(file.stat().st_size for file in set_files(path))
    if size > MOST_BYTES:
        raise ValueError(f"{path} has {size >> 20} MiB, too much to copy a part of it: name held-out text with --eval")
    found = list(_documents(documents, path))
    if len(found) < 2:
        raise ValueError(f"{path} has one document of at most {DOCUMENT_BYTES} bytes: name held-out text with --eval")
    every = min(EVERY, len(found))
    chosen = [content for number, content in enumerate(found, start=1) if number % every == 0]
    others = [content for number, content in enumerate(found, start=1) if number % every]
    for file in (train, held_out):
        if file.exists():
            raise FileExistsError(f"{file} is there already: choose another name, or name held-out text with --eval")
    for file, contents in ((train, others), (held_out, chosen)):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{json.dumps(each, ensure_ascii=False)}\n" for each in contents), encoding="utf-8")
    return len(others), len(chosen)


def _documents(documents: DocumentSet, path: Path) -> Iterator[dict[str, Any]]:
    for file in set_files(path):
        options = {} if holds_records(file) else {"document_bytes": DOCUMENT_BYTES}
        yield from read_file(documents.model_copy(update=options), file)
