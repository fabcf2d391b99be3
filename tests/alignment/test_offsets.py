"""Tokens located from the characters they were made from: hand-worked cases, and random ones whose truth is known."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.offsets import CharacterSpans, Location, SpaceRule, locate, spans_around_difference

EXACT, INVENTED, DROPPED = SpaceRule(), SpaceRule(invented=True), SpaceRule(dropped=True)


def located(text: str, tokens: list[tuple[bytes, int, int]], rule: SpaceRule = EXACT) -> Location:
    """The location of tokens given as (bytes, first character, character after the last)."""
    starts, ends = (np.array([token[side] for token in tokens], dtype=np.int64) for side in (1, 2))
    spelled = np.frombuffer(b"".join(token[0] for token in tokens), np.uint8)
    lengths = np.array([len(token[0]) for token in tokens], dtype=np.int32)
    return locate(text, CharacterSpans(starts, ends), spelled, lengths, rule)


@pytest.mark.parametrize(
    ("text", "tokens", "rule", "ends", "boundary", "verbatim"),
    [
        pytest.param("ab", [(b"a", 0, 1), (b"b", 1, 2)], EXACT, [1, 2], [1, 1], [1, 1], id="plain"),
        pytest.param("é", [(b"\xc3", 0, 1), (b"\xa9", 0, 1)], EXACT, [1, 2], [1, 1], [1, 1], id="bytes of a character"),
        pytest.param(
            "éa",
            [(b"\xc3", 0, 1), (b"\xa9a", 0, 2)],
            EXACT,
            [1, 3],
            [1, 1],
            [1, 1],
            id="a token from inside a character into the next",
        ),
        pytest.param("Éa", [(b"e", 0, 1), (b"a", 1, 2)], EXACT, [2, 3], [1, 1], [0, 1], id="folded"),
        pytest.param(
            "aﬁb",
            [(b"a", 0, 1), (b"f", 1, 2), (b"i", 1, 2), (b"b", 2, 3)],
            EXACT,
            [1, 1, 4, 5],
            [1, 0, 1, 1],
            [1, 0, 0, 1],
            id="a ligature in two tokens",
        ),
        pytest.param(
            "aﬁ",
            [(b"a", 0, 1), (b"f", 1, 1), (b"i", 1, 2)],
            EXACT,
            [1, 1, 4],
            [1, 0, 1],
            [1, 0, 0],
            id="a ligature whose first letter spans no character",
        ),
        pytest.param(
            "e\u0301 x",
            [("é".encode(), 0, 1), (b" ", 2, 3), (b"x", 3, 4)],
            EXACT,
            [3, 4, 5],
            [1, 1, 1],
            [0, 1, 1],
            id="a composed mark falls to the token before",
        ),
        pytest.param("a  b", [(b"a", 0, 1), (b" b", 2, 4)], EXACT, [1, 4], [1, 1], [1, 0], id="collapsed white space"),
        pytest.param("a\u3000b", [(b"a", 0, 1), (b"b", 2, 3)], DROPPED, [1, 5], [1, 1], [1, 0], id="no plain space"),
        pytest.param("a b", [(b"a", 0, 1), (b"b", 2, 3)], DROPPED, [1, 3], [1, 1], [1, 1], id="one dropped space"),
        pytest.param("a b", [(b"a", 0, 1), (b"b", 2, 3)], EXACT, [1, 3], [1, 1], [1, 0], id="no dropping"),
        pytest.param("a  b", [(b"a", 0, 1), (b" b", 3, 4)], DROPPED, [1, 4], [1, 1], [1, 0], id="its own space"),
        pytest.param(
            "e\u0301\u0327",
            [("ȩ".encode(), 0, 1), ("\u0301".encode(), 1, 3)],
            EXACT,
            [0, 5],
            [0, 1],
            [0, 0],
            id="reordered marks",
        ),
        pytest.param(
            "a\u0301\u0f73",  # U+0F73, of class 0, is U+0F71 U+0F72, and both go before U+0301
            [("a\u0f71".encode(), 0, 1), ("\u0f72".encode(), 1, 2), ("\u0301".encode(), 2, 3)],
            EXACT,
            [0, 0, 6],
            [0, 0, 1],
            [0, 0, 0],
            id="marks reordered out of a character of class 0",
        ),
        pytest.param("ab", [(b" ", 0, 1), (b"a", 0, 1), (b"b", 1, 2)], INVENTED, [0, 1, 2], [1] * 3, [1] * 3, id="▁"),
        pytest.param(
            "xa",
            [(b"x", 0, 1), (b"", 1, 2), (b" ", 1, 2), (b"a", 1, 2)],
            INVENTED,
            [1, 1, 1, 2],
            [1] * 4,
            [1] * 4,
            id="no bytes, then ▁",
        ),
        pytest.param("ab", [(b" ab", 0, 2)], EXACT, [2], [1], [0], id="no inventing"),
        pytest.param("ab", [(b".ab", 0, 2)], INVENTED, [2], [1], [0], id="only a space is invented"),
        pytest.param("東a", [(b"", 0, 1), (b"a", 1, 2)], EXACT, [3, 4], [1, 1], [0, 1], id="unknown"),
        pytest.param("a \n", [(b"a", 0, 1)], EXACT, [1], [1], [1], id="trailing white space stays outside"),
        pytest.param("☃a☃", [(b"a", 1, 2)], EXACT, [7], [1], [0], id="dropped characters"),
    ],
)
def test_hand_worked_cases(
    text: str,
    tokens: list[tuple[bytes, int, int]],
    rule: SpaceRule,
    ends: list[int],
    boundary: list[int],
    verbatim: list[int],
) -> None:
    place = located(text, tokens, rule)
    assert place.byte_ends.tolist() == ends
    assert place.boundary.tolist() == [bool(value) for value in boundary]
    assert place.verbatim.tolist() == [bool(value) for value in verbatim]


def test_no_tokens() -> None:
    assert [values.tolist() for values in located("abc", [])] == [[], [], []]


@st.composite
def segment(draw: st.DrawFn) -> tuple[str, list[bytes], bool]:
    """Some text, the bytes of its tokens, and whether they are the text's."""
    text = draw(st.text(alphabet="aé東🙂", min_size=1, max_size=4))
    data = text.encode()
    if draw(st.booleans()):
        return text, draw(st.lists(st.sampled_from([b"x", b"yy", b""]), min_size=1, max_size=3)), False
    cuts = sorted(draw(st.sets(st.integers(1, len(data) - 1)))) if len(data) > 1 else []
    return text, [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)], True


@given(st.lists(segment(), min_size=1, max_size=6))
def test_random_stretches_are_found(segments: list[tuple[str, list[bytes], bool]]) -> None:
    tokens, ends, boundary, verbatim = [], [], [], []
    characters = byte = 0
    for text, pieces, same in segments:
        data = text.encode()
        for end, piece in zip(accumulate(map(len, pieces)), pieces, strict=True):
            touched = (
                (len(data[: end - len(piece)].decode(errors="ignore")), _characters_reached(data, end))
                if same
                else (0, len(text))
            )
            tokens.append((piece, characters + touched[0], characters + touched[1]))
            ends.append(byte + end if same else byte)
        if not same:
            ends[-1] = byte + len(data)
        boundary += [same] * (len(pieces) - 1) + [True]
        verbatim += [same] * len(pieces)
        characters, byte = characters + len(text), byte + len(data)
    place = located("".join(text for text, _, _ in segments), tokens)
    assert place.byte_ends.tolist() == ends
    assert place.boundary.tolist() == boundary
    assert place.verbatim.tolist() == verbatim


def _characters_reached(data: bytes, end: int) -> int:
    whole = data[:end].decode(errors="ignore")
    return len(whole) + (len(whole.encode()) < end)


@given(
    before=st.text(alphabet="aé東 ", max_size=5),
    old=st.text(alphabet="BÉ", min_size=1, max_size=3),
    new=st.text(alphabet="cü", min_size=1, max_size=3),
    after=st.text(alphabet="aé東 ", max_size=5),
)
def test_tokens_around_a_difference_keep_their_places(before: str, old: str, new: str, after: str) -> None:
    """Byte tokens without any offsets: only those of the rewritten middle are in doubt. É and ü share a byte."""
    text, spelled = before + old + after, np.frombuffer((before + new + after).encode(), np.uint8)
    lengths = np.ones(len(spelled), dtype=np.int32)
    place = locate(text, spans_around_difference(text, spelled, lengths, EXACT), spelled, lengths, EXACT)
    head, tail, total = len(before.encode()), len(after.encode()), len(text.encode())
    middle = len(new.encode())
    assert place.verbatim.tolist() == [True] * head + [False] * middle + [True] * tail
    assert place.boundary.tolist() == [True] * head + [False] * (middle - 1) + [True] * (tail + 1)
    assert place.byte_ends[:head].tolist() == list(range(1, head + 1))
    assert place.byte_ends[head : head + middle].tolist() == [head] * (middle - 1) + [total - tail]
    assert place.byte_ends[head + middle :].tolist() == list(range(total - tail + 1, total + 1))


def test_characters_missing_from_the_tokens_fall_to_a_neighbour() -> None:
    spelled = np.frombuffer(b"ab", np.uint8)
    spans = spans_around_difference("aXb", spelled, np.array([1, 1]), EXACT)
    assert locate("aXb", spans, spelled, np.array([1, 1]), EXACT).byte_ends.tolist() == [2, 3]


def test_an_invented_space_is_no_difference() -> None:
    spelled, lengths = np.frombuffer(b" abcd", np.uint8), np.array([2, 1, 1, 1])
    place = locate("abXcd", spans_around_difference("abXcd", spelled, lengths, INVENTED), spelled, lengths, INVENTED)
    assert place.byte_ends.tolist() == [1, 3, 4, 5]
    assert place.verbatim.tolist() == [True, False, True, True]
