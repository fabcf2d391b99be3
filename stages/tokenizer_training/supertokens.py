"""Tokens of several words for a byte-pair tokenizer: merges across the spaces at which it cuts text."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import Regex, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from stages.conversion.errors import ConversionError
from stages.conversion.patterns import PATTERNS
from stages.tokenizer_training.base_bpe import BaseBPE, pre_tokenizer_of, runs
from stages.tokenizer_training.merges import Merge, Sequences, learn_merges

_SEVERAL_WORDS = r" ?\p{L}+(?: \p{L}+)+"
"""Words of letters alone with one space between: what comes between them otherwise, numbers above all, stays cut."""


def supertokens(
    base: PreTrainedTokenizerBase, texts: Iterable[str], *, new_tokens: int, min_frequency: int, max_words: int
) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer with tokens of two and more whole words; the base's ids stay what they are.

    The pre-tokenizer no longer cuts between words of letters with a single space between them, and merges that join
    whole words come after all of the base's. What they do not join is cut as before, except for words that the base
    finds by looking them up and never by its merges (``ignore_merges``; a few of Llama 3's): next to another word those
    are merged. No new token contains a digit, a punctuation mark or a line break.

    As in the second phase of SuperBPE (arXiv 2503.13423), but on a vocabulary that is there already and, as in
    BoundlessBPE (arXiv 2504.00178), only of words that are single tokens.

    Args:
        base: byte-level or SentencePiece BPE with a ``tokenizers`` pipeline; it is left as it is.
        texts: read once.
        new_tokens: the most tokens to add.
        min_frequency: the fewest occurrences of a token in the texts.
        max_words: the most words in a token.

    Raises:
        ConversionError: the base is of another kind, or cuts words in a way that cannot be changed.
    """
    opened = BaseBPE(base)
    cutting = _widened(opened) if opened.byte_level else None
    known = set(opened.vocabulary)

    def is_wanted(left: str, right: str) -> bool:
        words = (left + right).count(opened.space)  # every word begins with its space
        return words <= max_words and left + right not in known

    phrases = opened.pre_tokens(texts, cutting or _phrases_cut_out(opened))
    sequences = _whole_words(opened, phrases)
    merges: list[Merge] = []
    found = learn_merges(sequences, min_frequency=min_frequency, is_allowed=is_wanted)
    for merge in itertools.islice(found, new_tokens):
        known.add(merge.left + merge.right)
        merges.append(merge)
    return opened.extended([merge.left + merge.right for merge in merges], merges, pre_tokenizer=cutting)


def _widened(opened: BaseBPE) -> PreTokenizer:
    """The pre-tokenizer of a byte-level base, but that it leaves several words together.

    Its regex gets an alternative in front, for words of letters that the rest of it would cut at their spaces.

    Raises:
        ConversionError: not exactly one regex cuts words.
    """
    steps = opened.pre_tokenizer_steps
    cutting = [step for step in steps if _word_regex(step) is not None]
    if len(cutting) != 1 or any(step.get("add_prefix_space") for step in steps):
        raise _refusal("does not cut words by one regex")
    regex = f"{_SEVERAL_WORDS}|(?:{_word_regex(cutting[0])})"
    widened: list[Mapping[str, Any]] = []
    for step in steps:
        if step is cutting[0]:
            widened.append({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False})
        if step["type"] == "ByteLevel":
            widened.append({**step, "use_regex": False})
        elif step is not cutting[0]:
            widened.append(step)
    return pre_tokenizer_of({"type": "Sequence", "pretokenizers": widened})


def _word_regex(step: Mapping[str, Any]) -> str | None:
    """The regex by which a step of a pre-tokenizer cuts words; None if it does not."""
    if step["type"] == "ByteLevel":
        return PATTERNS["gpt2"] if step["use_regex"] else None
    if step["type"] != "Split" or step["behavior"] != "Isolated" or step["invert"]:
        return None
    regex = step["pattern"].get("Regex", "")
    return regex if r"\p{L" in regex else None


def _phrases_cut_out(opened: BaseBPE) -> PreTokenizer:
    """What cuts several words out of a text that SentencePiece has normalised; there merges cross spaces anyway.

    Raises:
        ConversionError: the pre-tokenizer keeps them from doing so.
    """
    if any(step["type"] == "Metaspace" and step.get("split", True) for step in opened.pre_tokenizer_steps):
        raise _refusal("cuts at every space (Metaspace)")
    phrases = pre_tokenizers.Split(Regex(_SEVERAL_WORDS.replace(" ", opened.space)), "isolated")
    own = [] if opened.pre_tokenizer is None else [opened.pre_tokenizer]
    return pre_tokenizers.Sequence([*own, phrases])


def _whole_words(opened: BaseBPE, pre_tokens: Mapping[str, int]) -> Sequences:
    """The words of several, where they are single tokens and have a space in front; others join nothing."""
    sequences: Counter[tuple[str, ...]] = Counter()
    for pre_token, count in pre_tokens.items():
        text = opened.codec.to_bytes(pre_token).decode(errors="replace")
        if not all(word.isalpha() for word in text.removeprefix(" ").split(" ")):
            continue
        words: list[list[str]] = []
        for symbol in opened.symbols(pre_token):
            if symbol.startswith(opened.space) or not words:
                words.append([])
            words[-1].append(symbol)
        whole = [word[0] if len(word) == 1 and word[0].startswith(opened.space) else None for word in words]
        for run in runs(whole):
            sequences[run] += count
    return sequences


def _refusal(reason: str) -> ConversionError:
    return ConversionError(
        f"the student's pre-tokenizer {reason}, so words cannot be left together: supertokens need one like that of "
        "GPT-2, Llama 3 or Qwen, or a SentencePiece model that cuts nothing beforehand"
    )
