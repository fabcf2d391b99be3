"""tekken files (``tekken.json``, Mistral's since 2024) as Hugging Face tokenizers.

A tekken file is a tiktoken encoding with its regex beside it. The first ids belong to the special tokens, so a token's
id is its rank plus their number.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from stages.conversion.errors import ConversionError
from stages.conversion.ranks import byte_pair_tokenizer, check_ranks

IMPLIED_SPECIAL_TOKENS = (
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
)
"""The first special tokens of files that list none; the format allows that up to its version 7."""

LAST_VERSION_WITH_IMPLIED_TOKENS = 7
ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def is_tekken(content: Any) -> bool:
    """Whether the parsed content of a JSON file is that of a tekken file."""
    return isinstance(content, Mapping) and isinstance(content.get("vocab"), list) and "config" in content


def tokenizer_from_tekken(path: Path, content: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """Build the exact equivalent of a tekken file. As Mistral's own encoder, it adds no begin or end token.

    Args:
        path: the file, for messages.
        content: its parsed content (``is_tekken``).

    Raises:
        ConversionError: the file lacks something or contradicts itself.
    """
    try:
        config = content["config"]
        specials_count = int(config["default_num_special_tokens"])
        ordinary_count = int(config["default_vocab_size"]) - specials_count
        specials = _special_tokens(path, content, specials_count)
        ranks = _ranks(path, content["vocab"], ordinary_count)
        pattern = config["pattern"]
    except KeyError as error:
        raise ConversionError(f"{path}: not a whole tekken file: {error} is missing") from None
    tokenizer = byte_pair_tokenizer(
        {token: specials_count + rank for token, rank in ranks.items()}, pattern=pattern, special_tokens=specials
    )
    roles = {role: token for role, token in ROLES.items() if token in specials}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=list(specials), **roles)


def _special_tokens(path: Path, content: Mapping[str, Any], count: int) -> dict[str, int]:
    """Special token -> id; ids without a name are called ``<SPECIAL_n>``, as Mistral's own encoder calls them."""
    listed = content.get("special_tokens")
    if listed is None:
        version = str(content["config"]["version"])
        if not version.removeprefix("v").isdecimal() or int(version[1:]) > LAST_VERSION_WITH_IMPLIED_TOKENS:
            raise ConversionError(f"{path}: a tekken file of version {version!r} must list its 'special_tokens'")
        names = dict(enumerate(IMPLIED_SPECIAL_TOKENS))
    else:
        names = {token["rank"]: token["token_str"] for token in listed}
    specials = {names.get(index, f"<SPECIAL_{index}>"): index for index in range(count)}
    if len(specials) != count or not names.keys() <= set(range(count)):
        raise ConversionError(
            f"{path}: its special tokens do not have {count} different names and ids 0 to {count - 1}"
        )
    return specials


def _ranks(path: Path, vocabulary: list[Mapping[str, Any]], count: int) -> dict[bytes, int]:
    """Token -> rank of the first ``count`` entries; files hold more than their models use."""
    if len(vocabulary) < count:
        raise ConversionError(f"{path}: has {len(vocabulary)} ordinary tokens, its config promises {count}")
    ranks: dict[bytes, int] = {}
    for index, entry in enumerate(vocabulary[:count]):
        try:
            token = base64.b64decode(entry["token_bytes"], validate=True)
        except binascii.Error:
            raise ConversionError(f"{path}: vocab[{index}].token_bytes is not base64") from None
        if entry["rank"] != index or token in ranks:
            raise ConversionError(f"{path}: vocab[{index}] has rank {entry['rank']} or repeats an earlier token")
        ranks[token] = index
    check_ranks(path, ranks)
    return ranks
