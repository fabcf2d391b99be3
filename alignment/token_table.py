"""What a Hugging Face tokenizer declares, read once: the bytes and the kind of every id, specials and prefix."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from alignment.token_codecs import TokenCodec, UnsupportedTokenizer, vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Pipeline = Mapping[str, Any]  # the parsed content of a tokenizer.json


class TokenKind(IntEnum):
    """What a token id stands for."""

    TEXT = 0  # an entry of the model's own vocabulary
    BYTE_FALLBACK = 1  # a single byte, used only where no other entry fits: `<0xNN>`
    ADDED = 2  # added to the vocabulary and not special: literal text
    SPECIAL = 3  # a control token: no byte of any text
    MISSING = 4  # a gap in the ids


@dataclass(frozen=True)
class TokenTable:
    """Every id below the highest one, V in all.

    Attributes:
        token_bytes: [V]; None for special tokens and missing ids.
        kinds: uint8 [V], a ``TokenKind`` for each id.
        special_tokens: id -> string of every special token.
        affixes: uint8 [V], ``TokenAffix`` of each id; 0 for all where the vocabulary has no such spelling.
    """

    token_bytes: list[bytes | None]
    kinds: np.ndarray
    special_tokens: dict[int, str]
    affixes: np.ndarray


def toy_table(token_bytes: Sequence[bytes | None]) -> TokenTable:
    """A table of ordinary tokens given by their bytes; None stands for a special token."""
    special_tokens = {index: f"<special_{index}>" for index, token in enumerate(token_bytes) if token is None}
    kinds = np.full(len(token_bytes), TokenKind.TEXT, dtype=np.uint8)
    kinds[list(special_tokens)] = TokenKind.SPECIAL
    return TokenTable(list(token_bytes), kinds, special_tokens, np.zeros_like(kinds))


def read_table(pipeline: Pipeline, special_ids: set[int], codec: TokenCodec) -> TokenTable:
    """The table of a tokenizer with a ``tokenizers`` pipeline; the codec gives the bytes of the model's entries."""
    entries = vocabulary(pipeline)
    added = {token["id"]: token["content"] for token in pipeline["added_tokens"]}
    table = table_of(entries, added, special_ids, codec.to_bytes)
    for entry, index in entries.items():
        if table.kinds[index] == TokenKind.TEXT:
            table.affixes[index] = codec.affixes(entry)
            if codec.is_byte_fallback(entry):
                table.kinds[index] = TokenKind.BYTE_FALLBACK
    return table


def table_of(
    entries: Mapping[str, int],
    added: Mapping[int, str],
    special_ids: set[int],
    to_bytes: Callable[[str], bytes | None],
) -> TokenTable:
    """The table of a model's entries (string -> id), of tokens added to them (id -> string) and of the specials.

    Where ``to_bytes`` gives None, no text has the entry and the id counts as missing.
    """
    size = max([*entries.values(), *added, *special_ids], default=-1) + 1
    token_bytes: list[bytes | None] = [None] * size
    kinds = np.full(size, TokenKind.MISSING, dtype=np.uint8)
    strings: dict[int, str] = {}
    for entry, index in entries.items():
        strings[index] = entry
        token_bytes[index] = to_bytes(entry)
        if token_bytes[index] is not None:
            kinds[index] = TokenKind.TEXT
    for index, content in added.items():
        # Gemma adds the runs of "▁" that are also pieces of its model: there the model's reading is the common one.
        if strings.get(index) != content:
            strings[index] = content
            token_bytes[index] = content.encode()
        kinds[index] = TokenKind.ADDED
    for index in special_ids:
        token_bytes[index] = None
        kinds[index] = TokenKind.SPECIAL
    specials = {index: strings[index] for index in sorted(special_ids)}
    return TokenTable(token_bytes, kinds, specials, np.zeros_like(kinds))


def find_special_ids(tokenizer: PreTrainedTokenizerBase, pipeline: Pipeline) -> set[int]:
    """Every id that anything declares special, since each of the declarations can be incomplete.

    A rebuilt GPT-2 had ``<|endoftext|>`` among its added tokens and an empty ``all_special_ids``: its 13
    characters were counted as text and shifted every boundary after it (data.md §4).
    """
    flagged = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    flagged_by_backend = {token["id"] for token in pipeline["added_tokens"] if token["special"]}
    unknown = vocabulary(pipeline).get(unknown_token(pipeline) or "")
    return flagged | flagged_by_backend | set(tokenizer.all_special_ids) | ({unknown} - {None})


def unknown_token(pipeline: Pipeline) -> str | None:
    """The entry that the model gives for what it has no other entry for."""
    model = pipeline["model"]
    if model["type"] == "Unigram":
        return None if model["unk_id"] is None else model["vocab"][model["unk_id"]][0]
    return model.get("unk_token")


def find_prefix_ids(tokenizer: PreTrainedTokenizerBase, name: str) -> list[int]:
    """The ids that the tokenizer puts before a text by default.

    Raises:
        UnsupportedTokenizer: its template changes the text's own tokens, so that there is no prefix; or it has no
            tokens for the texts that this is tried on.
    """
    for text in ("a", "1", "の"):
        plain = tokenizer(text, add_special_tokens=False).input_ids
        if plain:
            break
    else:
        raise UnsupportedTokenizer(f"tokenizer {name!r} gives no token for a letter, a digit or a kana")
    full = tokenizer(text, add_special_tokens=True).input_ids
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start]
    raise UnsupportedTokenizer(
        f"tokenizer {name!r}: adding special tokens turns the tokens of {text!r} from {plain} into {full}. "
        "Its template must put special tokens around the text's own tokens."
    )


def text_only_tokenizer(pipeline: Pipeline, special_ids: set[int]) -> Tokenizer:
    """A private copy of the backend that adds nothing, never truncates, never pads, and drops no merge at random.

    It has no post-processor, because those trim the offsets of tokens.
    """
    settings = {
        "added_tokens": [token | {"special": token["id"] in special_ids} for token in pipeline["added_tokens"]],
        "model": pipeline["model"] | ({"dropout": None} if "dropout" in pipeline["model"] else {}),
        "truncation": None,
        "padding": None,
        "post_processor": None,
    }
    return Tokenizer.from_str(json.dumps({**pipeline, **settings}))


def fingerprint(pipeline: Pipeline, special_ids: set[int], prefix_ids: list[int]) -> str:
    """sha256 of all that changes ids or bytes: the pipeline without truncation and padding, and the specials."""
    content = {key: value for key, value in pipeline.items() if key not in ("truncation", "padding")}
    identity = [content, sorted(special_ids), prefix_ids]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
