"""Python code that comes with a tokenizer or a model: never run unasked, never needed by what is published."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import CONFIG_MAPPING, AutoTokenizer, PreTrainedTokenizerFast

from stages.conversion.errors import ConversionError

PROBES = (
    "The quick brown fox, it's 3.14159 (or 12345)!",
    "  def f(x):\n\treturn  x**2\r\n\n\n",
    "Ein Häuschen, cafe\u0301, 東京 и Москва, हिन्दी, ไทย, 🙂",
)
"""Texts that a custom tokenizer and the plain one made of it must agree on."""


def tokenizer_code(directory: Path) -> str | None:
    """The class of its own that a directory's tokenizer wants, such as ``tokenization_x.XTokenizer``; None if none.

    Raises:
        ConversionError: ``tokenizer_config.json`` is not JSON.
    """
    declared = _auto_map(directory / "tokenizer_config.json")
    if isinstance(declared, Mapping):
        declared = declared.get("AutoTokenizer")
    if isinstance(declared, str):
        return declared
    # a pair (slow, fast), either of which may be null
    return next((name for name in reversed(declared or ()) if name), None)


def refuse_model_code(directory: Path) -> None:
    """Refuse a model whose architecture transformers does not have itself.

    Raises:
        ConversionError: ``config.json`` names a class in a Python file of its own, for a model type that is unknown.
    """
    config_file = directory / "config.json"
    declared = _auto_map(config_file)
    model_type = _read(config_file).get("model_type")
    if declared and model_type not in CONFIG_MAPPING:
        name = declared.get("AutoModelForCausalLM", declared) if isinstance(declared, Mapping) else declared
        raise ConversionError(
            f"{directory}: the model type {model_type!r} is not one of transformers' own; config.json wants the custom "
            f"code {name}. Every stage loads models with transformers' own classes, and trust_remote_code is for "
            "tokenizers alone: convert the model to an architecture that transformers has"
        )


def tokenizer_by_code(directory: Path) -> PreTrainedTokenizerFast:
    """Run the code that comes with a tokenizer, once, and give a plain tokenizer that does the same without it.

    Raises:
        ConversionError: the code fails, or what it makes cannot be had without it.
    """
    name = tokenizer_code(directory)
    try:
        custom = AutoTokenizer.from_pretrained(directory, trust_remote_code=True)
    # whatever a stranger's code may raise
    except Exception as error:
        raise ConversionError(f"{directory}: its custom code {name} failed: {type(error).__name__}: {error}") from error
    backend = getattr(custom, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ConversionError(
            f"{directory}: the custom tokenizer {name} has no `tokenizers` backend, so it cannot be had without its "
            "code; name the rank file or the SentencePiece model that it reads, or a tokenizer.json"
        )
    plain = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(backend.to_str()),
        chat_template=custom.chat_template,
        **custom.special_tokens_map,
    )
    for text in PROBES:
        if plain(text).input_ids != custom(text).input_ids:
            raise ConversionError(
                f"{directory}: the custom tokenizer {name} gives other ids than its own `tokenizers` backend, for "
                f"{text!r}, so it cannot be had without its code"
            )
    return plain


def _auto_map(file: Path) -> Any:
    return _read(file).get("auto_map")


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConversionError(f"{file}: not valid JSON: {error}") from None
    return content if isinstance(content, dict) else {}
