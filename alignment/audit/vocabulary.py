"""The two vocabularies: which tokens they have in common, and what a token is in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alignment.audit.measurements import (
    SuppressedKind,
    SuppressedToken,
    Suppression,
    TokenizerFacts,
    TokenUse,
    VocabularyFacts,
)
from alignment.audit.text_classes import CLASSES, LONG_NUMERALS, NUMERALS, SCRIPTS, WHITE_SPACE, classify
from alignment.byte_view import ByteView

LISTED_TOKENS = 20
NEWLINES_AND_SPACES = "newlines and spaces"
WHITE_SPACE_KINDS = (*WHITE_SPACE, "space", "runs of spaces", NEWLINES_AND_SPACES)
"""The kinds of tokens that are white space alone."""

_METHOD = (
    "An estimate from token frequencies in the text, without a model: the gradient of a token's logit is p · M, with M "
    "the share of the teacher's tokens that have an exact counterpart and p the token's share of the student's."
)

_GROUPS = {
    **dict.fromkeys((*NUMERALS, LONG_NUMERALS), "numerals"),
    **dict.fromkeys(WHITE_SPACE, "white space"),
    **dict.fromkeys(("punctuation", "symbols"), "punctuation and symbols"),
    **dict.fromkeys(("other letters", *SCRIPTS), "letters"),
    "other": "other",
}


@dataclass(frozen=True)
class SideCounts:
    """One tokenizer and how often its tokens occur in the text.

    Attributes:
        view: the tokenizer, of V ids.
        common: bool [V], ids of text with an exact counterpart on the other side: a token of the same bytes.
        counts: float64 [V], weighted occurrences.
    """

    view: ByteView
    common: np.ndarray
    counts: np.ndarray

    @classmethod
    def empty(cls, view: ByteView, other: ByteView) -> SideCounts:
        """No occurrence yet."""
        theirs = set(_spelled(other))
        common = np.array([bool(token) and token in theirs for token in _all_bytes(view)], dtype=bool)
        return cls(view, common, np.zeros(view.vocab_size))

    @property
    def common_share(self) -> float | None:
        """Share of the tokens in the text that have an exact counterpart."""
        return share(self.counts @ self.common, self.counts.sum())


def share(part: float, whole: float) -> float | None:
    """``part / whole``, None if there is no whole."""
    return float(part / whole) if whole else None


def tokenizer_facts(view: ByteView) -> TokenizerFacts:
    """What the report says about one tokenizer."""
    return TokenizerFacts(
        name=view.name,
        fingerprint=view.fingerprint,
        vocab_size=view.vocab_size,
        digit_scheme=view.digit_scheme,
        exact=view.exact,
        inexact_reasons=view.inexact_reasons,
        longest_token=int(view.byte_lengths.max(initial=0)),
    )


def vocabulary_facts(teacher: SideCounts, student: SideCounts) -> VocabularyFacts:
    """Compare two vocabularies, by entry and by occurrence."""
    teacher_bytes, student_bytes = _all_bytes(teacher.view), _all_bytes(student.view)
    teacher_keys, student_keys = set(_spelled(teacher.view)), set(_spelled(student.view))
    common = len(teacher_keys & student_keys)
    same_specials = teacher.view.special_tokens == student.view.special_tokens
    return VocabularyFacts(
        identical=teacher_bytes == student_bytes and same_specials,
        common=common,
        jaccard=share(common, len(teacher_keys | student_keys)),
        share_of_teacher=share(common, len(teacher_keys)),
        share_of_student=share(common, len(student_keys)),
        teacher_by_text=teacher.common_share,
        student_by_text=student.common_share,
        teacher_uncommon=_uncommon(teacher),
        student_uncommon=_uncommon(student),
    )


def suppression(teacher: SideCounts, student: SideCounts) -> Suppression:
    """Estimate p_j * M_C for every student token without counterpart that occurs."""
    mass, total = teacher.common_share, student.counts.sum()
    if mass is None or not total:
        return Suppression(_METHOD, mass, None, None, (), ())
    frequencies = student.counts / total
    occurring = np.flatnonzero(student.counts)
    uncommon = ~student.common[occurring]
    kinds = np.array(_kinds_of(student.view, occurring.tolist()), dtype=object)
    by_kind = [
        _suppressed_kind(kind, frequencies[occurring[kinds == kind]], uncommon[kinds == kind], mass)
        for kind in dict.fromkeys(kinds[uncommon].tolist())
    ]
    listed = _most_frequent(occurring[uncommon], frequencies)
    total_frequency = float(frequencies[occurring[uncommon]].sum())
    return Suppression(
        method=_METHOD,
        common_teacher_mass=mass,
        frequency=total_frequency,
        gradient=total_frequency * mass,
        kinds=tuple(sorted(by_kind, key=lambda entry: (-entry.gradient, entry.kind))),
        tokens=tuple(
            SuppressedToken(token, text, kind, float(frequencies[token]), float(frequencies[token]) * mass)
            for token, text, kind in _in_words(student.view, listed)
        ),
    )


def _suppressed_kind(kind: str, frequencies: np.ndarray, uncommon: np.ndarray, mass: float) -> SuppressedKind:
    """One kind of token, given float64 and bool vectors over its tokens that occur."""
    frequency = float(frequencies[uncommon].sum())
    return SuppressedKind(kind, int(uncommon.sum()), frequency, frequency * mass, frequency / float(frequencies.sum()))


def token_kinds(tokens: Sequence[bytes]) -> list[str]:
    """What each token is, in words: ``numerals of 3 digits``, ``spaces``, ``letters (latin)``, ``part of a character``.

    A space before other characters is left out of account.
    """
    texts = [_decoded(token) for token in tokens]
    classified = classify([text or "" for text in texts])
    return [
        _kind(text, np.unique(classified.classes[start:end])) if text is not None else "part of a character"
        for text, start, end in zip(texts, classified.starts[:-1].tolist(), classified.starts[1:].tolist(), strict=True)
    ]


def printable(view: ByteView, token: int) -> str:
    """A token in print: undecodable bytes escaped, special tokens by their string."""
    return view.special_tokens.get(token) or (view.token_bytes(token) or b"").decode(errors="backslashreplace")


def _kind(text: str, classes: np.ndarray) -> str:
    """A token in words, given the different classes of its bytes."""
    groups = {_GROUPS[CLASSES[index]] for index in classes.tolist()}
    if len(groups) != 1:
        return "mixed" if groups else "no text"
    group = groups.pop()
    name = CLASSES[classes[0]]
    if group == "white space":
        return _white_space(text, name if len(classes) == 1 else "other white space")
    if len(classes) > 1 or group == "punctuation and symbols":
        return group
    return f"letters ({name})" if name in SCRIPTS else name


def _white_space(text: str, name: str) -> str:
    if not text.strip(" "):
        return "space" if text == " " else "runs of spaces"
    return NEWLINES_AND_SPACES if "\n" in text and text.strip("\n") else name


def _decoded(token: bytes) -> str | None:
    try:
        return token.decode()
    except UnicodeDecodeError:
        return None


def _all_bytes(view: ByteView) -> list[bytes | None]:
    return [view.token_bytes(token) for token in range(view.vocab_size)]


def _spelled(view: ByteView) -> list[bytes]:
    return [token for token in _all_bytes(view) if token]


def _most_frequent(tokens: np.ndarray, frequencies: np.ndarray) -> list[int]:
    order = np.argsort(-frequencies[tokens], kind="stable")[:LISTED_TOKENS]
    return tokens[order].tolist()


def _uncommon(side: SideCounts) -> tuple[TokenUse, ...]:
    listed = _most_frequent(np.flatnonzero(~side.common & (side.counts > 0)), side.counts)
    total = side.counts.sum()
    return tuple(
        TokenUse(token, text, kind, float(side.counts[token]), float(side.counts[token] / total))
        for token, text, kind in _in_words(side.view, listed)
    )


def _in_words(view: ByteView, tokens: list[int]) -> list[tuple[int, str, str]]:
    """Id, text and kind of each token."""
    texts = [printable(view, token) for token in tokens]
    return list(zip(tokens, texts, _kinds_of(view, tokens), strict=True))


def _kinds_of(view: ByteView, tokens: list[int]) -> list[str]:
    return token_kinds([view.token_bytes(token) or b"" for token in tokens])
