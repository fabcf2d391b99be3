"""What a recipe takes from outside: a model, a tokenizer, documents. Pinned by content, converted once."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import Field, field_validator, model_validator

from stages.artifacts import DocumentsArtifact, ModelArtifact, TokenizerArtifact
from stages.conversion.errors import ConversionError
from stages.conversion.patterns import resolve_pattern
from stages.documents import DocumentProblem, read_documents
from stages.references import ReferenceProblem, parse
from stages.stage import Input, StageConfig, StageContext, StageError, StageInterrupted, reference

TOKENIZER_FILES = ("*.json", "*.jinja", "*.txt", "tokenizer.model")
MODEL_FILES = (*TOKENIZER_FILES, "*.safetensors", "pytorch_model*.bin")
"""What is fetched of a hub repository; ``*.json`` includes the configurations and the shard indices."""


class TokenizerSpec(StageConfig):
    """A tokenizer. A recipe may write the reference alone where nothing else is to be said."""

    file: str = reference()
    """A directory or hub repository, or a tokenizer.json, *.tiktoken, *.model or *.gguf file."""
    pattern: str | None = None
    """For a *.tiktoken file: its pre-tokenization regex, or ``gpt2`` or ``cl100k``."""
    special_tokens: dict[str, int] = {}
    """For a *.tiktoken file: special token -> id."""
    bos: str | None = None
    """Begin-of-text token, if the file names none or another is wanted; likewise ``eos`` and ``pad``."""
    eos: str | None = None
    pad: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_reference(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str) else value

    @field_validator("pattern")
    @classmethod
    def _resolves(cls, value: str | None) -> str | None:
        if value is not None:
            resolve_pattern(value)
        return value

    @model_validator(mode="after")
    def _ranks_and_nothing_else_need_a_pattern(self) -> TokenizerSpec:
        if self.file.endswith(".tiktoken"):
            if self.pattern is None or not self.special_tokens or self.eos is None:
                raise ValueError(
                    "a *.tiktoken file holds byte strings alone; write {file: ..., pattern: gpt2, special_tokens: "
                    "{'<|endoftext|>': 50256}, eos: '<|endoftext|>'} with its own values"
                )
        elif self.pattern is not None or self.special_tokens:
            raise ValueError("'pattern' and 'special_tokens' are for *.tiktoken files; every other file has its own")
        return self

    @property
    def roles(self) -> dict[str, str]:
        """The roles that are given: bos, eos, pad -> token."""
        roles = {"bos": self.bos, "eos": self.eos, "pad": self.pad}
        return {role: token for role, token in roles.items() if token is not None}


class ModelSourceConfig(StageConfig):
    """Which model."""

    model: str = reference()
    """A Hugging Face directory, a hub repository or a *.gguf file."""
    tokenizer: TokenizerSpec | None = None
    """Its tokenizer, if that lies elsewhere."""


class ModelSource:
    """Brings a model and its tokenizer into the store as a Hugging Face directory."""

    VERSION = 1
    Config = ModelSourceConfig
    inputs: dict[str, Input] = {}
    output = ModelArtifact

    def run(self, ctx: StageContext) -> None:
        """Write the model and its tokenizer into ``ctx.out``.

        Raises:
            StageError: the model or its tokenizer cannot be had, or they do not fit each other.
        """
        from stages.conversion.model import embedding_rows, write_model

        config: ModelSourceConfig = ctx.config
        with _as_stage_error():
            source = parse(config.model, Path.cwd()).locate(MODEL_FILES)
            ctx.progress(f"model: {source}")
            write_model(source, ctx.out)
            tokenizer = _write_tokenizer(config.tokenizer or TokenizerSpec(file=str(source)), ctx.out)
            rows = embedding_rows(ctx.out)
        highest = max(tokenizer.get_vocab().values())
        if highest >= rows:
            raise StageError(
                f"{config.model}: the tokenizer has ids up to {highest}, the model's embedding only {rows} rows: they "
                "do not belong together; name the right tokenizer beside the model"
            )


class TokenizerSourceConfig(StageConfig):
    """Which tokenizer."""

    tokenizer: TokenizerSpec
    """The tokenizer: a reference, or a reference with what its file does not say."""


class TokenizerSource:
    """Brings a tokenizer into the store as a directory that ``AutoTokenizer`` loads."""

    VERSION = 1
    Config = TokenizerSourceConfig
    inputs: dict[str, Input] = {}
    output = TokenizerArtifact

    def run(self, ctx: StageContext) -> None:
        """Write the tokenizer into ``ctx.out``.

        Raises:
            StageError: the tokenizer cannot be had or understood.
        """
        config: TokenizerSourceConfig = ctx.config
        with _as_stage_error():
            _write_tokenizer(config.tokenizer, ctx.out)


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
        with (ctx.out / "documents.jsonl").open("w", encoding="utf-8", newline="\n") as file, _as_stage_error():
            for documents in ctx.config.documents:
                domains[documents.name] = _write_domain(documents, file, ctx)
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
    texts = read_documents(path, field=documents.text, limit=documents.document_bytes)
    count = size = 0
    for text in itertools.islice(texts, documents.max_documents):
        if ctx.should_stop():
            raise StageInterrupted
        record = {
            "id": f"{documents.name}/{count}",
            "domain": documents.name,
            "weight": documents.weight,
            "text": text,
        }
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
        count, size = count + 1, size + len(text.encode("utf-8"))
    if count == 0:
        raise StageError(f"{path}: holds no documents")
    ctx.progress(f"{documents.name}: {count:,} documents, {size:,} bytes from {path}")
    return {"documents": count, "bytes": size, "weight": documents.weight}


def _write_tokenizer(spec: TokenizerSpec, directory: Path) -> Any:
    from stages.conversion.tokenizer import write_tokenizer

    return write_tokenizer(
        parse(spec.file, Path.cwd()).locate(TOKENIZER_FILES),
        directory,
        pattern=None if spec.pattern is None else resolve_pattern(spec.pattern),
        special_tokens=spec.special_tokens,
        roles=spec.roles,
    )


@contextmanager
def _as_stage_error() -> Iterator[None]:
    """Show what the user can act on without a traceback."""
    try:
        yield
    except (ConversionError, DocumentProblem, ReferenceProblem) as error:
        raise StageError(str(error)) from None
