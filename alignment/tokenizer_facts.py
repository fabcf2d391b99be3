"""All that a byte view needs to know of a Hugging Face tokenizer, read and probed once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from alignment import inexactness, token_table
from alignment.backends import Backend, FastBackend, PythonBackend
from alignment.offsets import SpaceRule
from alignment.python_tokens import PROBES, rule_of, spells
from alignment.token_codecs import UnsupportedTokenizer, codec_for, drops_spaces, invents_space
from alignment.token_table import TokenKind, TokenTable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizer, PreTrainedTokenizerBase

_SHOWN = 24


@dataclass(frozen=True)
class TokenizerFacts:
    """What a tokenizer is.

    Attributes:
        table: the bytes and the kind of every id.
        backend: what encodes text.
        fingerprint: sha256 of everything that changes ids or bytes.
        prefix_ids: special ids that it puts before a text by default.
        inexact_reasons: why it does not spell every text, one sentence each.
        space_rule: how its spaces may differ from the text's.
    """

    table: TokenTable
    backend: Backend | None
    fingerprint: str
    prefix_ids: tuple[int, ...] = ()
    inexact_reasons: tuple[str, ...] = ()
    space_rule: SpaceRule = field(default_factory=SpaceRule)


def load_tokenizer(path: str | Path, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer of a directory or a hub id.

    Raises:
        UnsupportedTokenizer: it needs code that comes with it, and that is not trusted.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except ValueError as error:
        if trust_remote_code or "trust_remote_code" not in str(error):
            raise
        raise UnsupportedTokenizer(
            f"tokenizer {str(path)!r} needs Python code that comes with it, which has not been run. "
            "If you trust that code, allow it with `trust_remote_code: true` in the recipe."
        ) from None


def facts_of(tokenizer: PreTrainedTokenizerBase, name: str) -> TokenizerFacts:
    """Read a tokenizer, with a `tokenizers` backend or without, and leave it as it is.

    Raises:
        UnsupportedTokenizer: the bytes of its tokens cannot be derived.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if isinstance(backend, Tokenizer):
        return _fast_facts(tokenizer, backend, name)
    return _python_facts(tokenizer, name)


def _fast_facts(tokenizer: PreTrainedTokenizerBase, backend: Tokenizer, name: str) -> TokenizerFacts:
    try:
        pipeline = json.loads(backend.to_str())
    except Exception as error:  # `tokenizers` raises nothing narrower
        raise UnsupportedTokenizer(
            f"tokenizer {name!r}: its pipeline has a part written in Python, whose effect on bytes cannot be read "
            f"({error}). Supported are tokenizers that a tokenizer.json describes completely."
        ) from None
    special_ids = token_table.find_special_ids(tokenizer, pipeline)
    prefix_ids = token_table.find_prefix_ids(tokenizer, name)
    codec = codec_for(pipeline, backend)
    table = token_table.read_table(pipeline, special_ids, codec)
    text_backend = FastBackend(
        token_table.text_only_tokenizer(pipeline, special_ids),
        true_offsets=not inexactness.drops_unknown(pipeline, codec),
    )
    tokenized_specials = text_backend.tokenize(list(table.special_tokens.values()))
    reasons = [
        *inexactness.pipeline_reasons(pipeline, codec, table),
        *inexactness.special_string_reasons(table, [tokenized.ids for tokenized in tokenized_specials]),
    ]
    return TokenizerFacts(
        table=table,
        backend=text_backend,
        fingerprint=token_table.fingerprint(pipeline, special_ids, prefix_ids),
        prefix_ids=tuple(prefix_ids),
        inexact_reasons=tuple(reasons),
        space_rule=SpaceRule(invented=invents_space(pipeline, codec), dropped=drops_spaces(backend)),
    )


def _python_facts(tokenizer: PreTrainedTokenizer, name: str) -> TokenizerFacts:
    backend = PythonBackend(tokenizer)
    added = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
    entries = {entry: index for entry, index in tokenizer.get_vocab().items() if index not in added}
    special_ids = set(tokenizer.all_special_ids)
    special_ids |= {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    prefix_ids = token_table.find_prefix_ids(tokenizer, name)

    def tokenize(text: str) -> list[str]:
        return tokenizer.convert_ids_to_tokens(backend.tokenize([text])[0].ids.tolist())

    to_bytes = rule_of(tokenizer, tokenize, name)
    table = token_table.table_of(entries, added, special_ids, to_bytes)
    if (processor := getattr(tokenizer, "sp_model", None)) is not None:
        _mark_byte_pieces(table, entries, processor)
    probed = [tokenized.ids.tolist() for tokenized in backend.tokenize(PROBES)]
    missed = [
        probe
        for probe, ids in zip(PROBES, probed, strict=True)
        if not spells(probe, [table.token_bytes[index] or b"" for index in ids])
    ]
    tokenized_specials = backend.tokenize(list(table.special_tokens.values()))
    reasons = [f"its Python code does not reproduce {missed[0][:_SHOWN]!r}"] if missed else []
    reasons += inexactness.special_string_reasons(table, [tokenized.ids for tokenized in tokenized_specials])
    identity = [type(tokenizer).__name__, sorted(entries.items()), sorted(added.items()), sorted(special_ids)]
    return TokenizerFacts(
        table=table,
        backend=backend,
        fingerprint=hashlib.sha256(json.dumps([*identity, prefix_ids, probed]).encode()).hexdigest(),
        prefix_ids=tuple(prefix_ids),
        inexact_reasons=tuple(reasons),
        space_rule=SpaceRule(invented=(to_bytes(tokenize("a")[0]) or b"").startswith(b" ")),
    )


def _mark_byte_pieces(table: TokenTable, entries: Mapping[str, int], processor: Any) -> None:
    """Give the byte pieces of a SentencePiece model their kind."""
    for entry, index in entries.items():
        if table.kinds[index] == TokenKind.TEXT and processor.is_byte(processor.piece_to_id(entry)):
            table.kinds[index] = TokenKind.BYTE_FALLBACK
