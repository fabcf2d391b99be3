"""From nats per document to the numbers of the table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr, stdtrit

from stages.evaluation.sections import FEWEST, Measure

RESAMPLES = 1000
BOOTSTRAP_SEED = 0
CONFIDENCE = 0.95
Sides = Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]
"""Row name -> column name -> numerators and denominators of a ratio, one each for every document or item."""
DRAWS_BLOCK = 1 << 20
"""Most draws held at once."""
SMALLEST_GAP = 0.005
"""Bits per byte between initialised student and teacher below which a share of the gap means nothing."""


@dataclass(frozen=True)
class DocumentScore:
    """One model on the scored bytes of one document. Nats, tokens and chunks are sums; there are no chunks where the
    teacher was not scored."""

    bytes: int
    nats: float
    tokens: int
    chunks: int
    absolute_difference: float
    same_top1: int


@dataclass(frozen=True)
class DomainResult:
    """One model on one domain: ratios of sums over its documents, never means of per-document ratios.

    Attributes:
        bits_per_byte: Σ nats / (ln 2 · Σ bytes).
        tokens_per_byte: Σ tokens / Σ bytes.
        nats_per_chunk: mean negative log-probability of a chunk.
        agreement_nats: mean |Δ log p| of a chunk between teacher and model.
        top1: share of chunks at whose start the greedy tokens of teacher and model agree.

    What needs the teacher is None where it was not scored.
    """

    documents: int
    bytes: int
    bits_per_byte: float
    tokens_per_byte: float
    nats_per_chunk: float | None
    agreement_nats: float | None
    top1: float | None


def summarise(scores: Sequence[DocumentScore]) -> DomainResult:
    """Pool the documents of one domain, at least one of which has scored bytes."""
    total_bytes = sum(score.bytes for score in scores)
    chunks = sum(score.chunks for score in scores)
    nats = math.fsum(score.nats for score in scores)
    return DomainResult(
        documents=len(scores),
        bytes=total_bytes,
        bits_per_byte=nats / (math.log(2) * total_bytes),
        tokens_per_byte=sum(score.tokens for score in scores) / total_bytes,
        nats_per_chunk=nats / chunks if chunks else None,
        agreement_nats=math.fsum(score.absolute_difference for score in scores) / chunks if chunks else None,
        top1=sum(score.same_top1 for score in scores) / chunks if chunks else None,
    )


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Measure:
    """Σ numerators / Σ denominators over documents or items, with a 95 % bootstrap interval.

    What is resampled is the document or item, because what lies within one is not independent. Fewer than ``FEWEST``
    have no interval, which ``too_few`` says; nor has a measure of which a resample could have nothing in its
    denominator.
    """
    return _resampled([(numerators, denominators)], lambda own: own)


def ratio_difference(
    numerators: Sequence[float],
    denominators: Sequence[float],
    reference_numerators: Sequence[float],
    reference_denominators: Sequence[float],
) -> Measure:
    """The ratio of a model minus that of a reference on the same documents or items, with a 95 % paired bootstrap
    interval: a resample takes the same documents of both."""
    return _resampled(
        [(numerators, denominators), (reference_numerators, reference_denominators)],
        lambda own, reference: own - reference,
    )


def compare(sides: Sides, references: Mapping[str, str]) -> dict[str, dict[str, dict[str, Measure]]]:
    """``Table.differences``: every row of ``sides`` against the ``references`` (role -> row) that are among them.

    Every pair is there once: a reference is not compared with those that come after it, such as the teacher with the
    initial model, whose own line says the same.
    """
    known = {role: row for role, row in references.items() if row in sides}
    found = {}
    for place, (role, reference) in enumerate(known.items()):
        before = list(known.values())[: place + 1]
        found[role] = {
            row: {
                column: ratio_difference(*side, *sides[reference][column])
                for column, side in columns.items()
                if column in sides[reference]
            }
            for row, columns in sides.items()
            if row not in before
        }
    return {role: rows for role, rows in found.items() if rows}


def _resampled(sides: Sequence[tuple[Sequence[float], Sequence[float]]], combine: Callable[..., Any]) -> Measure:
    """``combine`` of the sides' ratios of sums, and its interval over resamples that are the same for all sides."""
    arrays = [np.array(values, dtype=np.float64) for side in sides for values in side]
    count = len(arrays[0])
    if any(len(array) != count for array in arrays):
        raise ValueError(f"paired sides have {[len(array) for array in arrays]} entries")
    value = float(combine(*(math.fsum(left) / math.fsum(right) for left, right in sides)))
    if count < FEWEST:
        return Measure(value, too_few=count)
    if any((array == 0).any() for array in arrays[1::2]):
        return Measure(value)
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    sums = np.empty((len(arrays), RESAMPLES))
    block = max(1, DRAWS_BLOCK // count)
    for start in range(0, RESAMPLES, block):
        draws = rng.integers(count, size=(min(block, RESAMPLES - start), count))
        for index, array in enumerate(arrays):
            sums[index, start : start + block] = array[draws].sum(axis=1)
    tail = _tail(count)
    low, high = np.quantile(combine(*(sums[::2] / sums[1::2])), [tail, 1 - tail])
    return Measure(value, float(low), float(high))


def _tail(count: int) -> float:
    """Share of the resamples that lies beyond each end of a 95 % interval: 0.0086 for 10 documents, 0.025 for many.

    The spread of resamples is too small by √((n - 1) / n), and its shape that of a known instead of an estimated
    variance; this quantile makes up for both: the expanded percentile interval of Hesterberg (2015), "What Teachers
    Should Know About the Bootstrap".
    """
    return float(ndtr(math.sqrt(count / (count - 1)) * stdtrit(count - 1, (1 - CONFIDENCE) / 2)))


def gap_closed(
    model: Mapping[str, DomainResult], initial: Mapping[str, DomainResult], teacher: Mapping[str, DomainResult]
) -> dict[str, float]:
    """Share of the distance from ``initial`` to ``teacher`` in bits per byte that ``model`` went, per domain.

    Domains where that distance is below ``SMALLEST_GAP`` are left out.
    """
    shares = {}
    for domain, result in model.items():
        gap = initial[domain].bits_per_byte - teacher[domain].bits_per_byte
        if gap >= SMALLEST_GAP:
            shares[domain] = (initial[domain].bits_per_byte - result.bits_per_byte) / gap
    return shares
