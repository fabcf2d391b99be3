"""More merges for a byte-pair tokenizer, learned on text that it cuts too finely, such as another language."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable

from tokenizers import Regex, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from stages.tokenizer_training.base_bpe import BaseBPE
from stages.tokenizer_training.merges import Merge, learn_merges


def extend(
    base: PreTrainedTokenizerBase, texts: Iterable[str], *, new_tokens: int, min_frequency: int, keep_numbers: bool
) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer whose merges go on where the base's own end; the base's ids stay what they are.

    New merges are learned on the tokens that the base makes of each pre-token, and come after all of the base's: a
    text is first cut as the base cuts it, then joined further. A pair that would give a token the base has already is
    passed over. Where the base has no token for a character, only its bytes (SentencePiece), the most frequent such
    characters become tokens first. This is continued BPE training (Purason et al. 2025, arXiv 2512.03989); unlike
    the tokens of a second tokenizer appended to the first, every new token is reached by merges.

    Args:
        base: byte-level or SentencePiece BPE with a ``tokenizers`` pipeline; it is left as it is.
        texts: read once.
        new_tokens: the most tokens to add.
        min_frequency: the fewest occurrences of a token in the texts.
        keep_numbers: no new token contains a digit, so numbers are cut as before.

    Raises:
        ConversionError: the base is of another kind.
    """
    opened = BaseBPE(base)
    words = opened.pre_tokens(texts, word_cutter(opened, keep_numbers=keep_numbers))
    characters = _new_characters(opened, words, min_frequency)[:new_tokens]
    if characters:
        opened = opened.with_tokens(characters)
    known = set(opened.vocabulary)

    def is_new(left: str, right: str) -> bool:
        return left + right not in known

    merges: list[Merge] = []
    found = learn_merges(opened.sequences(words), min_frequency=min_frequency, is_allowed=is_new)
    for merge in itertools.islice(found, new_tokens - len(characters)):
        known.add(merge.left + merge.right)
        merges.append(merge)
    return opened.extended([merge.left + merge.right for merge in merges], merges)


def word_cutter(opened: BaseBPE, *, keep_numbers: bool) -> PreTokenizer:
    """What cuts normalised text into the words that tokens may lie in.

    SentencePiece encodes a whole text as one word but learns from words; so they are cut here as its trainer does it:
    at spaces, and between letters, numbers and the rest.
    """
    number = r"\p{N}" if keep_numbers else r"\p{N}+"
    steps: list[PreTokenizer] = []
    if opened.byte_level and keep_numbers:
        # In front, because bytes that spell no character are no digits in the alphabet of bytes.
        steps.append(pre_tokenizers.Split(Regex(number), "isolated"))
    if opened.pre_tokenizer is not None:
        steps.append(opened.pre_tokenizer)
    if not opened.byte_level:
        space = opened.space
        classes = (rf"{space}*\p{{L}}[\p{{L}}\p{{M}}]*", number, rf"{space}*[^\s{space}\p{{L}}\p{{N}}]+", rf"{space}+")
        steps.append(pre_tokenizers.Split(Regex("|".join(classes)), "isolated"))
    return pre_tokenizers.Sequence(steps)


def _new_characters(opened: BaseBPE, words: Counter[str], min_frequency: int) -> list[str]:
    """The characters that the base has only bytes for, the most frequent first; a byte-level base knows no others."""
    if opened.byte_level:
        return []
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            # The one byte of an ASCII character, such as a new line, is as good as a token.
            if character not in opened.vocabulary and not character.isascii():
                counts[character] += count
    frequent = [character for character, count in counts.items() if count >= min_frequency]
    return sorted(frequent, key=lambda character: (-counts[character], character))
