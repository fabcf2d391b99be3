"""Rows made of the rows of shared tokens with similar vectors: FOCUS (embedding_init.md §1.6)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alignment.initializers.rows import RowBlock
from alignment.initializers.similarity import Candidates, sparsemax
from alignment.initializers.token_vectors import TrainingOptions, spellings, train_token_vectors, training_bytes
from alignment.initializers.word_vectors import VectorFileError, read_vectors
from alignment.table_cache import cached_arrays
from alignment.tokenizer_facts import load_tokenizer
from stages.initialisation.corpus import encoded, required_texts, stop_if_asked, texts_digest
from stages.initialisation.methods.similarity import (
    NEAREST_SUPPORT,
    check_anchors,
    comparison_cost,
    located,
    similar_block,
)
from stages.initialisation.task import Estimate, RowTask, Transplant
from stages.initializers.similarity import FocusOptions
from stages.stage import StageError


class Focus:
    """Sparsemax of the cosines to all anchors, by vectors of the target's tokens."""

    def __init__(self, options: FocusOptions, task: RowTask) -> None:
        check_anchors(options.method, task)
        if options.vectors is None:
            required_texts(task.transplant, options.method)
        self._path = None if options.vectors is None else located(options.vectors)
        self._options = options
        self._task = task

    def estimate(self, new_rows: int) -> Estimate:
        comparison = comparison_cost(new_rows, len(self._task.anchor_source), self._options.dimensions)
        trained = 0 if self._path else training_bytes(self._task.alignment.target_size, self._options.dimensions)
        return Estimate(max(comparison.memory_bytes, trained), comparison.operations)

    def fit(self) -> None:
        """Train or read the vectors.

        Raises:
            StageError: the text is too short, the file cannot be used, or no anchor has a vector.
            StageInterrupted: the stage was asked to stop.
        """
        task = self._task
        vectors = self._trained_vectors() if self._path is None else _given_vectors(self._path, task.transplant)
        self._vectors = torch.from_numpy(vectors)
        self._candidates = Candidates.from_vectors(task.anchor_source, self._vectors[task.anchor_target])
        if not len(self._candidates):
            raise StageError(
                f"focus makes rows of those of shared tokens with a vector, and none of the {len(task.anchor_source)} "
                "shared tokens has one: give more text, lower min_count, or loosen 'anchors'"
            )

    def rows(self, target_ids: Tensor) -> RowBlock:
        return similar_block(self._vectors[target_ids], self._candidates, NEAREST_SUPPORT, sparsemax)

    def _trained_vectors(self) -> np.ndarray:
        transplant, options = self._task.transplant, self._options
        texts = required_texts(transplant, options.method)
        training = TrainingOptions(
            dimensions=options.dimensions,
            epochs=options.epochs,
            min_count=options.min_count,
            negative=options.negative,
            window=options.window,
            seed=transplant.seed,
        )

        def train() -> dict[str, np.ndarray]:
            documents = encoded(transplant.target, texts(), transplant)
            transplant.progress(f"focus: training token vectors on {sum(map(len, documents)):,} tokens of text")
            names = spellings(transplant.target)
            try:
                vectors = train_token_vectors(names, documents, training, should_stop=transplant.should_stop)
            except ValueError as error:
                raise StageError(f"focus: {error}: give more text or lower min_count") from None
            stop_if_asked(transplant)
            return {"vectors": vectors}

        facts = json.dumps([texts_digest(texts()), transplant.target.fingerprint, asdict(training)])
        fingerprint = hashlib.sha256(facts.encode()).hexdigest()
        return cached_arrays(transplant.cache, "focus-vectors-1", fingerprint, train)["vectors"]


def _given_vectors(path: Path, transplant: Transplant) -> np.ndarray:
    """Vectors of the target's tokens, [V, A], from a file that spells them as the vocabulary does."""
    try:
        given = read_vectors(path)
    except VectorFileError as error:
        raise StageError(str(error)) from None
    ids = load_tokenizer(transplant.tokenizer, trust_remote_code=False).get_vocab()
    known = [(ids[word], index) for index, word in enumerate(given.words) if word in ids]
    if not known:
        raise StageError(
            f"{path}: none of its {len(given.words)} words is a token of the target's vocabulary; tokens must be "
            f"spelled as there, such as {', '.join(map(repr, sorted(ids, key=ids.__getitem__)[-3:]))}"
        )
    vectors = np.zeros((transplant.target.vocab_size, given.vectors.shape[1]), dtype=np.float32)
    tokens, indices = map(list, zip(*known, strict=True))
    vectors[tokens] = given.vectors[indices]
    return vectors
