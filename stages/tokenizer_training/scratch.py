"""Tokenizers trained from scratch on the user's text, with the special tokens of the student's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from alignment.byte_view import DigitScheme
from alignment.token_codecs import components
from stages.conversion.errors import ConversionError
from stages.conversion.patterns import PATTERNS
from stages.conversion.special_tokens import special_tokens, with_special_tokens
from stages.tokenizer_training.numbers import number_cutter, scheme_of_cuts

Learner = Callable[[Iterable[str], PreTokenizer, int], models.Model]
"""Texts, what cuts them, and the most tokens -> a model over GPT-2's alphabet of bytes, with all of its characters."""

_BYTES = 256


def train(
    base: PreTrainedTokenizerBase,
    texts: Iterable[str],
    learn: Learner,
    *,
    vocab_size: int,
    pattern: str | None,
    scheme: DigitScheme,
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of a new vocabulary, with the special tokens, roles and template of ``base``.

    All 256 bytes are tokens, so every text is spelled exactly.

    Args:
        base: whose special tokens are kept; its pre-tokenizer too where no ``pattern`` is given.
        texts: read once.
        learn: ``byte_pairs(...)`` or ``unigram``.
        vocab_size: the most ids, special tokens included.
        pattern: pre-tokenization regex; None takes the pre-tokenizer of ``base``, or GPT-2's if that is not byte-level.
        scheme: how numbers shall be cut.

    Raises:
        ConversionError: the vocabulary is too small for bytes and special tokens, or the pattern cuts numbers where
            ``scheme`` does not.
    """
    specials = special_tokens(base)
    size = vocab_size - len(specials)
    if size < _BYTES:
        raise ConversionError(
            f"a vocabulary of {vocab_size:,} has no room for {_BYTES} bytes and {len(specials)} special tokens"
        )
    pre_tokenizer = _cutting_numbers(_pre_tokenizer(base, pattern), scheme)
    tokenizer = Tokenizer(learn(texts, pre_tokenizer, size))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    return with_special_tokens(tokenizer, specials, base)


def byte_pairs(min_frequency: int) -> Learner:
    """Byte-pair encoding (Sennrich et al. 2016) that merges no pair with fewer occurrences."""

    def learn(texts: Iterable[str], pre_tokenizer: PreTokenizer, size: int) -> models.Model:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizer
        trainer = trainers.BpeTrainer(
            vocab_size=size, min_frequency=min_frequency, initial_alphabet=ByteLevel.alphabet(), show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
        return tokenizer.model

    return learn


def _pre_tokenizer(base: PreTrainedTokenizerBase, pattern: str | None) -> PreTokenizer:
    """A byte-level pre-tokenizer."""
    backend = getattr(base, "backend_tokenizer", None)
    if pattern is None and isinstance(backend, Tokenizer):
        pipeline = json.loads(backend.to_str())
        if any(step["type"] == "ByteLevel" for step in components(pipeline, "pre_tokenizer")):
            return backend.pre_tokenizer
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern or PATTERNS["gpt2"]), "isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _cutting_numbers(pre_tokenizer: PreTokenizer, scheme: DigitScheme) -> PreTokenizer:
    """The pre-tokenizer with a step in front if it does not cut numbers by the scheme itself.

    Raises:
        ConversionError: it cuts them where the scheme does not.
    """
    if scheme_of_cuts(pre_tokenizer) == scheme:
        return pre_tokenizer
    steps = [step for step in (number_cutter(scheme), pre_tokenizer) if step is not None]
    changed = pre_tokenizers.Sequence(steps)
    if (found := scheme_of_cuts(changed)) != scheme:
        raise ConversionError(
            f"the pre-tokenization pattern cuts numbers by the scheme {found!r}, so {scheme!r} cannot be had with it: "
            "name another one, such as `pattern: gpt2`, which cuts no numbers"
        )
    return changed
