"""The documents that a recipe takes from outside: which they are, and how each set of them is read.

What is copied into the store and what is streamed from where it lies are read by the same code, so that a set has the
same documents in the same order either way.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import Field, field_validator, model_validator

from stages.conversations import content_bytes, conversation_of, read_conversations
from stages.digests import list_files
from stages.documents import (
    DocumentProblem,
    holds_records,
    read_documents,
    read_records,
    split_text,
    text_of,
    without_compression,
)
from stages.stage import StageConfig, Switch, reference

SAMPLE_DOCUMENTS = 1000
"""How many documents of a streamed set are copied unless the recipe says otherwise."""

Content = dict[str, Any]
"""What a document holds: ``text``, and ``context_bytes`` if that begins with a prompt; or ``messages``, and ``tools``
if there are some; and ``route``, if the set names its field."""


class DocumentSet(StageConfig):
    """Documents of one domain."""

    path: str = reference()
    """A .jsonl file (a document a line), a .parquet file (a document a row), any other text file (one document), or a
    directory of such files. Text may be compressed (.gz, .bz2, .zst)."""
    name: str = Field("", min_length=1, pattern=r"^[^/]+$")
    """The domain; the path's last part without its suffix unless given."""
    weight: float = Field(1.0, gt=0)
    """How often the domain is drawn, relative to the others."""
    text: str = "text"
    """The field of a JSON line, or the column, that holds the text."""
    prompt: str | None = None
    """The field that holds what comes before ``text``: it is read, but not learned."""
    route: str | None = None
    """The field that says which of several teachers teach a document; default: the set's name says it."""
    messages: str | None = None
    """For conversations: the field that holds the messages, instead of ``text``."""
    max_documents: int | None = Field(None, ge=1)
    """Take only so many documents, from the start."""
    document_bytes: int | None = Field(None, ge=64)
    """Split documents, at blank lines where possible, into pieces of at most so many bytes."""
    stream: Switch = None
    """Read the set where it lies while training, in its own order, instead of copying it into the store."""
    sample_documents: int | None = Field(None, ge=1)
    """Of a streamed set: how many documents are copied all the same, for stages that read the text once; default:
    1000."""
    subset: str | None = None
    """Of a streamed data set of the hub: its configuration, if it has several."""
    split: str | None = None
    """Of a streamed data set of the hub: which split; default: train."""

    # A key holds the content of ``path`` and not its spelling, so the name must be settled here.
    @model_validator(mode="before")
    @classmethod
    def _name_after_path(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("name") is None and isinstance(value.get("path"), str):
            return {**value, "name": without_compression(PurePosixPath(value["path"])).stem}
        return value

    @model_validator(mode="after")
    def _conversations_stay_whole(self) -> DocumentSet:
        if self.messages is not None and self.document_bytes is not None:
            raise ValueError("'document_bytes' cuts text; conversations ('messages') stay whole")
        if self.messages is not None and self.text != DocumentSet.model_fields["text"].default:
            raise ValueError("a set holds either text ('text') or conversations ('messages'), not both")
        return self

    @model_validator(mode="after")
    def _prompts_come_before_texts(self) -> DocumentSet:
        if self.prompt is not None and self.messages is not None:
            raise ValueError(
                "'prompt' comes before 'text'; of conversations ('messages'), train_on says what is learned"
            )
        if self.prompt is not None and self.document_bytes is not None:
            raise ValueError("'document_bytes' would cut texts from their prompts ('prompt'); remove one of them")
        return self

    @model_validator(mode="after")
    def _only_a_stream_has_a_sample(self) -> DocumentSet:
        for name in ("sample_documents", "subset", "split"):
            if getattr(self, name) is not None and not self.stream:
                raise ValueError(f"{name!r} is for a set that is streamed: add stream: true, or remove it")
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

    def read_first(self) -> DocumentSet:
        """The set whose documents come first: those of streamed sets come after the others."""
        return min(self.documents, key=lambda documents: bool(documents.stream))


def set_files(path: Path) -> list[Path]:
    """The files of a set, in the order in which they are read, without empty ones of a directory."""
    return [file for file in list_files(path) if file.stat().st_size] if path.is_dir() else [path]


def read_file(documents: DocumentSet, path: Path) -> Iterator[Content]:
    """The documents of one file of a set.

    Raises:
        DocumentProblem: the file does not hold what the set says.
    """
    fields = [name for name in ("prompt", "route") if getattr(documents, name) is not None]
    if fields and not holds_records(path):
        raise DocumentProblem(f"{path}: {fields[0]!r} names a field, and only .jsonl and .parquet files have fields")
    if fields:
        for place, record in read_records(path):
            yield from read_record(documents, place, record)
    elif documents.messages is not None:
        yield from read_conversations(path, field=documents.messages)
    else:
        for text in read_documents(path, field=documents.text, limit=documents.document_bytes):
            yield {"text": text}


def read_record(documents: DocumentSet, place: str, record: dict[str, Any]) -> Iterator[Content]:
    """The documents of one record: one, or as many as ``document_bytes`` cuts it into.

    Raises:
        DocumentProblem: the record does not hold what the set says; names ``place``.
    """
    route = {} if documents.route is None else {"route": text_of(place, record, documents.route)}
    if documents.messages is not None:
        yield conversation_of(place, record, documents.messages) | route
        return
    text = text_of(place, record, documents.text)
    if documents.prompt is not None:
        prompt = text_of(place, record, documents.prompt, empty=True)
        yield {"text": prompt + text, "context_bytes": len(prompt.encode())} | route
        return
    for piece in (text,) if documents.document_bytes is None else split_text(text, documents.document_bytes):
        yield {"text": piece} | route


def size_of(content: Content) -> int:
    """UTF-8 bytes of a document's text, or of the contents of its messages."""
    return content_bytes(content) if "messages" in content else len(content["text"].encode())
