"""The documents that a recipe takes from outside: text or conversations, read once into one JSON lines file."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import Field, field_validator, model_validator

from stages.artifacts import DocumentsArtifact
from stages.conversations import content_bytes, read_conversations
from stages.documents import DocumentProblem, read_documents
from stages.references import ReferenceProblem, parse
from stages.stage import Input, StageConfig, StageContext, StageError, StageInterrupted, reference


class DocumentSet(StageConfig):
    """Documents of one domain."""

    path: str = reference()
    """A .jsonl file (a document a line), any other text file (one document), or a directory of such files."""
    name: str = Field("", min_length=1, pattern=r"^[^/]+$")
    """The domain; the path's last part without its suffix unless given."""
    weight: float = Field(1.0, gt=0)
    """How often the domain is drawn, relative to the others."""
    text: str = "text"
    """The field of a JSON line that holds the text."""
    messages: str | None = None
    """For conversations: the field of a JSON line that holds the messages, instead of ``text``."""
    max_documents: int | None = Field(None, ge=1)
    """Take only so many documents, from the start."""
    document_bytes: int | None = Field(None, ge=64)
    """Split documents, at blank lines where possible, into pieces of at most so many bytes."""

    # A key holds the content of ``path`` and not its spelling, so the name must be settled here.
    @model_validator(mode="before")
    @classmethod
    def _name_after_path(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("name") is None and isinstance(value.get("path"), str):
            return {**value, "name": PurePosixPath(value["path"]).stem}
        return value

    @model_validator(mode="after")
    def _conversations_stay_whole(self) -> DocumentSet:
        if self.messages is not None and self.document_bytes is not None:
            raise ValueError("'document_bytes' cuts text; conversations ('messages') stay whole")
        if self.messages is not None and self.text != DocumentSet.model_fields["text"].default:
            raise ValueError("a set holds either text ('text') or conversations ('messages'), not both")
        return self


class DocumentsSourceConfig(StageConfig):
    """Which documents."""

    documents: tuple[DocumentSet, ...] = Field(min_length=1)
    """The sets; each is a domain of its own."""

    @field_validator("documents")
    @classmethod
    def _one_set_a_domain(cls, value: tuple[DocumentSet, ...]) -> tuple[DocumentSet, ...]:
        names = [item.name for item in value]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"several sets are called {', '.join(repeated)}; give each its own 'name'")
        return value


class DocumentsSource:
    """Brings documents into the store as one JSON lines file."""

    VERSION = 1
    Config = DocumentsSourceConfig
    inputs: dict[str, Input] = {}
    output = DocumentsArtifact

    def run(self, ctx: StageContext) -> None:
        """Write ``documents.jsonl`` and ``manifest.json`` into ``ctx.out``.

        Raises:
            StageError: a set cannot be had, read or holds no documents.
            StageInterrupted: the stage was asked to stop.
        """
        domains = {}
        with (ctx.out / "documents.jsonl").open("w", encoding="utf-8", newline="\n") as file:
            for documents in ctx.config.documents:
                try:
                    domains[documents.name] = _write_domain(documents, file, ctx)
                except (DocumentProblem, ReferenceProblem) as error:
                    raise StageError(str(error)) from None
        with (ctx.out / "documents.jsonl").open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        manifest = {
            "documents": sum(domain["documents"] for domain in domains.values()),
            "bytes": sum(domain["bytes"] for domain in domains.values()),
            "domains": domains,
            "sha256": digest,
        }
        (ctx.out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _write_domain(documents: DocumentSet, file: Any, ctx: StageContext) -> dict[str, float]:
    path = parse(documents.path, Path.cwd()).locate()
    count = size = 0
    for content, content_size in itertools.islice(_contents(documents, path), documents.max_documents):
        if ctx.should_stop():
            raise StageInterrupted
        facts = {"id": f"{documents.name}/{count}", "domain": documents.name, "weight": documents.weight}
        file.write(json.dumps(facts | content, ensure_ascii=False) + "\n")
        count, size = count + 1, size + content_size
    if count == 0:
        raise StageError(f"{path}: holds no documents")
    ctx.progress(f"{documents.name}: {count:,} documents, {size:,} bytes from {path}")
    return {"documents": count, "bytes": size, "weight": documents.weight}


def _contents(documents: DocumentSet, path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """What each document of a set holds, as the fields of its record, and its size in bytes."""
    if documents.messages is not None:
        for conversation in read_conversations(path, field=documents.messages):
            yield conversation, content_bytes(conversation)
        return
    for text in read_documents(path, field=documents.text, limit=documents.document_bytes):
        yield {"text": text}, len(text.encode("utf-8"))
