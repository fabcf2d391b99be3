"""Files of translations: sentence pairs, or counts of token pairs, as tab-separated lines or JSON lines."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scipy.sparse import coo_array, csr_array

from alignment.token_index import TokenIndex, UnknownToken
from stages.documents import DocumentProblem, check_text, field_of, read_records


def read_sentence_pairs(path: Path) -> Iterator[tuple[str, str]]:
    """The sentences and their translations, in the order of the file.

    Raises:
        DocumentProblem: a line is not what it should be, or there is none.
    """
    count = 0
    for place, fields in _lines(path, ("source", "target")):
        for name, text in zip(("source", "target"), fields, strict=True):
            if not isinstance(text, str):
                raise DocumentProblem(f"{place}: the {name} is no text: {json.dumps(text)}")
            check_text(f"{place}: the {name}", text)
        count += 1
        yield fields[0], fields[1]
    if not count:
        raise DocumentProblem(f"{path}: holds no sentence pairs")


def read_token_counts(path: Path, source: TokenIndex, target: TokenIndex) -> csr_array:
    """How often tokens translate each other, float64 [V_target, rows of the source]; a pair named twice is added up.

    Raises:
        DocumentProblem: a line is not what it should be, names a token that does not exist, or there is none.
    """
    rows, columns, counts = [], [], []
    for place, (source_name, target_name, count) in _lines(path, ("source", "target", "count")):
        rows.append(_token(place, target_name, target))
        columns.append(_token(place, source_name, source))
        counts.append(_count(place, count))
    if not counts:
        raise DocumentProblem(f"{path}: holds no counts")
    return csr_array(coo_array((counts, (rows, columns)), shape=(target.view.vocab_size, source.rows)))


def _lines(path: Path, names: tuple[str, ...]) -> Iterator[tuple[str, list[Any]]]:
    """The place of each line that is not empty, and its fields."""
    if path.suffix.lower() == ".jsonl":
        for place, record in read_records(path):
            yield place, [field_of(place, record, name) for name in names]
        return
    with path.open("rb") as file:
        for number, data in enumerate(file, start=1):
            place = f"{path}:{number}"
            try:
                line = data.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise DocumentProblem(f"{place}: not UTF-8: byte {error.start} of the line") from None
            fields = line.split("\t")
            if line and len(fields) != len(names):
                raise DocumentProblem(
                    f"{place}: expected {len(names)} fields ({', '.join(names)}) with a tab between, found "
                    f"{len(fields)}. A field that holds a tab or a line break wants a .jsonl file"
                )
            if line:
                yield place, fields


def _token(place: str, name: Any, index: TokenIndex) -> int:
    if not isinstance(name, str | int) or isinstance(name, bool):
        raise DocumentProblem(f"{place}: a token is a text or an id, found {json.dumps(name)}")
    try:
        return index.named(name)
    except UnknownToken as error:
        raise DocumentProblem(f"{place}: {error}") from None


def _count(place: str, value: Any) -> float:
    try:
        count = float(value)
    except (TypeError, ValueError):
        count = math.nan
    if not 0 <= count < math.inf:
        raise DocumentProblem(f"{place}: a count is a number from 0, found {json.dumps(value)}")
    return count
