"""How a tokenizer cuts numbers, found by encoding some (embedding_init.md §0.4)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

DigitScheme = Literal["single", "up_to_3_left", "up_to_3_right", "free", "none"]

_DIGITS = "31415926535897932384626433832795028841971693993751058209749445923078164062862089986280"


def probes() -> list[str]:
    """Numbers of 2 to 10 digits: irregular ones, and the round and repeated ones that free merges join."""
    return [digits for length in range(2, 11) for digits in _digit_strings(length)]


def scheme_of(numbers: Sequence[str], byte_ends: Sequence[np.ndarray]) -> DigitScheme:
    """The scheme that the token ends of some numbers have in common; never ``none``."""
    cuts = [set(ends.tolist()) for ends in byte_ends]
    lengths = [len(digits) for digits in numbers]
    forced_cuts: dict[DigitScheme, list[Iterable[int]]] = {
        "single": [range(1, length) for length in lengths],
        "up_to_3_left": [range(3, length, 3) for length in lengths],
        "up_to_3_right": [range(length - 3, 0, -3) for length in lengths],
    }
    for scheme, forced in forced_cuts.items():
        if all(found.issuperset(required) for found, required in zip(cuts, forced, strict=True)):
            return scheme
    return "free"


def _digit_strings(length: int) -> list[str]:
    irregular = [_DIGITS[start : start + length] for start in range(0, len(_DIGITS) - length, 3)]
    return ["1" + "0" * (length - 1), "0" * length, "9" * length, *irregular]
