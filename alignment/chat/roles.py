"""The roles of a tokenizer's special tokens, the end of a turn included."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignment.chat.template import ChatTemplate
from alignment.special_tokens import special_roles

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def special_roles_and_turns(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The roles that a tokenizer's configuration names, and the end of an assistant's turn, as its template has it."""
    roles = special_roles(tokenizer)
    end = ChatTemplate(tokenizer).end_of_turn("assistant") if tokenizer.chat_template else None
    return roles if end is None else {**roles, "end_of_turn": tokenizer.convert_tokens_to_ids(end)}
