"""Small byte-level tokenizers made by hand."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from alignment.token_codecs import byte_alphabet

END = "<|endoftext|>"
SPACE = "▁"
HELLO_MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "hello"), ("Ã", "©")]


def byte_level(
    *merges: tuple[str, str],
    pre_tokenizer: pre_tokenizers.PreTokenizer | None = None,
    normalizer: normalizers.Normalizer | None = None,
) -> Tokenizer:
    """Byte-level BPE over all 256 bytes (ids 0 to 255 in the alphabet's order) and the given merges."""
    entries = [*sorted(byte_alphabet()), *dict.fromkeys(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE({entry: index for index, entry in enumerate(entries)}, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return tokenizer


def fast(tokenizer: Tokenizer, **options: str) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers has it."""
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)
