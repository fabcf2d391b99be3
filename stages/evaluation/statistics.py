"""From nats per document to the numbers of the table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

RESAMPLES = 1000
SMALLEST_GAP = 0.005
"""Bits per byte between initialised student and teacher below which a share of the gap means nothing."""


@dataclass(frozen=True)
class DocumentScore:
    """One model on the scored bytes of one document. Nats, tokens and chunks are sums."""

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
    """

    documents: int
    bytes: int
    bits_per_byte: float
    tokens_per_byte: float
    nats_per_chunk: float
    agreement_nats: float
    top1: float


class Difference(NamedTuple):
    """A difference in bits per byte with its 95 % interval; None where one document allows no interval."""

    value: float
    low: float | None
    high: float | None


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
        nats_per_chunk=nats / chunks,
        agreement_nats=math.fsum(score.absolute_difference for score in scores) / chunks,
        top1=sum(score.same_top1 for score in scores) / chunks,
    )


def paired_difference(model: Sequence[DocumentScore], reference: Sequence[DocumentScore], *, seed: int) -> Difference:
    """Bits per byte of ``model`` minus ``reference`` on the same documents, with a paired bootstrap interval.

    Documents are resampled, not windows or tokens, because text within one document is not independent.
    """
    bytes_ = np.array([score.bytes for score in model], dtype=np.float64)
    nats = np.array([left.nats - right.nats for left, right in zip(model, reference, strict=True)])
    value = float(nats.sum() / (math.log(2) * bytes_.sum()))
    if len(bytes_) < 2:
        return Difference(value, None, None)
    rng = np.random.default_rng(seed)
    resampled = np.empty(RESAMPLES)
    for sample in range(RESAMPLES):
        draw = rng.integers(len(bytes_), size=len(bytes_))
        resampled[sample] = nats[draw].sum() / (math.log(2) * bytes_[draw].sum())
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Difference(value, float(low), float(high))


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
