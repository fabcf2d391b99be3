"""The training documents by number, read when they are asked for: memory does not grow with the text."""

from __future__ import annotations

import hashlib
import json
import mmap
import uuid
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.document_sets import Content
from stages.document_streams import DocumentStream, read_streams
from stages.documents import DocumentProblem
from stages.hub_rows import Report
from stages.stage import StageError, stage_error
from stages.training.data.order import Streamed
from stages.training.data.windows import Document

FILE = "documents.jsonl"
_INDEX = np.dtype([("start", np.int64), ("weight", np.float64)])
_WORTH_KEEPING = 10_000  # documents; an index of fewer is made in less than a second


class TrainingDocuments(Sequence[Document]):
    """The documents of a DocumentsArtifact: first those that it holds, then those of its streamed sets.

    Every document that is held is found by its offset in the file; a streamed one is reached by reading on, or from
    the start of its file if it lies behind. A copy of this object in another process (``fork``) reads independently.

    Args:
        directory: the artifact.
        cache: where to keep the index of a long file; None makes it every time.
        report: told, in the process that reads, when the connection to a streamed set breaks.

    Attributes:
        weights: float64 [N], of the documents that the artifact holds.
        streamed: the sets that come after them.

    Raises:
        StageError: there are no documents, or a streamed file has changed.
    """

    def __init__(self, directory: Path, cache: Path | None = None, report: Report = lambda line: None) -> None:
        streams = read_streams(directory)
        index = _read_index(directory, cache, sorted(stream.documents.name for stream in streams))
        if not len(index) and not streams:
            raise StageError("data.train holds no documents")
        with (directory / FILE).open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if len(index) else b""
        self._starts = index["start"]
        self.weights = np.ascontiguousarray(index["weight"])
        self._readers = [_StreamReader(stream, report) for stream in streams]
        self.streamed = tuple(_numbered(streams, len(index)))
        try:
            for stream in streams:
                for file in stream.files:
                    file.check(None if cache is None else cache / "digests.json")
        except DocumentProblem as problem:
            raise stage_error(problem) from None

    def __len__(self) -> int:
        return len(self._starts) + sum(streamed.count for streamed in self.streamed)

    def __getitem__(self, number: int) -> Document:
        """Document ``number``.

        Raises:
            StageError: it cannot be read where it lies.
        """
        if number < len(self._starts):
            return self._held(number)
        for streamed, reader in zip(self.streamed, self._readers, strict=True):
            if number < streamed.first + streamed.count:
                return reader[number - streamed.first]
        raise IndexError(f"document {number} of {len(self)}")

    def __iter__(self) -> Iterator[Document]:
        return (self[number] for number in range(len(self)))

    def _held(self, number: int) -> Document:
        start = int(self._starts[number])
        end = self._bytes.find(b"\n", start)
        return _document(json.loads(self._bytes[start : end if end >= 0 else None]))


class _StreamReader:
    """The documents of one streamed set, cheap in ascending order."""

    def __init__(self, stream: DocumentStream, report: Report) -> None:
        self._stream = stream
        self._report = report
        self._contents: Iterator[Content] = iter(())
        self._next: int | None = None

    def __getitem__(self, number: int) -> Document:
        try:
            if self._next is None or number < self._next:
                self._contents, self._next = self._stream.read(number, self._report), number
            while self._next <= number:
                content = next(self._contents)
                self._next += 1
        except StopIteration:
            self._next = None
            raise StageError(
                f"{self._stream.documents.path}: has no document {number}, but {self._stream.count:,} were counted"
            ) from None
        except DocumentProblem as problem:
            raise stage_error(problem) from None
        name, weight = self._stream.documents.name, self._stream.documents.weight
        return _document({"id": f"{name}/{number}", "domain": name, "weight": weight, **content})


def _document(record: Mapping[str, Any]) -> Document:
    return Document(
        id=record["id"],
        text=record.get("text", ""),
        weight=float(record["weight"]),
        messages=record.get("messages"),
        tools=record.get("tools"),
        domain=record.get("domain", ""),
        context_bytes=record.get("context_bytes", 0),
        route=record.get("route", record.get("domain", "")),
    )


def _numbered(streams: Sequence[DocumentStream], first: int) -> Iterator[Streamed]:
    for stream in streams:
        yield Streamed(first, stream.count, stream.documents.weight)
        first += stream.count


def _read_index(directory: Path, cache: Path | None, streamed: Sequence[str]) -> np.ndarray:
    """Offset and weight of every document but those that are only the sample of a streamed set: ``_INDEX`` [N]."""
    if cache is None:
        return _make_index(directory / FILE, streamed)
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    if manifest.get("documents", 0) < _WORTH_KEEPING:
        return _make_index(directory / FILE, streamed)
    content = json.dumps([manifest["sha256"], *streamed])
    path = cache / f"documents-{hashlib.sha256(content.encode()).hexdigest()[:32]}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        # Others may be at the same: ranks, and containers on other machines in which processes have the same numbers.
        partial = path.with_name(f"{path.stem}.partial-{uuid.uuid4().hex}.npy")
        np.save(partial, _make_index(directory / FILE, streamed))
        partial.replace(path)
    return np.load(path, mmap_mode="r")


def _make_index(path: Path, streamed: Sequence[str]) -> np.ndarray:
    starts, weights = array("q"), array("d")
    start = 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                record = json.loads(line)
                if record.get("domain") not in streamed:
                    starts.append(start)
                    weights.append(record["weight"])
            start += len(line)
    index = np.empty(len(starts), dtype=_INDEX)
    index["start"], index["weight"] = starts, weights
    return index
