"""Rows made with the help of a text encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alignment.byte_view import ByteView
from alignment.initializers.pieces import piece_rows
from alignment.initializers.rows import RowBlock, SparseRows
from alignment.initializers.tokenadapt import (
    global_weights,
    local_weights,
    mixed_rows,
    nearest,
    piece_similarities,
)
from alignment.table_cache import cached_arrays
from stages.digests import content_digest
from stages.initialisation.corpus import stop_if_asked
from stages.initialisation.task import Estimate, RowTask
from stages.initialisation.text_encoder import TextEncoder, embedding_size
from stages.initializers.tokenadapt import ENCODER_FILES, TokenAdaptOptions
from stages.references import ReferenceProblem, parse
from stages.stage import stage_error

_REPORTS = 10


class TokenAdapt:
    """The pieces' rows weighted by similarity and length, mixed with the rows of the nearest old tokens."""

    def __init__(self, options: TokenAdaptOptions, task: RowTask) -> None:
        self._options = options
        self._task = task
        try:
            self._encoder = parse(options.encoder, Path.cwd()).locate(ENCODER_FILES)
        except ReferenceProblem as error:
            raise stage_error(error) from None
        self._width = embedding_size(self._encoder)
        transplant = task.transplant
        self._source_texts = [token_text(transplant.source, token) for token in range(task.alignment.source_size)]
        self._target_texts = [token_text(transplant.target, token) for token in range(task.alignment.target_size)]
        self._texts = sorted({text for text in (*self._source_texts, *self._target_texts) if text is not None})

    def estimate(self, new_rows: int) -> Estimate:
        memory = 2 * 4 * len(self._texts) * self._width
        return Estimate(memory, 2.0 * new_rows * len(self._source_texts) * self._width)

    def fit(self) -> None:
        """Encode the text of every token.

        Raises:
            StageError: the encoder cannot be loaded.
            StageInterrupted: the stage was asked to stop.
        """
        listing = hashlib.sha256("\0".join(self._texts).encode()).hexdigest()
        facts = f"{content_digest(self._encoder, patterns=ENCODER_FILES)} {listing}"
        fingerprint = hashlib.sha256(facts.encode()).hexdigest()
        arrays = cached_arrays(self._task.transplant.cache, "text-embeddings-1", fingerprint, self._encode)
        # One more embedding, zero, for tokens that have no text.
        embeddings = torch.nn.functional.pad(torch.from_numpy(arrays["embeddings"]), (0, 0, 0, 1))
        places = {text: place for place, text in enumerate(self._texts)}
        self._source = embeddings[_places(self._source_texts, places)]
        self._target_places = _places(self._target_texts, places)
        self._embeddings = embeddings
        usable = self._source.any(dim=1) & self._task.rows[: len(self._source)].any(dim=1)
        self._candidates = usable.nonzero().flatten()
        self._keys = self._source[self._candidates]

    def rows(self, target_ids: Tensor) -> RowBlock:
        embeddings = self._embeddings[self._target_places[target_ids]]
        has_text = embeddings.any(dim=1)
        rows = mixed_rows(
            self._pieces(target_ids, embeddings), self._neighbours(embeddings, has_text), self._options.global_weight
        )
        return RowBlock(rows, has_text & (rows.weights.sum(dim=1) > 0))

    def _pieces(self, target_ids: Tensor, embeddings: Tensor) -> SparseRows:
        indices = piece_rows(self._task.alignment, target_ids).indices
        lengths = torch.from_numpy(self._task.transplant.source.byte_lengths)[indices.clamp(min=0)]
        similarities = piece_similarities(embeddings, indices, self._source)
        return SparseRows(indices, local_weights(similarities, lengths, indices >= 0, self._options.temperature))

    def _neighbours(self, embeddings: Tensor, has_text: Tensor) -> SparseRows:
        found, similarities = nearest(embeddings, self._keys, self._options.neighbours)
        used = has_text[:, None].expand_as(found)
        weights = global_weights(similarities, used, self._options.temperature, self._options.threshold)
        return SparseRows(self._candidates[found], weights)

    def _encode(self) -> dict[str, np.ndarray]:
        transplant, total = self._task.transplant, len(self._texts)
        transplant.progress(f"tokenadapt: encoding {total:,} texts with {self._encoder.name}")
        reported = 0

        def after_batch(done: int) -> None:
            nonlocal reported
            stop_if_asked(transplant)
            if done * _REPORTS // total > reported:
                reported = done * _REPORTS // total
                transplant.progress(f"tokenadapt: encoded {done:,} of {total:,} texts")

        return {"embeddings": TextEncoder(self._encoder).encode(self._texts, self._options.batch_size, after_batch)}


def token_text(view: ByteView, token: int) -> str | None:
    """The text of a token; None for special tokens, parts of characters and mere white space."""
    try:
        text = (view.token_bytes(token) or b"").decode()
    except UnicodeDecodeError:
        return None
    return text if text.strip() else None


def _places(texts: Sequence[str | None], places: dict[str, int]) -> Tensor:
    return torch.tensor([len(places) if text is None else places[text] for text in texts])
