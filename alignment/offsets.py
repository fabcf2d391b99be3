"""Where the tokens of a text lie in its bytes, found from the characters that each token was made from.

Needed where the tokens' bytes are not the text's: the tokenizer folded case, composed characters, collapsed white
space, or had no token for a character. Tokens that were made from common characters form a *stretch*. Where a
stretch's bytes are the text's, its tokens end where their own bytes end, also inside characters (byte fallback);
otherwise only the end of the stretch is known.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple
from unicodedata import combining, normalize

import numpy as np

_SPACE = 0x20


class CharacterSpans(NamedTuple):
    """The characters that each of T tokens was made from, as ``text[start:end]``; both int64 [T]."""

    starts: np.ndarray
    ends: np.ndarray


class Location(NamedTuple):
    """``byte_ends``, ``boundary`` and ``verbatim`` of an ``Encoding``, each [T]."""

    byte_ends: np.ndarray
    boundary: np.ndarray
    verbatim: np.ndarray


@dataclass(frozen=True)
class SpaceRule:
    """How far the spaces of tokens and text may differ while the tokens still count as verbatim.

    Attributes:
        invented: a stretch may begin with one space that the text does not have.
        dropped: a stretch may lack the one space that it begins with in the text.
    """

    invented: bool = False
    dropped: bool = False


def locate(text: str, spans: CharacterSpans, spelled: np.ndarray, lengths: np.ndarray, rule: SpaceRule) -> Location:
    """Locate the T tokens of a text in its UTF-8 bytes.

    Characters that no token was made from fall to the token after them if they begin with white space, and otherwise
    (a combining mark that was composed or removed) to the token before them. White space at the end of the text that
    has no token stays outside.

    Args:
        spelled: uint8, the bytes of the tokens, one after the other.
        lengths: integers [T], the number of bytes of each token.
    """
    if not lengths.size:
        nothing = np.zeros(0, dtype=bool)
        return Location(np.zeros(0, dtype=np.int64), nothing, nothing)
    data = np.frombuffer(text.encode(), np.uint8)
    first, stretch_ends = _stretches(text, spans)
    ends = _byte_offsets(data)[stretch_ends]
    starts = np.concatenate([[0], ends[:-1]])
    stretch = np.cumsum(first) - 1
    stretch_bytes = np.add.reduceat(lengths.astype(np.int64), np.flatnonzero(first))
    shift, verbatim = _match(data, starts, ends, spelled, stretch_bytes, rule)

    last = np.append(first[1:], True)
    spelled_before = np.concatenate([[0], np.cumsum(stretch_bytes)[:-1]])
    own_ends = starts[stretch] + shift[stretch] + np.cumsum(lengths) - spelled_before[stretch]
    own_ends = np.maximum(own_ends, starts[stretch])  # a token without bytes may come before an invented space
    byte_ends = np.where(last, ends[stretch], np.where(verbatim[stretch], own_ends, starts[stretch]))
    return Location(byte_ends, last | verbatim[stretch], verbatim[stretch])


def spans_around_difference(text: str, spelled: np.ndarray, lengths: np.ndarray, rule: SpaceRule) -> CharacterSpans:
    """Character spans for tokenizers that report none: tokens are placed from both ends of the text.

    Tokens are where their bytes put them as far as those are the text's, counted from the start and then from the end;
    the ones between share the characters between.

    Args:
        spelled: uint8, the bytes of the tokens, one after the other.
        lengths: integers [T], the number of bytes of each token.
    """
    data = np.frombuffer(text.encode(), np.uint8)
    invented = int(rule.invented and spelled[:1].tobytes() == b" " != data[:1].tobytes())
    head = common_prefix(data, spelled[invented:])
    tail = min(common_prefix(data[::-1], spelled[::-1]), len(data) - head, len(spelled) - invented - head)
    own_ends = np.cumsum(lengths, dtype=np.int64) - invented
    own_starts = np.maximum(own_ends - lengths, 0)
    tail_start = len(spelled) - invented - tail
    where = [own_ends <= head, own_starts >= tail_start]
    moved = len(data) - tail - tail_start
    starts = np.select(where, [own_starts, own_starts + moved], head)
    ends = np.select(where, [own_ends, own_ends + moved], len(data) - tail)
    return character_spans(data, starts, ends)


def character_spans(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> CharacterSpans:
    """The characters that spans of bytes touch.

    Args:
        data: uint8, the UTF-8 bytes of the text.
        starts, ends: integers [T], offsets into them.
    """
    is_start = np.append((data & 0xC0) != 0x80, True)
    character = np.cumsum(is_start) - 1
    return CharacterSpans(character[starts], character[ends] + ~is_start[ends])


def common_prefix(left: np.ndarray, right: np.ndarray) -> int:
    """The number of bytes that two uint8 arrays have in common at their start."""
    shorter = min(len(left), len(right))
    differs = left[:shorter] != right[:shorter]
    return int(np.argmax(differs)) if differs.any() else shorter


def _stretches(text: str, spans: CharacterSpans) -> tuple[np.ndarray, np.ndarray]:
    """bool [T]: tokens that begin a stretch; int64: the character after each stretch."""
    starts, ends = spans
    reached = np.maximum.accumulate(ends)
    upcoming = np.minimum.accumulate(starts[::-1])[::-1]
    # A token made from no character at all (the first letter of an expanded ligature) belongs to what comes next.
    follows_empty = (starts[:-1] == ends[:-1]) & (starts[1:] == ends[:-1])
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    # Normal forms move combining marks past each other, and the offsets do not tell.
    at_mark = _combining_marks()[np.append(codes, 0)[upcoming[1:]]]
    first = np.append(True, (upcoming[1:] >= reached[:-1]) & ~follows_empty & ~at_mark)

    white = np.append(_white_space()[codes], True)
    next_white = np.minimum.accumulate(np.where(white, np.arange(len(white)), len(codes))[::-1])[::-1]
    opens = np.flatnonzero(first)
    last = np.append(opens[1:], len(first)) - 1
    next_start = np.append(upcoming[opens[1:]], len(codes))
    return first, np.maximum(reached[last], np.minimum(next_white[reached[last]], next_start))


@cache
def _white_space() -> np.ndarray:
    """bool [0x110000]: code points that are Unicode's White_Space; Python counts U+001C to U+001F too."""
    return _table(code for code in range(0x3001) if chr(code).isspace() and not 0x1C <= code <= 0x1F)


@cache
def _combining_marks() -> np.ndarray:
    """bool [0x110000]: code points that are, or are decomposed into, characters of a combining class other than 0.

    All of them are below U+20000. U+0F73, for one, is itself of class 0.
    """
    return _table(code for code in range(0x20000) if combining(normalize("NFKD", chr(code))[0]))


def _table(codes: Iterable[int]) -> np.ndarray:
    table = np.zeros(sys.maxunicode + 1, dtype=bool)
    table[list(codes)] = True
    return table


def _byte_offsets(data: np.ndarray) -> np.ndarray:
    """int64 [characters + 1]: where each character begins in the bytes, and where the last one ends."""
    return np.append(np.flatnonzero((data & 0xC0) != 0x80), len(data))


def _match(
    data: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    spelled: np.ndarray,
    lengths: np.ndarray,
    rule: SpaceRule,
) -> tuple[np.ndarray, np.ndarray]:
    """For each of G stretches of the text, which of its bytes its tokens stand for.

    Args:
        starts, ends: int64 [G], the stretches' bytes in ``data``.
        spelled: the bytes of all stretches' tokens, one after the other.
        lengths: int64 [G], how many of them belong to each stretch.

    Returns:
        int64 [G]: from where in the stretch its tokens begin, -1 for an invented and 1 for a dropped space;
        bool [G]: whether the tokens' bytes are the text's from there on.
    """
    surplus = lengths - (ends - starts)
    spelled_starts = np.cumsum(lengths) - lengths
    begins_with_space = _is_space(spelled, spelled_starts) & (lengths > 0)
    text_begins_with_space = _is_space(data, starts) & (ends > starts)
    invented = (surplus == 1) & begins_with_space & rule.invented
    dropped = (surplus == -1) & text_begins_with_space & ~begins_with_space & rule.dropped
    shift = dropped.astype(np.int64) - invented

    same_length = (surplus == 0) | invented | dropped
    stretch_of_byte = np.repeat(np.arange(len(lengths)), lengths)
    in_text = np.arange(len(spelled)) + (starts + shift - spelled_starts)[stretch_of_byte]
    compared = same_length[stretch_of_byte] & (in_text >= starts[stretch_of_byte])
    differs = data[in_text[compared]] != spelled[compared]
    different = np.zeros(len(lengths), dtype=bool)
    different[stretch_of_byte[compared][differs]] = True
    return shift, same_length & ~different


def _is_space(data: np.ndarray, positions: np.ndarray) -> np.ndarray:
    return np.append(data, 0)[positions] == _SPACE
