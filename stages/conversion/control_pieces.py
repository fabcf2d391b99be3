"""The control pieces of a SentencePiece unigram model, which text never becomes, also where it reads like one.

SentencePiece leaves them out of its lattice. `tokenizers` has one vocabulary for everything, in which they score best,
so their strings are cut before the model sees them: at a place that no piece spans, where the most probable pieces of
the whole are those of the two sides.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Mapping

from tokenizers import Regex, pre_tokenizers


def find_cuts(controls: Iterable[str], pieces: Collection[str], *, byte_fallback: bool) -> dict[str, int | None]:
    """Control string -> the number of characters before its cut; None where pieces span every place.

    Args:
        pieces: all that text can become.
        byte_fallback: unknown characters become bytes. Otherwise a run of them becomes one unknown token, so that it
            must not be cut either.
    """
    spanned = {pair for piece in pieces for pair in itertools.pairwise(piece)}

    def can_cut(left: str, right: str) -> bool:
        return (left, right) not in spanned and (byte_fallback or left in pieces or right in pieces)

    return {
        control: next((place for place, pair in enumerate(itertools.pairwise(control), 1) if can_cut(*pair)), None)
        for control in controls
    }


def cutting_pre_tokenizer(cuts: Mapping[str, int | None]) -> pre_tokenizers.Split | None:
    """Cuts the strings wherever they stand in a normalised text; None if there is nothing to cut."""
    rests: dict[str, list[str]] = {}
    for control, place in cuts.items():
        if place is not None:
            rests.setdefault(control[:place], []).append(re.escape(control[place:]))
    if not rests:
        return None
    # Looking around instead of matching, so that strings may overlap.
    places = [f"(?<={re.escape(start)})(?={'|'.join(ends)})" for start, ends in rests.items()]
    return pre_tokenizers.Split(Regex("|".join(places)), "isolated")
