"""Any tokenizer, whatever file it comes in, as a directory that ``AutoTokenizer`` loads."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from stages.conversion.errors import ConversionError
from stages.conversion.gguf import tokenizer_from_gguf
from stages.conversion.ranks import tokenizer_from_ranks
from stages.conversion.sentencepiece_model import tokenizer_from_sentencepiece

FAST_FILES = ("tokenizer.json", "tokenizer_config.json")
OTHER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.model",
    "vocab.json",
)
"""What else may lie beside ``tokenizer.json`` and is copied with it."""


def write_tokenizer(
    source: Path,
    directory: Path,
    *,
    pattern: str | None = None,
    special_tokens: Mapping[str, int] | None = None,
    roles: Mapping[str, str] | None = None,
) -> PreTrainedTokenizerFast:
    """Write the tokenizer of ``source`` into ``directory`` and give it back as transformers loads it from there.

    A directory that already holds a complete tokenizer is copied byte for byte; everything else is converted.

    Args:
        source: a directory, or a ``tokenizer.json``, ``*.tiktoken``, ``*.model`` or ``*.gguf`` file.
        directory: where it goes.
        pattern, special_tokens: regex and ids that a tiktoken rank file, and it alone, does not hold itself.
        roles: ``bos``, ``eos``, ``pad`` -> token, where the source does not say or shall be overruled.

    Raises:
        ConversionError: no tokenizer is found, a role is no token, or there is no end-of-text token.
    """
    roles = {f"{role}_token": token for role, token in (roles or {}).items()}
    if source.is_dir() and not roles and all((source / name).is_file() for name in FAST_FILES):
        directory.mkdir(parents=True, exist_ok=True)
        for name in (*FAST_FILES, *OTHER_FILES):
            if (source / name).is_file():
                shutil.copyfile(source / name, directory / name)
    else:
        tokenizer = (
            tokenizer_from_ranks(source, pattern=pattern, special_tokens=special_tokens or {})
            if pattern is not None
            else _read(source)
        )
        _assign_roles(source, tokenizer, roles)
        tokenizer.save_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    _check(source, tokenizer)
    return tokenizer


def _read(source: Path) -> PreTrainedTokenizerFast:
    if source.is_dir():
        try:
            return AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise ConversionError(f"{source}: transformers finds no tokenizer there: {error}") from None
    if source.suffix == ".gguf":
        return tokenizer_from_gguf(source)
    if source.suffix == ".model":
        return tokenizer_from_sentencepiece(source)
    if source.suffix == ".json":
        try:
            return PreTrainedTokenizerFast(tokenizer_file=str(source))
        # tokenizers raises bare Exceptions for a file that it cannot parse
        except Exception as error:
            raise ConversionError(f"{source}: not a tokenizer.json: {error}") from None
    raise ConversionError(
        f"{source}: not known as a tokenizer; expected a directory, tokenizer.json, *.tiktoken, *.model or *.gguf"
    )


def _assign_roles(source: Path, tokenizer: PreTrainedTokenizerFast, roles: Mapping[str, str]) -> None:
    vocabulary = tokenizer.get_vocab()
    for role, token in roles.items():
        if token not in vocabulary:
            raise ConversionError(f"{source}: {role.removesuffix('_token')}: the tokenizer has no token {token!r}")
        setattr(tokenizer, role, token)
    if tokenizer.pad_token is None:
        # Padding is masked wherever it occurs, so any special token serves; models without one use their end token.
        tokenizer.pad_token = tokenizer.eos_token


def _check(source: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    if not tokenizer.is_fast:
        raise ConversionError(f"{source}: has no tokenizer.json and transformers cannot make one")
    if tokenizer.eos_token_id is None:
        raise ConversionError(f"{source}: has no end-of-text token; name one of its tokens as 'eos'")
