"""The models and tokenizers that a recipe takes from outside. Pinned by content, converted once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import field_validator, model_validator

from stages.artifacts import ModelArtifact, ModelConfigArtifact, TokenizerArtifact
from stages.conversion.errors import ConversionError
from stages.conversion.patterns import resolve_pattern
from stages.references import ReferenceProblem, parse
from stages.stage import Input, StageConfig, StageContext, StageError, Switch, reference, stage_error

TOKENIZER_FILES = ("*.json", "*.jinja", "*.py", "*.txt", "*.model")
MODEL_FILES = (*TOKENIZER_FILES, "*.safetensors", "pytorch_model*.bin")
"""What is fetched of a hub repository; ``*.json`` includes the configurations and the shard indices."""

WEIGHT_SUFFIXES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")
"""Files beside which a model has others."""

RANK_SUFFIXES = (".tiktoken", ".tiktoken.gz")

BYTES = "bytes"
"""What a recipe writes as the target tokenizer for that of the student turned into bytes."""


class TokenizerSpec(StageConfig):
    """A tokenizer. A recipe may write the reference alone where nothing else is to be said."""

    file: str = reference()
    """A directory or hub repository, or a tokenizer.json, tekken.json, *.tiktoken, *.model or *.gguf file."""
    pattern: str | None = None
    """For a tiktoken rank file: its pre-tokenization regex, or ``gpt2``, ``cl100k`` or ``qwen2``."""
    special_tokens: dict[str, int] = {}
    """For a tiktoken rank file: special token -> id."""
    normalization: Literal["nfc"] | None = None
    """For a tiktoken rank file: the Unicode normal form that its encoder brings text to, if any."""
    bos: str | None = None
    """Begin-of-text token, if the file names none or another is wanted."""
    eos: str | None = None
    """End-of-text token, likewise."""
    pad: str | None = None
    """Padding token, likewise."""
    trust_remote_code: Switch = None
    """Run the Python code that comes with the tokenizer, once, to make a plain tokenizer of it."""
    bytes: Switch = None
    """Make the byte tokenizer: a token for each byte, with the special tokens and the chat template of this one."""

    @model_validator(mode="before")
    @classmethod
    def _from_reference(cls, value: Any) -> Any:
        if value == BYTES:
            raise ValueError(
                "`bytes` is the student's own tokenizer turned into bytes: it stands at models.student.tokenizer and "
                "needs models.student.model. For the special tokens of another tokenizer write "
                "{file: TOKENIZER, bytes: true}"
            )
        return {"file": value} if isinstance(value, str) else value

    @field_validator("pattern")
    @classmethod
    def _resolves(cls, value: str | None) -> str | None:
        if value is not None:
            resolve_pattern(value)
        return value

    @model_validator(mode="after")
    def _ranks_and_nothing_else_need_a_pattern(self) -> TokenizerSpec:
        given = self.pattern is not None or bool(self.special_tokens) or self.normalization is not None
        # Llama 3 calls its rank file tokenizer.model, as SentencePiece does its models.
        if self.file.endswith(RANK_SUFFIXES) or (given and self.file.endswith(".model")):
            if self.pattern is None or not self.special_tokens or self.eos is None:
                raise ValueError(
                    "a tiktoken rank file holds byte strings alone; write {file: ..., pattern: gpt2, special_tokens: "
                    "{'<|endoftext|>': 50256}, eos: '<|endoftext|>'} with its own values"
                )
        elif given:
            raise ValueError(
                "'pattern', 'special_tokens' and 'normalization' are for tiktoken rank files (*.tiktoken, "
                "*.tiktoken.gz or *.model); every other file has its own"
            )
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
    trust_remote_code: Switch = None
    """Run the Python code that comes with the tokenizer beside the model, once, to make a plain tokenizer of it."""

    @field_validator("model")
    @classmethod
    def _is_more_than_weights(cls, value: str) -> str:
        if value.endswith(WEIGHT_SUFFIXES):
            raise ValueError(
                f"{value} has a model's weights alone: name the directory that holds it, config.json and the tokenizer "
                "(one file is enough where it is a *.gguf)"
            )
        return value

    @field_validator("tokenizer")
    @classmethod
    def _is_the_one_it_was_trained_with(cls, value: TokenizerSpec | None) -> TokenizerSpec | None:
        if value is not None and value.bytes:
            raise ValueError(
                "'bytes' makes a new tokenizer, and a model has the one that it was trained with; the tokenizer that "
                "the student shall get stands at models.student.tokenizer"
            )
        return value

    @model_validator(mode="after")
    def _trust_is_for_the_tokenizer_that_is_read(self) -> ModelSourceConfig:
        if self.trust_remote_code and self.tokenizer is not None:
            raise ValueError("'trust_remote_code' is about the tokenizer beside the model: write it under 'tokenizer'")
        return self

    def tokenizer_beside(self, model: Path) -> TokenizerSpec:
        """The tokenizer that belongs to the model found at ``model``."""
        return self.tokenizer or TokenizerSpec(file=str(model), trust_remote_code=self.trust_remote_code)


class ModelSource:
    """Brings a model and its tokenizer into the store as a Hugging Face directory."""

    VERSION = 2
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
            tokenizer = _write_tokenizer(config.tokenizer_beside(source), ctx)
            rows = embedding_rows(ctx.out)
        _check_rows(config.model, tokenizer, rows)


class ModelConfigSourceConfig(ModelSourceConfig):
    """Which model."""

    reference_files: ClassVar[tuple[str, ...]] = TOKENIZER_FILES


class ModelConfigSource:
    """Brings a model's configuration and its tokenizer into the store; its weights are neither fetched nor read."""

    VERSION = 1
    Config = ModelConfigSourceConfig
    inputs: dict[str, Input] = {}
    output = ModelConfigArtifact

    def run(self, ctx: StageContext) -> None:
        """Write ``config.json`` and the tokenizer into ``ctx.out``.

        Raises:
            StageError: the configuration or the tokenizer cannot be had, or they do not fit each other.
        """
        from stages.conversion.config import write_config

        config: ModelConfigSourceConfig = ctx.config
        with _as_stage_error():
            source = parse(config.model, Path.cwd()).locate(TOKENIZER_FILES)
            rows = write_config(source, ctx.out)
            tokenizer = _write_tokenizer(config.tokenizer_beside(source), ctx)
        if rows is not None:
            _check_rows(config.model, tokenizer, rows)


class TokenizerSourceConfig(StageConfig):
    """Which tokenizer."""

    tokenizer: TokenizerSpec
    """The tokenizer: a reference, or a reference with what its file does not say."""


class TokenizerSource:
    """Brings a tokenizer into the store as a directory that ``AutoTokenizer`` loads."""

    VERSION = 2
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
            _write_tokenizer(config.tokenizer, ctx)


def _check_rows(model: str, tokenizer: Any, rows: int) -> None:
    highest = max(tokenizer.get_vocab().values())
    if highest >= rows:
        raise StageError(
            f"{model}: the tokenizer has ids up to {highest}, the model's embedding only {rows} rows: they do not "
            "belong together; name the right tokenizer beside the model"
        )


def _write_tokenizer(spec: TokenizerSpec, ctx: StageContext) -> Any:
    from stages.conversion.byte_tokenizer import write_byte_tokenizer
    from stages.conversion.tokenizer import write_tokenizer

    directory = ctx.work / "base-tokenizer" if spec.bytes else ctx.out
    tokenizer = write_tokenizer(
        parse(spec.file, Path.cwd()).locate(TOKENIZER_FILES),
        directory,
        pattern=None if spec.pattern is None else resolve_pattern(spec.pattern),
        special_tokens=spec.special_tokens,
        normalization=spec.normalization,
        roles=spec.roles,
        trust_remote_code=bool(spec.trust_remote_code),
        warn=lambda line: ctx.progress(f"warning: {line}"),
    )
    return write_byte_tokenizer(tokenizer, ctx.out) if spec.bytes else tokenizer


@contextmanager
def _as_stage_error() -> Iterator[None]:
    """Show what the user can act on without a traceback."""
    try:
        yield
    except (ConversionError, ReferenceProblem) as error:
        raise stage_error(error) from None
