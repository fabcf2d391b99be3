"""Tokenizers that cut numbers in a wanted way, by a step in front of what cuts their text."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from alignment import digits
from alignment.byte_view import ByteView, DigitScheme
from alignment.token_codecs import components
from stages.conversion.errors import ConversionError
from stages.conversion.special_tokens import rewrapped

_NUMBERS: Mapping[DigitScheme, str] = {
    "single": r"\p{N}",
    "up_to_3_left": r"\p{N}{1,3}",
    "up_to_3_right": r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
}
"""Scheme -> the parts that it cuts numbers into."""


def number_cutter(scheme: DigitScheme) -> PreTokenizer | None:
    """What cuts numbers as the scheme says and nothing else; None for schemes that cut nowhere."""
    return pre_tokenizers.Split(Regex(_NUMBERS[scheme]), "isolated") if scheme in _NUMBERS else None


def scheme_of_cuts(pre_tokenizer: PreTokenizer) -> DigitScheme:
    """The scheme by which a pre-tokenizer alone cuts numbers."""
    numbers = digits.probes()
    pieces = [pre_tokenizer.pre_tokenize_str(number) for number in numbers]
    return digits.scheme_of(numbers, [np.array([end for _, (_, end) in found]) for found in pieces])


def keep_digits(target: PreTrainedTokenizerBase, scheme: DigitScheme) -> PreTrainedTokenizerFast:
    """A tokenizer that cuts numbers by ``scheme`` and is otherwise ``target``, with all of its ids.

    Its tokens for longer numbers remain and no text gets them any more. A space before a number becomes a token of its
    own where the target's tokens would have held it.

    Args:
        target: has a ``tokenizers`` pipeline; it is left as it is.
        scheme: how numbers shall be cut.

    Raises:
        ConversionError: the target runs in Python, already cuts numbers where the scheme does not, or does not spell
            text with numbers once they are cut.
    """
    name = target.name_or_path
    backend = getattr(target, "backend_tokenizer", None)
    cutter = number_cutter(scheme)
    if not isinstance(backend, Tokenizer):
        raise ConversionError(f"{name} is a {type(target).__name__}, which runs in Python and cannot be changed")
    before = ByteView.from_tokenizer(target).digit_scheme
    if before == scheme:
        return rewrapped(Tokenizer.from_str(backend.to_str()), target)
    pipeline = json.loads(backend.to_str())
    # Metaspace puts its mark before each piece that it gets, so it must get the text whole.
    last = any(step["type"] == "Metaspace" for step in components(pipeline, "pre_tokenizer"))
    changed = Tokenizer.from_str(backend.to_str())
    if cutter is not None:
        steps = [step for step in (backend.pre_tokenizer, cutter) if step is not None]
        changed.pre_tokenizer = pre_tokenizers.Sequence(steps if last else steps[::-1])
    result = rewrapped(changed, target)
    if (found := ByteView.from_tokenizer(result).digit_scheme) != scheme:
        raise ConversionError(
            f"{name} cannot be made to cut numbers by the scheme {scheme!r}: it cuts by {before!r}, and with numbers "
            f"cut beforehand by {found!r}. Cuts can be added to a tokenizer, none taken back: choose another target"
        )
    return result
