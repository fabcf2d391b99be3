"""The documents that a recipe takes from outside: read once into one JSON lines file, or counted to be streamed."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import TextIO

from stages.artifacts import DocumentsArtifact
from stages.document_sets import (
    SAMPLE_DOCUMENTS,
    Content,
    DocumentSet,
    DocumentsSourceConfig,
    read_file,
    set_files,
    size_of,
)
from stages.document_streams import DocumentStream, count_files, count_hub, write_streams
from stages.documents import DocumentProblem
from stages.references import HubReference, ReferenceProblem, parse
from stages.stage import Input, StageContext, StageError, StageInterrupted, stage_error


class DocumentsSource:
    """Brings documents into the store as one JSON lines file; of streamed sets a sample, and where they are."""

    VERSION = 1
    Config = DocumentsSourceConfig
    inputs: dict[str, Input] = {}
    output = DocumentsArtifact

    def run(self, ctx: StageContext) -> None:
        """Write ``documents.jsonl``, ``manifest.json`` and, if a set is streamed, ``streams.json`` into ``ctx.out``.

        Raises:
            StageError: a set cannot be had, read or holds no documents; StageUnavailable: the hub does not answer.
            StageInterrupted: the stage was asked to stop.
        """
        domains, streams = {}, []
        with (ctx.out / "documents.jsonl").open("w", encoding="utf-8", newline="\n") as file:
            for documents in ctx.config.documents:
                writer = _DomainWriter(documents, file, ctx)
                try:
                    if documents.stream:
                        streams.append(_count(documents, writer, ctx))
                    else:
                        _copy(documents, writer)
                except (DocumentProblem, ReferenceProblem) as error:
                    raise stage_error(error) from None
                domains[documents.name] = writer.facts()
        if streams:
            write_streams(ctx.out, streams)
        with (ctx.out / "documents.jsonl").open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        manifest = {
            "documents": sum(domain["documents"] for domain in domains.values()),
            "bytes": sum(domain["bytes"] for domain in domains.values()),
            "domains": domains,
            "sha256": digest,
        }
        (ctx.out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


class _DomainWriter:
    """Writes one set's documents as JSON lines, up to a number of them, and counts what it writes."""

    def __init__(self, documents: DocumentSet, file: TextIO, ctx: StageContext) -> None:
        self._set, self._file, self._ctx = documents, file, ctx
        self._room = documents.sample_documents or SAMPLE_DOCUMENTS if documents.stream else None
        self._documents = self._bytes = 0

    def __call__(self, content: Content) -> None:
        if self._ctx.should_stop():
            raise StageInterrupted
        if self._documents == self._room:
            return
        facts = {
            "id": f"{self._set.name}/{self._documents}",
            "domain": self._set.name,
            "weight": self._set.weight,
        }
        self._file.write(json.dumps(facts | content, ensure_ascii=False) + "\n")
        self._documents += 1
        self._bytes += size_of(content)

    def facts(self) -> dict[str, float]:
        """What the manifest says of the domain.

        Raises:
            StageError: it has no documents.
        """
        if self._documents == 0:
            raise StageError(f"{self._set.path}: holds no documents")
        kind = "a sample of" if self._set.stream else ""
        self._ctx.progress(
            f"{self._set.name}: {kind} {self._documents:,} documents, {self._bytes:,} bytes from {self._set.path}"
        )
        return {"documents": self._documents, "bytes": self._bytes, "weight": self._set.weight}


def _copy(documents: DocumentSet, write: _DomainWriter) -> None:
    path = parse(documents.path, Path.cwd()).locate()
    contents = (content for file in set_files(path) for content in read_file(documents, file))
    for content in itertools.islice(contents, documents.max_documents):
        write(content)


def _count(documents: DocumentSet, write: _DomainWriter, ctx: StageContext) -> DocumentStream:
    reference = parse(documents.path, Path.cwd())
    if isinstance(reference, HubReference):
        sample = documents.sample_documents or SAMPLE_DOCUMENTS
        stream = count_hub(documents, reference, sample, write, ctx.progress)
    elif documents.subset is not None or documents.split is not None:
        raise StageError(f"{documents.path}: 'subset' and 'split' are for data sets of the hub; remove them")
    else:
        memo = None if ctx.cache is None else ctx.cache / "digests.json"
        stream = count_files(documents, reference.locate(), write, memo)
    ctx.progress(f"{documents.name}: {stream.count:,} documents to be streamed from {documents.path}")
    return stream
