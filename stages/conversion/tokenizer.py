"""Any tokenizer, whatever file it comes in, as a directory that ``AutoTokenizer`` loads."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from alignment.byte_view import ByteView
from alignment.token_codecs import UnsupportedTokenizer
from stages.conversion.custom_code import PROBES, tokenizer_by_code, tokenizer_code
from stages.conversion.errors import ConversionError
from stages.conversion.gguf import tokenizer_from_gguf
from stages.conversion.ranks import tokenizer_from_ranks
from stages.conversion.sentencepiece_model import tokenizer_from_sentencepiece
from stages.conversion.tekken import is_tekken, tokenizer_from_tekken

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

SENTENCEPIECE_NAME = re.compile(r".+\.model(\.v\w+)?")
"""Mistral numbers its SentencePiece files: ``tokenizer.model.v3``."""


def write_tokenizer(
    source: Path,
    directory: Path,
    *,
    pattern: str | None = None,
    special_tokens: Mapping[str, int] | None = None,
    normalization: Literal["nfc"] | None = None,
    roles: Mapping[str, str] | None = None,
    trust_remote_code: bool = False,
    warn: Callable[[str], None] = warnings.warn,
) -> PreTrainedTokenizerBase:
    """Write the tokenizer of ``source`` into ``directory`` and give it back as transformers loads it from there.

    A directory that already holds a complete tokenizer is copied byte for byte; everything else is converted. What is
    written needs no code of its own, also where the source did. A tokenizer that transformers runs in Python (ByT5's,
    say) stays one.

    Args:
        source: a directory, or a ``tokenizer.json``, ``tekken.json``, ``*.model``, ``*.gguf`` or tiktoken rank file.
        directory: where it goes.
        pattern, special_tokens, normalization: regex, ids and Unicode normal form that a tiktoken rank file, and it
            alone, does not hold itself. With a pattern, ``source`` is taken for a rank file.
        roles: ``bos``, ``eos``, ``pad`` -> token, where the source does not say or shall be overruled.
        trust_remote_code: run the Python code that comes with the tokenizer, if any does.
        warn: called for each kind of text whose ids can differ from the source's own.

    Raises:
        ConversionError: no tokenizer is found, it wants to run code that is not trusted, the bytes of its tokens cannot
            be derived, a role is no token, there is no end-of-text token, or what was written is loaded otherwise.
    """
    roles = {f"{role}_token": token for role, token in (roles or {}).items()}
    code = _own_code(source, trust_remote_code)
    if code is None and not roles and all((source / name).is_file() for name in FAST_FILES):
        directory.mkdir(parents=True, exist_ok=True)
        for name in (*FAST_FILES, *OTHER_FILES):
            if (source / name).is_file():
                shutil.copyfile(source / name, directory / name)
        published = _copied(source, directory)
    else:
        if code is not None:
            tokenizer = tokenizer_by_code(source)
        elif pattern is not None:
            tokenizer = tokenizer_from_ranks(
                source, pattern=pattern, special_tokens=special_tokens or {}, normalization=normalization
            )
        else:
            tokenizer = _read(source, warn)
        _assign_roles(source, tokenizer, roles)
        if not tokenizer.is_fast:
            _check_bytes(tokenizer)
        tokenizer.save_pretrained(directory)
        published = _reload(source, tokenizer, directory)
    if published.eos_token_id is None:
        raise ConversionError(f"{source}: has no end-of-text token; name one of its tokens as 'eos'")
    return published


def _own_code(source: Path, trusted: bool) -> str | None:
    """The code that the tokenizer of a directory wants to run; None for none."""
    code = tokenizer_code(source) if source.is_dir() else None
    if code is not None and not trusted:
        raise ConversionError(
            f"{source}: the tokenizer wants to run code of its own, {code} (auto_map in its tokenizer_config.json), "
            "and nothing was run. Read that code; if you trust it, write `trust_remote_code: true` beside this "
            "directory in the recipe"
        )
    return code


def _copied(source: Path, directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in ``directory``, to which the files of ``source`` were copied."""
    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    # a damaged file raises whatever its reader stumbled over, such as a bare KeyError
    except Exception as error:
        raise ConversionError(
            f"{source}: its tokenizer.json or tokenizer_config.json is damaged: {type(error).__name__}: {error}; fetch "
            "the tokenizer anew"
        ) from None


def _read(source: Path, warn: Callable[[str], None]) -> PreTrainedTokenizerBase:
    if source.is_dir():
        return _read_directory(source)
    if source.suffix == ".gguf":
        return tokenizer_from_gguf(source)
    if SENTENCEPIECE_NAME.fullmatch(source.name):
        return tokenizer_from_sentencepiece(source, warn=warn)
    if source.suffix == ".json":
        return _read_json(source)
    raise ConversionError(
        f"{source}: not known as a tokenizer; expected a directory, tokenizer.json, tekken.json, *.tiktoken, *.model "
        "or *.gguf"
    )


def _read_directory(source: Path) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    # every tokenizer class has errors of its own for a file that is missing
    except Exception as error:
        raise ConversionError(f"{source}: transformers finds no tokenizer there: {error}") from None
    # Some classes take a missing vocabulary file for an empty vocabulary.
    if set(tokenizer.get_vocab().values()) <= tokenizer.added_tokens_decoder.keys():
        raise ConversionError(
            f"{source}: transformers finds no tokenizer there: no file holds a vocabulary, so "
            f"{type(tokenizer).__name__} has its {len(tokenizer)} special tokens alone"
        )
    return tokenizer


def _read_json(source: Path) -> PreTrainedTokenizerFast:
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConversionError(f"{source}: not valid JSON: {error}") from None
    if is_tekken(content):
        return tokenizer_from_tekken(source, content)
    try:
        return PreTrainedTokenizerFast(tokenizer_file=str(source))
    # tokenizers raises bare Exceptions for a file that it cannot parse
    except Exception as error:
        raise ConversionError(f"{source}: neither a tokenizer.json nor a tekken.json: {error}") from None


def _assign_roles(source: Path, tokenizer: PreTrainedTokenizerBase, roles: Mapping[str, str]) -> None:
    vocabulary = tokenizer.get_vocab()
    for role, token in roles.items():
        if token not in vocabulary:
            raise ConversionError(f"{source}: {role.removesuffix('_token')}: the tokenizer has no token {token!r}")
        setattr(tokenizer, role, token)
    if tokenizer.pad_token is None:
        # Padding is masked wherever it occurs, so any special token serves; models without one use their end token.
        tokenizer.pad_token = tokenizer.eos_token


def _check_bytes(tokenizer: PreTrainedTokenizerBase) -> None:
    try:
        ByteView.from_tokenizer(tokenizer)
    except UnsupportedTokenizer as error:
        raise ConversionError(str(error)) from None


def _reload(source: Path, tokenizer: PreTrainedTokenizerBase, directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in ``directory``, which must be ``tokenizer``.

    Beside a model's configuration AutoTokenizer may prefer the class of that model type, which then starts from an
    empty vocabulary.
    """
    try:
        published = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    # every tokenizer class has errors of its own for a file that is missing
    except Exception as error:
        found = f"fails: {error}"
    else:
        if [published(text).input_ids for text in PROBES] == [tokenizer(text).input_ids for text in PROBES]:
            return published
        found = f"makes a {type(published).__name__} of it that gives other ids"
    raise ConversionError(
        f"{source}: AutoTokenizer does not load this {type(tokenizer).__name__} again from the directory that it was "
        f"written to: it {found}. Beside a model of some types it loads only a tokenizer.json: take another model, or "
        "convert the tokenizer to a tokenizer.json"
    )
