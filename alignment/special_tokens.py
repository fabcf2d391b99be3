"""Special tokens of two vocabularies matched by what they are for, then by what they are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from alignment.byte_view import ByteView
from alignment.token_index import TokenIndex
from alignment.token_table import TokenKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Roles = Mapping[str, int]
"""Role of a special token (``eos``, ``bos``, ``eot``, ...) -> its id, the most telling role first."""

_STANDARD_ROLES = ("eos", "bos", "pad", "unk", "cls", "sep", "mask")
"""The most telling role first: where one token ends a text and also begins it, the row that was trained as an output
is the better one."""

_STAND_INS = {"bos": "cls", "cls": "bos", "eos": "sep", "sep": "eos"}


def special_roles(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The ids that a tokenizer's configuration gives a role: the standard ones, then its own (``eot``, ``image``)."""
    suffix = "_token"
    named = {
        attribute.removesuffix(suffix): tokenizer.convert_tokens_to_ids(str(token))
        for attribute, token in tokenizer.special_tokens_map.items()
        if attribute.endswith(suffix)
    }
    order = [*(role for role in _STANDARD_ROLES if role in named), *sorted(named.keys() - set(_STANDARD_ROLES))]
    return {role: named[role] for role in order if named[role] is not None}


def same_role(source: TokenIndex, target: ByteView, source_roles: Roles, target_roles: Roles) -> dict[int, int]:
    """Target id -> the source id with the same role. Of several roles of one token the first that matches decides."""
    return _by_role(source, target, {role: role for role in target_roles}, source_roles, target_roles)


def same_string(source: TokenIndex, target: ByteView) -> dict[int, int]:
    """Target id -> the source id written the same, for tokens that are special on at least one side.

    What one tokenizer declares special another may have merely added (``<think>``): the string is the same token.
    """
    matches: dict[int, int] = {}
    for token, string in target.special_tokens.items():
        if (found := source.strings.get(string)) is not None:
            matches[token] = found
    for token in np.flatnonzero(target.kinds == TokenKind.ADDED).tolist():
        found = source.strings.get((target.token_bytes(token) or b"").decode(errors="replace"))
        if found in source.view.special_tokens:
            matches[token] = found
    return matches


def similar_role(source: TokenIndex, target: ByteView, source_roles: Roles, target_roles: Roles) -> dict[int, int]:
    """Target id -> the source id that does its work under another name: bos and cls, eos and sep (§0.2)."""
    return _by_role(source, target, _STAND_INS, source_roles, target_roles)


def _by_role(
    source: TokenIndex, target: ByteView, source_role: Mapping[str, str], source_roles: Roles, target_roles: Roles
) -> dict[int, int]:
    matches: dict[int, int] = {}
    for role, token in target_roles.items():
        found = source_roles.get(source_role.get(role, ""))
        if found is not None and found < source.rows and token in target.special_tokens:
            matches.setdefault(token, found)
    return matches
