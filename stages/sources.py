"""The models and tokenizers that a recipe takes from outside. Pinned by content, converted once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import field_validator, model_validator

from stages.artifacts import ModelArtifact, TokenizerArtifact
from stages.conversion.errors import ConversionError
from stages.conversion.patterns import resolve_pattern
from stages.references import ReferenceProblem, parse
from stages.stage import Input, StageConfig, StageContext, StageError, reference

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
    except (ConversionError, ReferenceProblem) as error:
        raise StageError(str(error)) from None
