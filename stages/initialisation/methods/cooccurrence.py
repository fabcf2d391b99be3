"""Rows copied from old tokens that occur among the same neighbours."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from alignment.byte_view import ByteView
from alignment.initializers.cooccurrence import TokenVectors, most_alike, token_vectors
from alignment.initializers.rows import RowBlock, SparseRows
from alignment.table_cache import cached_arrays
from stages.initialisation.corpus import encoded, required_texts, stop_if_asked, texts_digest
from stages.initialisation.task import Estimate, RowTask
from stages.initializers.cooccurrence import TokAlignOptions
from stages.stage import StageError


class TokAlign:
    """The row of the old token that relates to the shared tokens most like the new one."""

    def __init__(self, options: TokAlignOptions, task: RowTask) -> None:
        self._options = options
        self._task = task
        self._texts = required_texts(task.transplant, options.method)

    def estimate(self, new_rows: int) -> Estimate:
        vocabularies = self._task.alignment.source_size + self._task.alignment.target_size
        vectors = 4 * vocabularies * (self._options.dimensions + self._options.pivots)
        products = 2.0 * self._task.alignment.source_size * self._task.alignment.target_size * self._options.pivots
        decompositions = 2.0 * vocabularies * (2 * self._options.dimensions) ** 2
        return Estimate(vectors, products + decompositions)

    def fit(self) -> None:
        """Match the tokens.

        Raises:
            StageError: the text has too few of the tokens that both vocabularies share.
            StageInterrupted: the stage was asked to stop.
        """
        transplant, options = self._task.transplant, self._options
        digest = texts_digest(self._texts())
        source = self._vectors(transplant.source, np.arange(transplant.source.vocab_size), digest)
        target = self._vectors(transplant.target, transplant.row_keys, digest)
        anchors = (self._task.anchor_source.numpy(), self._task.anchor_target.numpy())
        found, similarity = most_alike(source, target, anchors, pivots=options.pivots)
        if not len(found):
            raise StageError(
                f"tokalign: the training text has none of the {len(anchors[0])} shared tokens at least "
                f"{options.min_count} times: give more text or lower min_count"
            )
        self._found = torch.full((transplant.target.vocab_size,), -1)
        self._found[target.ids] = torch.from_numpy(found)
        self._similarity = torch.full((transplant.target.vocab_size,), torch.nan)
        self._similarity[target.ids] = torch.from_numpy(similarity)

    def rows(self, target_ids: Tensor) -> RowBlock:
        found = self._found[target_ids]
        weights = torch.ones(len(target_ids), 1)
        return RowBlock(SparseRows(found[:, None], weights), found >= 0, {"similarity": self._similarity[target_ids]})

    def _vectors(self, view: ByteView, keys: np.ndarray, digest: str) -> TokenVectors:
        transplant, options = self._task.transplant, self._options

        def build() -> dict[str, np.ndarray]:
            transplant.progress(f"tokalign: co-occurrence vectors of the {view.name} vocabulary")
            made = token_vectors(
                encoded(view, self._texts(), transplant),
                keys,
                dimensions=options.dimensions,
                window=options.window,
                min_count=options.min_count,
                between=lambda: stop_if_asked(transplant),
            )
            return {"ids": made.ids, "counts": made.counts, "vectors": made.vectors}

        facts = f"{view.fingerprint} {digest} {options.dimensions} {options.window} {options.min_count}"
        fingerprint = hashlib.sha256(facts.encode() + keys.tobytes()).hexdigest()
        return TokenVectors(**cached_arrays(transplant.cache, "cooccurrence-1", fingerprint, build))
