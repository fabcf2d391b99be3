"""Rows made of the rows of source tokens whose words mean the same: WECHSEL and OFA (embedding_init.md §1.5, §1.9)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alignment.initializers.factorisation import leading_directions
from alignment.initializers.rows import RowBlock
from alignment.initializers.similarity import Candidates, TopK, softmax
from alignment.initializers.word_vectors import (
    VectorFileError,
    WordVectors,
    aligned,
    read_vectors,
    read_word_pairs,
    token_vectors,
    zipf_importance,
)
from alignment.table_cache import cached_arrays
from stages.digests import content_digest
from stages.initialisation.corpus import stop_if_asked
from stages.initialisation.methods.similarity import comparison_cost, located, similar_block
from stages.initialisation.task import Estimate, RowTask, Transplant
from stages.initializers.similarity import OfaOptions, WechselOptions
from stages.stage import StageError

_TYPICAL_DIMENSIONS = 300  # of published word vectors, for an estimate before they are read


class Wechsel:
    """Softmax of the cosines to the k most similar source tokens, by word vectors of the two languages.

    A token's vector is the mean of those of the words that contain it, weighted by 1 / rank for want of their
    frequencies, which the file format does not hold.
    """

    def __init__(self, options: WechselOptions, task: RowTask) -> None:
        self._source, self._target = located(options.source_vectors), located(options.target_vectors)
        self._dictionary = None if options.dictionary is None else located(options.dictionary)
        self._options = options
        self._task = task

    def estimate(self, new_rows: int) -> Estimate:
        return comparison_cost(new_rows, len(self._task.rows), _TYPICAL_DIMENSIONS)

    def fit(self) -> None:
        """Read, align and average the vectors.

        Raises:
            StageError: a file cannot be used, or no source token has a vector.
            StageInterrupted: the stage was asked to stop.
        """
        files = (self._source, self._target, self._dictionary)
        transplant = self._task.transplant
        source, target = _vectors_of_both(transplant, "wechsel", files, self._options.max_words, self._word_vectors)
        self._vectors = target
        self._candidates = _source_candidates(source, self._task)

    def rows(self, target_ids: Tensor) -> RowBlock:
        options = self._options
        return similar_block(self._vectors[target_ids], self._candidates, TopK(options.k), softmax(options.temperature))

    def _word_vectors(self) -> dict[str, np.ndarray]:
        transplant = self._task.transplant
        source, target = (_read(path, self._options.max_words, transplant) for path in (self._source, self._target))
        if self._dictionary is not None:
            source = aligned(source, target, read_word_pairs(self._dictionary))
        elif source.vectors.shape[1] != target.vectors.shape[1]:
            raise VectorFileError(
                f"{self._source} has vectors of {source.vectors.shape[1]} dimensions, {self._target} of "
                f"{target.vectors.shape[1]}: they are in no common space"
            )
        return {
            name: token_vectors(
                view, words, zipf_importance(len(words.words)), between=lambda: stop_if_asked(transplant)
            )
            for name, view, words in (("source", transplant.source, source), ("target", transplant.target, target))
        }


class Ofa:
    """Softmax of the cosines to the k most similar source tokens, by multilingual word vectors.

    A token's vector is the plain mean of those of the words that contain it.
    """

    def __init__(self, options: OfaOptions, task: RowTask) -> None:
        width = task.rows.shape[1]
        if options.factorise is not None and options.factorise > width:
            raise StageError(
                f"ofa cannot factorise {task.name}, which has {width} columns, at rank {options.factorise}: give a "
                f"'factorise' of at most {width}, or none"
            )
        self._path = located(options.vectors)
        self._options = options
        self._task = task

    def estimate(self, new_rows: int) -> Estimate:
        return comparison_cost(new_rows, len(self._task.rows), _TYPICAL_DIMENSIONS)

    def fit(self) -> None:
        """Read and average the vectors; factorise the old matrix if that is wanted.

        Raises:
            StageError: the file cannot be used, or no source token has a vector.
            StageInterrupted: the stage was asked to stop.
        """
        task, options = self._task, self._options
        source, target = _vectors_of_both(task.transplant, "ofa", (self._path,), options.max_words, self._word_vectors)
        self._vectors = target
        self._candidates = _source_candidates(source, task)
        self._directions = None if options.factorise is None else leading_directions(task.rows, options.factorise)

    def rows(self, target_ids: Tensor) -> RowBlock:
        options = self._options
        queries = self._vectors[target_ids]
        block = similar_block(queries, self._candidates, TopK(options.k), softmax(options.temperature))
        if self._directions is None:
            return block
        coordinates = block.values(self._task.rows).to(self._directions.dtype) @ self._directions.T
        return RowBlock((coordinates @ self._directions).float(), block.made, block.diagnostics)

    def _word_vectors(self) -> dict[str, np.ndarray]:
        transplant = self._task.transplant
        words = _read(self._path, self._options.max_words, transplant)
        return {
            name: token_vectors(view, words, np.ones(len(words.words)), between=lambda: stop_if_asked(transplant))
            for name, view in (("source", transplant.source), ("target", transplant.target))
        }


def _read(path: Path, limit: int | None, transplant: Transplant) -> WordVectors:
    transplant.progress(f"reading word vectors from {path.name}")
    return read_vectors(path, limit=limit, between=lambda: stop_if_asked(transplant))


def _vectors_of_both(
    transplant: Transplant,
    method: str,
    files: tuple[Path | None, ...],
    max_words: int | None,
    build: Callable[[], dict[str, np.ndarray]],
) -> tuple[Tensor, Tensor]:
    """Vectors of the source's and of the target's tokens, [V, A] each, kept for other runs on the same files."""
    memo = None if transplant.cache is None else transplant.cache / "digests.json"
    digests = [None if path is None else content_digest(path, memo) for path in files]
    facts = json.dumps([digests, max_words, transplant.source.fingerprint, transplant.target.fingerprint])
    fingerprint = hashlib.sha256(facts.encode()).hexdigest()
    try:
        arrays = cached_arrays(transplant.cache, f"{method}-vectors-1", fingerprint, build)
    except VectorFileError as error:
        raise StageError(f"{method}: {error}") from None
    return torch.from_numpy(arrays["source"]), torch.from_numpy(arrays["target"])


def _source_candidates(vectors: Tensor, task: RowTask) -> Candidates:
    ids = torch.arange(min(len(vectors), len(task.rows)))
    candidates = Candidates.from_vectors(ids, vectors[ids])
    if not len(candidates):
        raise StageError(
            f"no source token occurs in the words of the vectors, so {task.name} has nothing to make rows of: are the "
            "words those of the student's language?"
        )
    return candidates
