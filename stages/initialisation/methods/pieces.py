"""Rows made of the rows of the old tokens that spell the new one, or that it meets in text."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

from torch import Tensor

from alignment.byte_view import InexactEncoding
from alignment.initializers.overlaps import CoOccurrences, count_co_occurrences
from alignment.initializers.pieces import (
    End,
    Weigh,
    by_length,
    character_counts,
    equal,
    geometric,
    linear,
    piece_rows,
)
from alignment.initializers.rows import RowBlock, SparseRows
from alignment.table_cache import cached_arrays
from alignment.token_codecs import UnsupportedTokenizer
from alignment.vocab_tensors import Role
from stages.initialisation.corpus import required_texts, stop_if_asked, texts_digest
from stages.initialisation.task import Estimate, RowTask
from stages.initializers.pieces import DECAY, MAX_SOURCES, RATE, PieceMeanOptions, PieceWeightedOptions
from stages.stage import StageError


class PieceMean:
    """The mean of the pieces' rows."""

    def __init__(self, options: PieceMeanOptions, task: RowTask) -> None:
        self._task = task

    def estimate(self, new_rows: int) -> Estimate:
        return _piece_cost(self._task)

    def fit(self) -> None:
        pass

    def rows(self, target_ids: Tensor) -> RowBlock:
        return _block(piece_rows(self._task.alignment, target_ids, equal))


class PieceWeighted:
    """A weighted mean of the rows of a token's pieces, or of the old tokens that it overlaps in text."""

    def __init__(self, options: PieceWeightedOptions, task: RowTask) -> None:
        self._options = options
        self._task = task
        if options.weights == "frequency":
            self._texts = required_texts(task.transplant, "piece_weighted with weights: frequency")

    def estimate(self, new_rows: int) -> Estimate:
        if self._options.weights != "frequency":
            return _piece_cost(self._task)
        sources = new_rows * (self._options.max_sources or MAX_SOURCES)
        return Estimate(12 * sources, 2.0 * sources * self._task.rows.shape[1])

    def fit(self) -> None:
        """Count in the training text, if that is what the weights are.

        Raises:
            StageError: a tokenizer cannot encode the text.
            StageInterrupted: the stage was asked to stop.
        """
        if self._options.weights == "frequency":
            self._co_occurrences = self._count()
        else:
            self._weigh = _weigh(self._options, self._task)

    def rows(self, target_ids: Tensor) -> RowBlock:
        if self._options.weights == "frequency":
            return _block(self._co_occurrences.rows(target_ids, self._options.max_sources or MAX_SOURCES))
        return _block(piece_rows(self._task.alignment, target_ids, self._weigh))

    def _count(self) -> CoOccurrences:
        transplant, source_rows = self._task.transplant, self._task.alignment.source_size

        def texts() -> Iterator[str]:
            for text in self._texts():
                stop_if_asked(transplant)
                yield text

        def build() -> CoOccurrences:
            transplant.progress("piece_weighted: counting which tokens overlap in the training text")
            try:
                return count_co_occurrences(transplant.source, transplant.target, texts(), source_rows)
            except (InexactEncoding, UnsupportedTokenizer) as error:
                raise StageError(f"piece_weighted: {error}") from None

        facts = f"{transplant.source.fingerprint} {transplant.target.fingerprint} {source_rows} {texts_digest(texts())}"
        fingerprint = hashlib.sha256(facts.encode()).hexdigest()
        return CoOccurrences(**cached_arrays(transplant.cache, "overlaps-1", fingerprint, lambda: build().arrays()))


def _weigh(options: PieceWeightedOptions, task: RowTask) -> Weigh:
    end = _heavy_end(options.emphasis or options.default_emphasis.get(options.weights, "first"), task.role)
    match options.weights:
        case "char_length":
            return by_length(character_counts(task.transplant.source))
        case "geometric":
            return geometric(DECAY if options.decay is None else options.decay, end)
        case "exponential":
            return geometric(math.exp(-(options.rate or RATE)), end)
        case "linear":
            return linear(end)
        case "first" | "last":
            return geometric(0.0, options.weights)
    raise AssertionError(f"weights: {options.weights} has no function")


def _heavy_end(emphasis: str, role: Role) -> End:
    """``role``: having read a token the model went on from its last piece, and to say it it began with the first."""
    if emphasis == "role":
        return "first" if role in ("output", "bias") else "last"
    return "first" if emphasis == "first" else "last"


def _piece_cost(task: RowTask) -> Estimate:
    pieces = int(task.alignment.piece_counts.sum())
    return Estimate(12 * pieces, 2.0 * pieces * task.rows.shape[1])


def _block(rows: SparseRows) -> RowBlock:
    return RowBlock(rows, (rows.indices >= 0).any(dim=1))
