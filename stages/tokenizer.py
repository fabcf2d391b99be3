"""The stage that makes the target tokenizer: trained on the user's text, or another one extended or changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from stages.artifacts import Artifact, DocumentsArtifact, ModelArtifact, TokenizerArtifact, write_json
from stages.conversion.errors import ConversionError
from stages.conversion.patterns import resolve_pattern
from stages.stage import Input, StageConfig, StageContext, StageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from alignment.byte_view import ByteView, DigitScheme

Texts = Callable[[str], Iterator[str]]
"""Reads the training text; its argument says in progress lines what for."""


class FromScratchOptions(StageConfig):
    """What every tokenizer from scratch has."""

    vocab_size: int = Field(ge=257)
    """The most ids, special tokens included."""
    pattern: str | None = None
    """Pre-tokenization regex, or ``gpt2``, ``cl100k`` or ``qwen2``; None: what the student's own tokenizer has, or
    ``gpt2`` where that is not byte-level."""
    digits: Literal["keep", "single", "up_to_3_left", "up_to_3_right", "free"] = "keep"
    """Where numbers are cut: as the student's own tokenizer does it (``keep``), after every digit, into threes counted
    from one end, or wherever the text suggests."""

    @field_validator("pattern")
    @classmethod
    def _resolves(cls, value: str | None) -> str | None:
        return None if value is None else resolve_pattern(value)


class BpeOptions(FromScratchOptions):
    """Byte-level byte-pair encoding."""

    method: Literal["bpe"]
    min_frequency: int = Field(2, ge=1)
    """The fewest occurrences of a pair of tokens that is merged."""


class UnigramOptions(FromScratchOptions):
    """A Unigram model on bytes."""

    method: Literal["unigram"]


class ExtendOptions(StageConfig):
    """The student's own tokenizer with more merges behind its own."""

    method: Literal["extend"]
    new_tokens: int = Field(ge=1)
    """The most tokens to add."""
    min_frequency: int = Field(2, ge=1)
    """The fewest occurrences of a new token in the text."""


class SupertokensOptions(StageConfig):
    """The student's own tokenizer with tokens of several words."""

    method: Literal["supertokens"]
    new_tokens: int = Field(ge=1)
    """The most tokens to add."""
    min_frequency: int = Field(50, ge=1)
    """The fewest occurrences of a new token in the text."""
    max_words: int = Field(4, ge=2)
    """The most words in a token."""


class KeepDigitsOptions(StageConfig):
    """The target tokenizer, changed so that it cuts numbers as the student's own does."""

    method: Literal["keep_digits"]


def _as_mapping(value: Any) -> Any:
    """``keep_digits`` means ``{method: keep_digits}``."""
    return {"method": value} if isinstance(value, str) else value


class TokenizerConfig(StageConfig):
    """How the tokenizer is made."""

    make: Annotated[
        BpeOptions | UnigramOptions | ExtendOptions | SupertokensOptions | KeepDigitsOptions,
        Field(discriminator="method"),
        BeforeValidator(_as_mapping),
    ]
    """The method and its options."""

    @property
    def wanted_inputs(self) -> frozenset[str]:
        """Only a tokenizer that is changed must be given; the others start from the student's own."""
        return frozenset({"tokenizer"} if self.make.method == "keep_digits" else ())


class TokenizerStage:
    """Training text and a tokenizer -> another tokenizer, and ``tokenizer_report.json``: what it does to the text."""

    VERSION: ClassVar[int] = 1
    Config: ClassVar[type[StageConfig]] = TokenizerConfig
    inputs: ClassVar[dict[str, Input]] = {
        "student": Input(ModelArtifact, source="student"),
        "tokenizer": Input(TokenizerArtifact, source="tokenizer", optional=True),
        "documents": Input(DocumentsArtifact, source="train"),
    }
    output: ClassVar[type[Artifact]] = TokenizerArtifact

    def run(self, ctx: StageContext) -> None:
        """Write a directory that ``AutoTokenizer`` loads, the report (``report.describe``) and its numbers as metrics.

        Raises:
            StageError: the method does not work with this tokenizer, the text suggests no new token, or the result
                is not what was meant.
            StageInterrupted: asked to stop.
        """
        from transformers import AutoTokenizer

        from alignment.byte_view import ByteView
        from alignment.token_codecs import UnsupportedTokenizer
        from stages.tokenizer_training import report
        from stages.tokenizer_training.texts import read_texts

        def texts(doing: str) -> Iterator[str]:
            return read_texts(ctx.input("documents"), doing=doing, progress=ctx.progress, should_stop=ctx.should_stop)

        student = _load(ctx.input("student"), "the student's tokenizer")
        target = ctx.optional_input("tokenizer")
        base = student if target is None else _load(target, "the target tokenizer")
        try:
            base_view = ByteView.from_tokenizer(base)
            scheme = base_view.digit_scheme if target is None else ByteView.from_tokenizer(student).digit_scheme
            made = _make(ctx.config.make, base, scheme, texts)
            made.save_pretrained(ctx.out)
            made_view = ByteView.from_tokenizer(AutoTokenizer.from_pretrained(ctx.out))
        except (ConversionError, UnsupportedTokenizer) as error:
            raise StageError(str(error)) from None
        _check(ctx, base_view, made_view, scheme)
        described = report.describe(base_view, made_view, texts("comparing"))
        write_json(ctx.out / "tokenizer_report.json", {"method": ctx.config.make.method, **described})
        write_json(ctx.out / "metrics.json", report.metrics(described))
        ctx.progress(report.summary(described))


def _load(directory: Path, name: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.name_or_path = name  # as messages call it
    return tokenizer


def _make(options: Any, base: PreTrainedTokenizerBase, scheme: DigitScheme, texts: Texts) -> PreTrainedTokenizerBase:
    """The tokenizer that the options ask for; ``scheme`` is how the student cuts numbers."""
    from stages.tokenizer_training.extend import extend
    from stages.tokenizer_training.numbers import keep_digits
    from stages.tokenizer_training.scratch import byte_pairs, train
    from stages.tokenizer_training.supertokens import supertokens
    from stages.tokenizer_training.unigram import unigram

    match options:
        case KeepDigitsOptions():
            return keep_digits(base, _known(scheme))
        case ExtendOptions():
            return extend(
                base,
                texts("learning merges"),
                new_tokens=options.new_tokens,
                min_frequency=options.min_frequency,
                keep_numbers=scheme != "free",
            )
        case SupertokensOptions():
            return supertokens(
                base,
                texts("learning phrases"),
                new_tokens=options.new_tokens,
                min_frequency=options.min_frequency,
                max_words=options.max_words,
            )
        case _:
            return train(
                base,
                texts("training"),
                unigram if isinstance(options, UnigramOptions) else byte_pairs(options.min_frequency),
                vocab_size=options.vocab_size,
                pattern=options.pattern,
                scheme=_known(scheme) if options.digits == "keep" else options.digits,
            )


def _known(scheme: DigitScheme) -> DigitScheme:
    if scheme == "none":
        raise StageError(
            "the student's own tokenizer does not encode digits exactly, so how it cuts numbers cannot be kept: train "
            "a tokenizer with `digits: single` (or another scheme), or take a ready one"
        )
    return scheme


def _check(ctx: StageContext, base: ByteView, made: ByteView, student_scheme: DigitScheme) -> None:
    """Refuse a result that is not what was meant, and tell where it is less than was asked for."""
    options = ctx.config.make
    scratch = isinstance(options, FromScratchOptions)
    reasons = set(made.inexact_reasons) - set(() if scratch else base.inexact_reasons)
    if reasons:
        raise StageError(f"the tokenizer just made does not spell every text: {'; '.join(sorted(reasons))}")
    if scratch:
        if made.vocab_size < options.vocab_size:
            _warn(ctx, f"the text suggests only {made.vocab_size:,} of the {options.vocab_size:,} tokens")
        wanted = student_scheme if options.digits == "keep" else options.digits
        if made.digit_scheme != wanted:
            _warn(ctx, f"the text has too few numbers: they are cut by {made.digit_scheme!r}, not {wanted!r}")
        return
    if moved := _first_change(base, made):
        raise StageError(f"the tokenizer just made has lost a token of its base: {moved}")
    if made.digit_scheme != student_scheme:
        raise StageError(f"the tokenizer just made cuts numbers by {made.digit_scheme!r}, not {student_scheme!r}")
    if isinstance(options, KeepDigitsOptions):
        return
    added = made.vocab_size - base.vocab_size
    if added == 0:
        raise StageError(
            f"no new token occurs {options.min_frequency} times in the text: give more text under data.train, or lower "
            "min_frequency"
        )
    if added < options.new_tokens:
        _warn(ctx, f"the text suggests only {added:,} of {options.new_tokens:,} new tokens")


def _first_change(base: ByteView, made: ByteView) -> str | None:
    """The first token of the base that the new tokenizer does not have at the same id; None if it has all."""
    for token in range(base.vocab_size):
        if token >= made.vocab_size or base.token_bytes(token) != made.token_bytes(token):
            return f"{base.token_bytes(token)!r} (id {token})"
        if base.special_tokens.get(token) != made.special_tokens.get(token):
            return f"{base.special_tokens.get(token)!r} (id {token})"
    return None


def _warn(ctx: StageContext, message: str) -> None:
    ctx.progress(f"warning: {message}")
