"""Why a tokenizer does not spell every text: one sentence for each way in which its tokens can miss the text's bytes.

A tokenizer is exact only if every step of its pipeline is known to keep all bytes; an unknown step counts as a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from alignment.token_codecs import TokenCodec, components, vocabulary
from alignment.token_table import TokenKind, TokenTable, unknown_token

_SHOWN = 4
_UTF8_BYTES = [byte for byte in range(0xF5) if byte not in (0xC0, 0xC1)]

_NORMALIZERS = {
    "Lowercase": "lower-cases",
    "StripAccents": "strips accents",
    "Strip": "strips white space from the ends of a text",
    "Precompiled": "rewrites characters (a SentencePiece character map such as NFKC)",
    "BertNormalizer": "rewrites control characters and white space",
}
_REMOVING_PRE_TOKENIZERS = {"Whitespace", "WhitespaceSplit", "BertPreTokenizer", "CharDelimiterSplit"}
_KEEPING_PRE_TOKENIZERS = {"ByteLevel", "Metaspace", "Digits", "FixedLength", "Split", "Punctuation"}


def pipeline_reasons(pipeline: Mapping[str, Any], codec: TokenCodec, table: TokenTable) -> list[str]:
    """The reasons that lie in the normalizers, pre-tokenizers, model and added tokens of a ``tokenizer.json``."""
    reasons = [
        *(reason for step in components(pipeline, "normalizer") for reason in _normalizer_reasons(step, codec)),
        *(reason for step in components(pipeline, "pre_tokenizer") for reason in _pre_tokenizer_reasons(step)),
    ]
    if not codec.byte_level:
        reasons += [f"{mark!r} in a text is read as a space" for mark in codec.space_marks]
    reasons += _model_reasons(pipeline, codec)
    reasons += [
        f"the added token {token['content']!r} swallows the white space {side} it"
        for token in pipeline["added_tokens"]
        for flag, side in (("lstrip", "before"), ("rstrip", "after"))
        if token[flag] and table.kinds[token["id"]] != TokenKind.SPECIAL
    ]
    return list(dict.fromkeys(reasons))


def drops_unknown(pipeline: Mapping[str, Any], codec: TokenCodec) -> bool:
    """Whether characters or bytes for which the model has no entry leave no trace among the tokens."""
    return bool(_model_reasons(pipeline, codec)) and unknown_token(pipeline) is None


def special_string_reasons(table: TokenTable, ids_of_strings: Iterable[np.ndarray]) -> list[str]:
    """The reason that lies in special tokens which the model itself makes of ordinary text.

    Args:
        ids_of_strings: the ids of each special token's string, tokenized as text, in the order of ``special_tokens``.
    """
    found = [
        string
        for (index, string), ids in zip(table.special_tokens.items(), ids_of_strings, strict=True)
        if index in ids
    ]
    return [f"text that reads {_listing(map(repr, found))} becomes a special token"] if found else []


def _normalizer_reasons(step: Mapping[str, Any], codec: TokenCodec) -> list[str]:
    kind = step["type"]
    if kind == "ByteLevel" or (kind == "Prepend" and step["prepend"] in {" ", *codec.space_marks}):
        return []
    if kind == "Replace":
        if step["content"] in codec.space_marks and list(step["pattern"].values()) == [" "]:
            return []
        return [f"its normalizer replaces {next(iter(step['pattern'].values()))!r} with {step['content']!r}"]
    if kind == "BertNormalizer":
        options = {"Lowercase": step["lowercase"], "StripAccents": step["strip_accents"] or step["lowercase"]}
        return [_NORMALIZERS[kind], *(_NORMALIZERS[option] for option, is_on in options.items() if is_on)]
    return [_NORMALIZERS.get(kind, f"its normalizer {kind} rewrites text")]


def _pre_tokenizer_reasons(step: Mapping[str, Any]) -> list[str]:
    kind = step["type"]
    if kind == "UnicodeScripts":
        return ["its pre-tokenizer UnicodeScripts drops leading characters of no script, such as spaces"]
    if kind in _REMOVING_PRE_TOKENIZERS or str(step.get("behavior")).lower() == "removed":
        lost = "its pattern does not match" if step.get("invert") else "it splits at"
        return [f"its pre-tokenizer {kind} drops what {lost}"]
    if kind not in _KEEPING_PRE_TOKENIZERS:
        return [f"its pre-tokenizer {kind} may drop text"]
    return []


def _model_reasons(pipeline: Mapping[str, Any], codec: TokenCodec) -> list[str]:
    model = pipeline["model"]
    if codec.byte_level and model["type"] in {"BPE", "Unigram"}:
        # Fallback to bytes is none to the text's bytes here: it spells the alphabet's characters.
        spelled = {codec.to_bytes(entry) for entry in vocabulary(pipeline) if not codec.is_byte_fallback(entry)}
        missing = [f"0x{byte:02X}" for byte in _UTF8_BYTES if bytes([byte]) not in spelled]
        plural = "s" if len(missing) > 1 else ""
        return [f"no token for the byte{plural} {_listing(missing)}"] if missing else []
    if codec.byte_fallback and all(f"<0x{byte:02X}>" in vocabulary(pipeline) for byte in range(256)):
        return []
    unknown = unknown_token(pipeline)
    fate = f"become {unknown}" if unknown is not None else "are dropped"
    return [f"no byte fallback: unknown characters {fate}"]


def _listing(items: Iterable[str]) -> str:
    shown = list(items)
    if len(shown) <= _SHOWN:
        return ", ".join(shown)
    return f"{', '.join(shown[:_SHOWN])}, ... ({len(shown)} in all)"
