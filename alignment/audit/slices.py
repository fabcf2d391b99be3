"""From additive counts to the report's slices of text: sums over cells and quotients of sums."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from alignment.audit.counts import Statistic
from alignment.audit.text_classes import CLASSES, SCRIPTS
from alignment.audit.text_slice import TextSlice
from alignment.audit.vocabulary import share

WORDS = "words"
_WORD_CLASSES = (*SCRIPTS, "other letters")
DECIMALS = 4
"""Of the counts in a report."""


def text_slice(name: str, counts: np.ndarray, all_bytes: float) -> TextSlice:
    """One slice, given its float64 [S] ``Statistic`` sums and the bytes of the whole text."""
    # Tokens are sums of fractions: beyond these decimals there is only rounding error.
    of = {statistic: round(float(counts[statistic]), DECIMALS) for statistic in Statistic}
    return TextSlice(
        name=name,
        bytes=of[Statistic.BYTES],
        share=share(of[Statistic.BYTES], all_bytes),
        coverage=share(of[Statistic.COVERED_BYTES], of[Statistic.BYTES]),
        teacher_token_coverage=share(of[Statistic.TEACHER_COVERED], of[Statistic.TEACHER_TOKENS]),
        student_token_coverage=share(of[Statistic.STUDENT_COVERED], of[Statistic.STUDENT_TOKENS]),
        one_to_one=share(of[Statistic.ONE_TO_ONE_BYTES], of[Statistic.BYTES]),
        teacher_tokens=of[Statistic.TEACHER_TOKENS],
        student_tokens=of[Statistic.STUDENT_TOKENS],
        teacher_tokens_per_byte=share(of[Statistic.TEACHER_TOKENS], of[Statistic.BYTES]),
        student_tokens_per_byte=share(of[Statistic.STUDENT_TOKENS], of[Statistic.BYTES]),
        length_ratio=share(of[Statistic.TEACHER_TOKENS], of[Statistic.STUDENT_TOKENS]),
        teacher_common=share(of[Statistic.TEACHER_COMMON], of[Statistic.TEACHER_TOKENS]),
        student_common=share(of[Statistic.STUDENT_COMMON], of[Statistic.STUDENT_TOKENS]),
        chunks=of[Statistic.CHUNKS],
        one_to_one_chunks=share(of[Statistic.ONE_TO_ONE_CHUNKS], of[Statistic.CHUNKS]),
        fused=share(of[Statistic.FUSED], of[Statistic.CHUNKS]),
        inside_word=share(of[Statistic.INSIDE_WORD], of[Statistic.CHUNKS]),
        inside_character=share(of[Statistic.INSIDE_CHARACTER], of[Statistic.CHUNKS]),
    )


def overall_slice(counts: np.ndarray) -> TextSlice:
    """All text, given its counts [2, K, S]."""
    total = counts.sum(axis=(0, 1))
    return text_slice("all", total, float(total[Statistic.BYTES]))


def domain_slices(counts: Mapping[str, np.ndarray]) -> tuple[TextSlice, ...]:
    """Every domain, given its counts [2, K, S]."""
    sums = {domain: cells.sum(axis=(0, 1)) for domain, cells in counts.items()}
    all_bytes = float(sum(total[Statistic.BYTES] for total in sums.values()))
    return tuple(text_slice(domain, total, all_bytes) for domain, total in sums.items())


def class_slices(counts: np.ndarray) -> tuple[TextSlice, ...]:
    """The words as one slice and every other class, those that occur; counts [2, K, S]."""
    by_class = dict(zip(CLASSES, counts.sum(axis=0), strict=True))
    words = sum(by_class.pop(name) for name in _WORD_CLASSES)
    return _occurring({WORDS: words, **by_class})


def script_slices(counts: np.ndarray) -> tuple[TextSlice, ...]:
    """The words by script, largest first, those that occur; counts [2, K, S]. Shares are of all bytes."""
    by_class = dict(zip(CLASSES, counts.sum(axis=0), strict=True))
    slices = _occurring({name: by_class[name] for name in _WORD_CLASSES}, float(counts[..., Statistic.BYTES].sum()))
    return tuple(sorted(slices, key=lambda part: -part.bytes))


def prose_and_code(counts: np.ndarray) -> tuple[TextSlice, ...]:
    """Prose and code, those that occur; counts [2, K, S]."""
    return _occurring(dict(zip(("prose", "code"), counts.sum(axis=1), strict=True)))


def _occurring(sums: Mapping[str, np.ndarray], all_bytes: float | None = None) -> tuple[TextSlice, ...]:
    if all_bytes is None:
        all_bytes = float(sum(total[Statistic.BYTES] for total in sums.values()))
    return tuple(text_slice(name, total, all_bytes) for name, total in sums.items() if total[Statistic.BYTES])
