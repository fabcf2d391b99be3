"""The byte tokenizer: one token for each byte, and the special tokens of another tokenizer."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from alignment.byte_view import ByteView
from alignment.token_codecs import UnsupportedTokenizer, byte_alphabet
from stages.conversion.errors import ConversionError
from stages.conversion.special_tokens import special_tokens, with_special_tokens


def byte_tokenizer(base: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """The byte tokenizer with the special tokens, roles and chat template of ``base``.

    Ids 0 to 255 are the bytes themselves; the special tokens follow in the order of their ids in ``base``. It is
    byte-level BPE without merges, so a ``tokenizer.json`` describes it and transformers loads it without code of ours.
    The control tokens of the chat template stay single tokens; its words ("user", "assistant") are bytes like any
    other text, whereas the code released with arXiv 2503.20083 makes tokens of them everywhere (alm.md §7).

    Raises:
        ConversionError: a special token of ``base`` is a single character that stands for a byte.
        UnsupportedTokenizer: the bytes of the base's tokens cannot be derived.
    """
    tokenizer = Tokenizer(BPE(byte_alphabet(), []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return with_special_tokens(tokenizer, special_tokens(base), base)


def write_byte_tokenizer(base: PreTrainedTokenizerBase, directory: Path) -> PreTrainedTokenizerBase:
    """Write the byte tokenizer of ``base`` and give it back as transformers loads it from there.

    Raises:
        ConversionError: it cannot be made of ``base``, or does not spell every text.
    """
    try:
        byte_tokenizer(base).save_pretrained(directory)
    except UnsupportedTokenizer as error:
        raise ConversionError(str(error)) from None
    published = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    view = ByteView.from_tokenizer(published)
    if not view.exact:
        reasons = "; ".join(view.inexact_reasons)
        raise ConversionError(f"{base.name_or_path}: its byte tokenizer would not spell every text: {reasons}")
    return published
