"""What a training step reads: a tokenizer drawn at random, its tokens as pieces, and text in its tokens.

Legend: M tokens of the drawn vocabulary, L pieces, B windows, T tokens of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from alignment.byte_view import ByteView
from alignment.initializers.surface_forms import surface_forms
from alignment.segmentation import ByteSegmenter
from stages.hypernetwork.config import HypernetConfig
from stages.hypernetwork.sampling import sample_vocabulary
from stages.stage import StageError
from stages.training.data.batch import SideBatch, collate, to_device
from stages.training.data.windows import Document, plain_windows
from stages.training.random import generator

_CHARACTERS_PER_TOKEN = 8  # generous, so that a stretch of text fills its window
TRAINING, HELD_OUT = 0, 1
"""Streams of random numbers: tokenizers drawn from one never meet those of the other."""


@dataclass(frozen=True)
class Sample:
    """One drawn tokenizer and text in it.

    Attributes:
        pieces: int64 [M, L], the student's ids that spell each token (``surface_forms``).
        priors: float32 [M], log-probabilities of the tokens; None where the network shall go without.
        batch: windows [B, T]. Ids from M on are the special tokens that the student puts before a text, in order.
    """

    pieces: Tensor
    priors: Tensor | None
    batch: SideBatch

    def to(self, device: torch.device) -> Sample:
        """The same on ``device``."""
        priors = None if self.priors is None else self.priors.to(device)
        return replace(self, pieces=self.pieces.to(device), priors=priors, batch=to_device(self.batch, device))


class Sampler:
    """Draws samples; each is a function of the seed, its stream and its number.

    Args:
        documents: training texts.
        view, segmenter: the student's tokenizer.

    Raises:
        StageError: a document is a conversation, or there is no text.
    """

    def __init__(
        self, documents: Sequence[Document], view: ByteView, segmenter: ByteSegmenter, config: HypernetConfig
    ) -> None:
        chats = [document.id for document in documents if document.messages is not None]
        if chats:
            raise StageError(f"document {chats[0]} is a conversation; hypernet takes plain text")
        read = [document for document in documents if document.text and document.weight > 0]
        if not read:
            raise StageError("data.train holds no text to draw tokenizers from")
        self._texts = [document.text for document in read]
        weights = np.array([document.weight for document in read])
        self._shares = weights / weights.sum()
        self._prefix = len(view.prefix_ids)
        self._segmenter = segmenter
        self._config = config

    def draw(self, stream: int, number: int) -> Sample:
        """Sample ``number`` of ``stream``.

        Raises:
            StageError: none of the texts is long enough to predict a token.
        """
        config = self._config
        draw = generator(config.seed, stream, number)
        texts = self._stretches(draw)
        vocabulary = sample_vocabulary(texts, config.vocabulary_size, draw)
        size = len(vocabulary.tokens)
        prefix = range(size, size + self._prefix)
        encodings = vocabulary.tokenizer().encode_batch(texts[: config.batch_windows])
        no_lengths = np.zeros(size + self._prefix, dtype=np.int64)
        windows = [
            window
            for encoding in encodings
            for window in plain_windows(np.array(encoding.ids), no_lengths, prefix, config.window_tokens)[:1]
        ]
        if not windows:
            raise StageError("the training texts are too short to predict a token in them; add text")
        # Every other tokenizer of the training comes without priors, as many target tokenizers do.
        shown = config.priors and (stream == HELD_OUT or number % 2 == 0)
        return Sample(
            pieces=surface_forms(vocabulary.tokens, self._segmenter, config.max_pieces),
            priors=torch.from_numpy(vocabulary.log_probabilities) if shown else None,
            batch=collate(windows).student,
        )

    def _stretches(self, draw: np.random.Generator) -> list[str]:
        """Stretches of documents, drawn by weight, each from a random place on."""
        length = _CHARACTERS_PER_TOKEN * self._config.window_tokens
        chosen = draw.choice(len(self._texts), size=self._config.tokenizer_texts, p=self._shares)
        places = draw.random(len(chosen))
        texts = [self._texts[index] for index in chosen]
        starts = [int(place * (max(len(text) - length, 0) + 1)) for text, place in zip(texts, places, strict=True)]
        return [text[start : start + length] for text, start in zip(texts, starts, strict=True)]
