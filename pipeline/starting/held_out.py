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

LEAST = 6
"""So many, with fewer of which ``evaluate`` gives no interval, are held out of a small set, but at most a quarter."""

DOCUMENT_BYTES = 4000
"""Texts without records are cut, at blank lines where possible, into documents of at most so many bytes."""

LEAST_DOCUMENT_BYTES = 2000
"""Small texts are cut finer, into about ``PIECES`` documents, but not finer than this, which most paragraphs fit in."""

PIECES = 40

MOST_BYTES = 100 << 20
"""Larger texts are not copied; whoever has them has held-out text of his own."""


def split(documents: DocumentSet, path: Path, train: Path, held_out: Path) -> tuple[int, int]:
    """Write some documents (``held_out_of``) of the set at ``path`` to ``held_out``, others to ``train``: JSON lines.

    Returns:
        How many documents are in ``train`` and in ``held_out``.

    Raises:
        ValueError: the set is too large to be copied, or has only one document.
        DocumentProblem: a file does not hold what the set says.
        FileExistsError: a file that is to be written is there already; neither is changed.
    """
    size = sum(file.stat().st_size for file in set_files(path))
    document_bytes = min(DOCUMENT_BYTES, max(LEAST_DOCUMENT_BYTES, size // PIECES))
    if size > MOST_BYTES:
        raise ValueError(f"{path} has {size >> 20} MiB, too much to copy a part of it: name held-out text with --eval")
    found = list(_documents(documents, path, document_bytes))
    if len(found) < 2:
        raise ValueError(f"{path} has one document of at most {document_bytes} bytes: name held-out text with --eval")
    places = held_out_of(len(found))
    chosen = [content for place, content in enumerate(found) if place in places]
    others = [content for place, content in enumerate(found) if place not in places]
    for file in (train, held_out):
        if file.exists():
            raise FileExistsError(f"{file} is there already: choose another name, or name held-out text with --eval")
    for file, contents in ((train, others), (held_out, chosen)):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{json.dumps(each, ensure_ascii=False)}\n" for each in contents), encoding="utf-8")
    return len(others), len(chosen)


def held_out_of(count: int) -> set[int]:
    """Which of so many documents, from 0, are held out: the middle one of each of as many equal stretches of the set.

    A tenth, but of small sets ``LEAST``, or a quarter where that is less, and always one.
    """
    number = max(count // EVERY, min(LEAST, count // 4), 1)
    return {(2 * stretch + 1) * count // (2 * number) for stretch in range(number)}


def _documents(documents: DocumentSet, path: Path, document_bytes: int) -> Iterator[dict[str, Any]]:
    for file in set_files(path):
        options = {} if holds_records(file) else {"document_bytes": document_bytes}
        yield from read_file(documents.model_copy(update=options), file)
