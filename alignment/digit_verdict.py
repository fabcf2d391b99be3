"""Whether two tokenizers cut numbers alike: what costs most where they do not (embedding_init.md §0.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from alignment.byte_view import DigitScheme

Verdict = Literal["same", "clash", "unknown"]

_CUTS: dict[DigitScheme, str] = {
    "single": "after every digit",
    "up_to_3_left": "into threes counted from the left",
    "up_to_3_right": "into threes counted from the right",
    "free": "wherever its merges do",
}


@dataclass(frozen=True)
class DigitVerdict:
    """What becomes of numbers.

    Attributes:
        verdict: ``same``, ``clash``, or ``unknown`` where a tokenizer cannot encode digits exactly.
        sentence: the same for a person, with what to do about it.
    """

    verdict: Verdict
    sentence: str


def digit_verdict(
    source: DigitScheme, target: DigitScheme, *, names: tuple[str, str] = ("source", "target")
) -> DigitVerdict:
    """Compare two digit schemes (``ByteView.digit_scheme``); ``names`` are what the sentence calls the two sides."""
    if "none" in (source, target):
        which = "neither tokenizer" if source == target else f"the {names[source != 'none']} does not"
        verb = "encodes" if source == target else "encode"
        return DigitVerdict("unknown", f"{which} {verb} digits exactly, so whether numbers are cut alike is not known")
    if source != target:
        return DigitVerdict(
            "clash",
            f"the {names[0]} cuts numbers {_CUTS[source]}, the {names[1]} {_CUTS[target]}: arithmetic suffers most "
            f"from such a change; prefer a {names[1]} tokenizer that cuts numbers as the {names[0]} does",
        )
    if source == "free":
        return DigitVerdict(
            "same", "both cut numbers wherever their merges do, which is the same scheme but not always the same place"
        )
    return DigitVerdict("same", f"both cut numbers {_CUTS[source]}")
