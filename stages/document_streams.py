"""Sets of documents that are read where they lie: counted once, then read while training goes on.

What a stream gives at a position is what a copy of the set would hold there, so positions can be saved and found again.
Imported to plan a run, so it must stay light.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter

from stages.digests import content_digest
from stages.document_sets import Content, DocumentSet, read_file, read_record, set_files
from stages.documents import DocumentProblem, without_nulls
from stages.hub_rows import HubRows, Report
from stages.references import HubReference

STREAMS = "streams.json"
"""Beside ``documents.jsonl``: a list of ``DocumentStream``, if there are any."""

_REMEDY = "put back what was recorded, or record it anew with --force sources/train"


class StreamedFile(BaseModel):
    """A file as it was when its documents were counted."""

    model_config = ConfigDict(frozen=True)

    path: Path
    size: int
    mtime_ns: int
    sha256: str
    documents: int

    def check(self, memo: Path | None = None) -> None:
        """Make sure that the file is still the same; one that has only been touched is read to find out.

        Args:
            memo: remembers digests, see ``content_digest``.

        Raises:
            DocumentProblem: the file is gone or has changed.
        """
        try:
            status = self.path.stat()
        except FileNotFoundError:
            raise DocumentProblem(f"{self.path}: the file is streamed from there and is gone; {_REMEDY}") from None
        if status.st_size == self.size and status.st_mtime_ns == self.mtime_ns:
            return
        if status.st_size != self.size or content_digest(self.path, memo) != self.sha256:
            raise DocumentProblem(f"{self.path}: the file has changed since its documents were counted; {_REMEDY}")


class DocumentStream(BaseModel):
    """A streamed set.

    Attributes:
        documents: how the set is read.
        count: how many documents it has, ``max_documents`` applied.
        files: where they are, in order; none for a data set of the hub.
        repository, revision: of the hub.
    """

    model_config = ConfigDict(frozen=True)

    documents: DocumentSet
    count: int
    files: tuple[StreamedFile, ...] = ()
    repository: str | None = None
    revision: str | None = None

    def read(self, start: int, report: Report) -> Iterator[Content]:
        """The documents from number ``start`` on; files that lie wholly before it are not opened.

        Args:
            start: number of the first document.
            report: told when the connection to the hub breaks.

        Raises:
            DocumentProblem: a file cannot be read, is gone or has changed; the hub cannot be reached for long.
        """
        if self.repository is not None:
            rest = _read_hub(self.documents, _hub_rows(self.documents, self.repository, self.revision), start, report)
            yield from itertools.islice(rest, self.count - start)
            return
        first = 0
        for file in self.files:
            if start < first + file.documents:
                file.check()
                skipped = max(start - first, 0)
                yield from itertools.islice(read_file(self.documents, file.path), skipped, file.documents)
            first += file.documents


def read_streams(directory: Path) -> list[DocumentStream]:
    """The streamed sets of a documents artifact."""
    path = directory / STREAMS
    return _STREAMS.validate_json(path.read_bytes()) if path.exists() else []


def write_streams(directory: Path, streams: list[DocumentStream]) -> None:
    """Record the streamed sets of a documents artifact."""
    (directory / STREAMS).write_bytes(_STREAMS.dump_json(streams, indent=1, exclude_none=True) + b"\n")


_STREAMS = TypeAdapter(list[DocumentStream])


def count_files(
    documents: DocumentSet, path: Path, visit: Callable[[Content], None], memo: Path | None = None
) -> DocumentStream:
    """Count the documents of local files, which checks every one of them.

    Args:
        documents: the set.
        path: the file or directory that it is.
        visit: given every document.
        memo: remembers digests, see ``content_digest``.

    Raises:
        DocumentProblem: a file cannot be read.
    """
    files, left = [], documents.max_documents
    for file in set_files(path):
        if left == 0:
            break
        status = file.stat()
        count = 0
        for content in itertools.islice(read_file(documents, file), left):
            visit(content)
            count += 1
        left = None if left is None else left - count
        digest = content_digest(file, memo)
        files.append(
            StreamedFile(path=file, size=status.st_size, mtime_ns=status.st_mtime_ns, sha256=digest, documents=count)
        )
    return DocumentStream(documents=documents, count=sum(file.documents for file in files), files=tuple(files))


def count_hub(
    documents: DocumentSet, reference: HubReference, sample: int, visit: Callable[[Content], None], report: Report
) -> DocumentStream:
    """A data set of the hub, of which only the first documents are read now.

    Args:
        documents: the set.
        reference: the data set, pinned to a commit.
        sample: how many documents to read.
        visit: given each of them.
        report: told when the connection breaks.

    Raises:
        DocumentProblem: the data set cannot be had, or does not say how many documents it has.
    """
    rows = _hub_rows(documents, reference.repository, reference.revision).open()
    known = None
    if rows.info.splits and documents.document_bytes is None:
        known = rows.info.splits[str(rows.split)].num_examples
    count = min(filter(None, (known, documents.max_documents)), default=None)
    if count is None:
        raise DocumentProblem(
            f"{reference} does not say how many documents it has, which must be known to mix it with other sets; give "
            "max_documents"
        )
    stream = DocumentStream(
        documents=documents, count=count, repository=reference.repository, revision=reference.revision
    )
    for content in itertools.islice(stream.read(0, report), sample):
        visit(content)
    return stream


def _read_hub(documents: DocumentSet, rows: HubRows, start: int, report: Report) -> Iterator[Content]:
    whole = documents.document_bytes is None  # then every row is one document, and the library may skip rows unread
    contents = (
        content
        for number, row in rows.read(start + 1 if whole else 1, report)
        for content in read_record(documents, f"{rows.repository}:{number}", without_nulls(row))
    )
    return contents if whole else itertools.islice(contents, start, None)


def _hub_rows(documents: DocumentSet, repository: str, revision: str | None) -> HubRows:
    return HubRows(repository, revision, documents.subset, documents.split or "train")
