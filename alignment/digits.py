"""How a tokenizer cuts numbers, found by encoding some (embedding_init.md §0.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np

DigitScheme = Literal["single", "up_to_3_left", "up_to_3_right", "free", "none"]

_DIGITS = "31415926535897932384626433832795028841971693993751058209749445923078164062862089986280"

_FORCED_CUTS: dict[DigitScheme, Callable[[int], Iterable[int]]] = {
    "single": lambda length: range(1, length),
    "up_to_3_left": lambda length: range(3, length, 3),
    "up_to_3_right": lambda length: range(length - 3, 0, -3),
    "free": lambda length: (),
}
"""Scheme -> where it cuts a number of so many digits, the strictest scheme first."""


def probes() -> list[str]:
    """Numbers of 2 to 10 digits: irregular ones, and the round and repeated ones that free merges join."""
    return [digits for length in range(2, 11) for digits in _digit_strings(length)]


def scheme_of(numbers: Sequence[str], byte_ends: Sequence[np.ndarray]) -> DigitScheme:
    """The scheme that the token ends of some numbers have in common; never ``none``."""
    return next(scheme for scheme in _FORCED_CUTS if cuts_as(scheme, numbers, byte_ends))


def cuts_as(scheme: DigitScheme, numbers: Sequence[str], byte_ends: Sequence[np.ndarray]) -> bool:
    """Whether the tokens of all numbers end wherever the scheme cuts; they may end elsewhere too."""
    forced = _FORCED_CUTS[scheme]
    return all(
        set(ends.tolist()).issuperset(forced(len(number))) for number, ends in zip(numbers, byte_ends, strict=True)
    )


def _digit_strings(length: int) -> list[str]:
    irregular = [_DIGITS[start : start + length] for start in range(0, len(_DIGITS) - length, 3)]
    return ["1" + "0" * (length - 1), "0" * length, "9" * length, *irregular]
