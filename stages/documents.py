"""Documents out of text files, JSON lines, Parquet files and directories, as a stream: no file is held as a whole
unless it is one document. Compressed files are read as what they hold."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from stages.digests import list_files
from stages.transient import TransientError

COMPRESSION = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
"""File suffix -> the name that pyarrow has for the format."""

_READ_BYTES = 1 << 20
_PARQUET_ROWS = 256


class DocumentProblem(Exception):
    """A file holds no readable documents; the message names the file and the line or byte."""


class DocumentsUnreachable(DocumentProblem, TransientError):
    """The documents lie elsewhere, and the connection to them is gone."""


def read_documents(path: Path, *, field: str, limit: int | None) -> Iterator[str]:
    """The documents of a file or of all files of a directory, in the order of their names.

    A ``.jsonl`` file holds one document a line, a ``.parquet`` file one a row; any other file is one document. Empty
    files of a directory hold none.

    Args:
        path: file or directory.
        field: the key of a JSON line, or the column, that holds the text.
        limit: split documents into pieces of at most so many bytes; None leaves them whole.

    Raises:
        DocumentProblem: a file is empty, not UTF-8, or a line has no such text.
    """
    if path.is_dir():
        for file in list_files(path):
            if file.stat().st_size:
                yield from read_documents(file, field=field, limit=limit)
        return
    if path.stat().st_size == 0:
        raise DocumentProblem(f"{path}: the file is empty")
    if not holds_records(path):
        yield from _read_text(path, limit)
        return
    for place, record in read_records(path):
        text = text_of(place, record, field)
        yield from (text,) if limit is None else split_text(text, limit)


def holds_records(path: PurePath) -> bool:
    """Whether a file's documents have named fields: ``.jsonl``, compressed or not, and ``.parquet`` files."""
    return _format(path) in (".jsonl", ".parquet")


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON objects of a ``.jsonl`` file or the rows of a ``.parquet`` one, each with its place (``file:line``,
    ``file:row``) for messages; empty lines are skipped.

    Raises:
        DocumentProblem: a line is not UTF-8, not JSON or not an object; the file is damaged.
    """
    if _format(path) == ".parquet":
        yield from _read_rows(path)
        return
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                place = f"{path}:{number}"
                yield place, _record_of(place, line)


def field_of(place: str, record: dict[str, Any], field: str) -> Any:
    """One field of a record.

    Raises:
        DocumentProblem: the record has no such field.
    """
    if field not in record:
        raise DocumentProblem(
            f"{place}: no field {field!r}; the line holds {', '.join(map(repr, record)) or 'nothing'}"
        )
    return record[field]


def check_text(place: str, text: str) -> None:
    """Refuse what UTF-8 cannot hold.

    Raises:
        DocumentProblem: the text holds half of a surrogate pair.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DocumentProblem(
            f"{place} has a lone surrogate at character {error.start}: replace or remove it"
        ) from None


def split_text(text: str, limit: int) -> Iterator[str]:
    """Cut a text into pieces of at most ``limit`` UTF-8 bytes that join to the same text.

    A piece ends after the last blank line that fits, else the last line, else the last space, else between two
    characters.
    """
    rest = text.encode("utf-8")
    while len(rest) > limit:
        cut = _cut(rest, limit)
        yield rest[:cut].decode("utf-8")
        rest = rest[cut:]
    yield rest.decode("utf-8")


def _cut(data: bytes, limit: int) -> int:
    """Where the first piece of ``data``, which is longer than ``limit`` bytes, ends."""
    window = data[:limit]
    for separator in (b"\n\n", b"\n\r\n", b"\n", b" "):
        position = window.rfind(separator)
        if position >= 0:
            return position + len(separator)
    end = limit
    while end > 0 and data[end] & 0xC0 == 0x80:
        end -= 1
    # Only invalid UTF-8 has no character boundary at all; decoding reports it.
    return end or limit


def without_nulls(value: Any) -> Any:
    """A row without the fields that hold nothing: in a table every message has the fields that any message has."""
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def without_compression(path: PurePath) -> PurePath:
    """The name without the suffix of a compression format."""
    return path.with_suffix("") if path.suffix.lower() in COMPRESSION else path


def _format(path: PurePath) -> str:
    return without_compression(path).suffix.lower()


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed.

    Raises:
        DocumentProblem: the file is cut off, or not of the format that its suffix says.
    """
    codec = COMPRESSION.get(path.suffix.lower())
    if codec is None:
        with path.open("rb") as file:
            yield file
        return
    import pyarrow

    try:
        with pyarrow.input_stream(path, compression=codec) as stream:
            yield io.BufferedReader(stream, _READ_BYTES)
    except OSError as error:
        raise DocumentProblem(f"{path}: cannot be decompressed: {error}") from None


def _read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(_PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", without_nulls(row)
    except (ArrowException, OSError) as error:
        raise DocumentProblem(f"{path}: not a readable Parquet file: {error}") from None


def _read_text(path: Path, limit: int | None) -> Iterator[str]:
    offset, buffer = 0, b""
    with _open(path) as file:
        while block := file.read(_READ_BYTES):
            buffer += block
            while limit is not None and len(buffer) > limit:
                cut = _cut(buffer, limit)
                yield _decode(path, buffer[:cut], offset)
                buffer, offset = buffer[cut:], offset + cut
    if buffer:
        yield _decode(path, buffer, offset)


def _decode(path: Path, data: bytes, offset: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DocumentProblem(
            f"{path}: not UTF-8: byte 0x{data[error.start]:02x} at offset {offset + error.start}; convert it, for "
            "example with iconv"
        ) from None


def _record_of(place: str, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except UnicodeDecodeError as error:
        raise DocumentProblem(f"{place}: not UTF-8: byte {error.start} of the line") from None
    except json.JSONDecodeError as error:
        raise DocumentProblem(f"{place}: not JSON: {error}") from None
    if not isinstance(record, dict):
        raise DocumentProblem(
            f"{place}: expected an object with named fields; the line holds a {type(record).__name__}"
        )
    return record


def text_of(place: str, record: dict[str, Any], field: str, *, empty: bool = False) -> str:
    """One field of a record that must hold text, and some of it unless ``empty``.

    Raises:
        DocumentProblem: there is no such field, or no text in it that UTF-8 can hold.
    """
    text = field_of(place, record, field)
    if not isinstance(text, str) or not (text or empty):
        raise DocumentProblem(f"{place}: field {field!r} holds no text")
    check_text(f"{place}: field {field!r}", text)
    return text
