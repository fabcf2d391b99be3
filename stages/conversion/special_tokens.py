"""A new vocabulary in place of a tokenizer's own, with everything else of that tokenizer kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from alignment.byte_view import ByteView
from stages.conversion.errors import ConversionError

_PROBE = "a"


def special_tokens(base: PreTrainedTokenizerBase) -> list[AddedToken]:
    """Every special token of a tokenizer, in the order of the ids, with its own rules for the space around it.

    Raises:
        UnsupportedTokenizer: the bytes of its tokens cannot be derived.
    """
    declared = base.added_tokens_decoder
    return [
        _special(string, declared.get(index)) for index, string in ByteView.from_tokenizer(base).special_tokens.items()
    ]


def with_special_tokens(
    tokenizer: Tokenizer, specials: Sequence[AddedToken], base: PreTrainedTokenizerBase
) -> PreTrainedTokenizerFast:
    """A vocabulary with the special tokens of ``base``, their roles, the chat template, and what is put around a text.

    They get the ids behind the vocabulary, in the order of their ids in ``base``. What ``base`` merely added and does
    not call special (``<think>``, say) is text.

    Args:
        tokenizer: the vocabulary, with its pipeline and without special tokens; it is changed.
        specials: ``special_tokens(base)``.
        base: whose special tokens they are.

    Raises:
        ConversionError: a special token reads like an entry of the vocabulary.
    """
    entries = tokenizer.get_vocab()
    if clashes := [token.content for token in specials if token.content in entries]:
        raise ConversionError(
            f"{base.name_or_path}: its special tokens {clashes} are also ordinary tokens of the new vocabulary"
        )
    tokenizer.add_special_tokens(list(specials))
    before, after = _around_a_text(base)
    if before or after:
        tokenizer.post_processor = _around(before, after, tokenizer)
    return rewrapped(tokenizer, base)


def rewrapped(tokenizer: Tokenizer, base: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """A pipeline that has the special tokens of ``base``, with their roles and the other settings of ``base``."""
    vocabulary = base.get_vocab()
    roles = {role: token for role, token in base.special_tokens_map.items() if token in vocabulary}
    settings: dict[str, Any] = {
        name: getattr(base, name) for name in ("model_max_length", "padding_side", "truncation_side", "chat_template")
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        extra_special_tokens=[str(token) for token in base.extra_special_tokens],
        clean_up_tokenization_spaces=False,
        **roles,
        **settings,
    )


def _special(string: str, declared: AddedToken | None) -> AddedToken:
    if declared is None:
        return AddedToken(string, normalized=False, special=True)
    return AddedToken(string, lstrip=declared.lstrip, rstrip=declared.rstrip, normalized=False, special=True)


def _around_a_text(base: PreTrainedTokenizerBase) -> tuple[list[str], list[str]]:
    """The special tokens that ``base`` puts before and after a text."""
    text = base(_PROBE, add_special_tokens=False).input_ids
    whole = base(_PROBE).input_ids
    start = next(start for start in range(len(whole)) if whole[start : start + len(text)] == text)
    return base.convert_ids_to_tokens(whole[:start]), base.convert_ids_to_tokens(whole[start + len(text) :])


def _around(before: list[str], after: list[str], tokenizer: Tokenizer) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, "$B", *after],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(before + after)],
    )
