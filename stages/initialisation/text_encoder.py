"""Embeddings of short texts by any model that transformers loads."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoTokenizer

from stages.stage import StageError


def embedding_size(directory: Path) -> int:
    """D, the width of the encoder's hidden states, from its configuration alone.

    Raises:
        StageError: there is none that transformers knows.
    """
    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=False).get_text_config().hidden_size
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise _no_encoder(directory, error) from None


class TextEncoder:
    """The mean of a model's last hidden states over a text's tokens, scaled to norm 1.

    This is how most sentence-embedding models are pooled; a model that wants another pooling or a prefix to every text
    still gives usable similarities.

    Raises:
        StageError: the directory holds no model or no tokenizer that transformers can load.
    """

    def __init__(self, directory: Path) -> None:
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
            self._model = AutoModel.from_pretrained(
                directory, dtype=torch.float32, weights_only=True, trust_remote_code=False
            ).eval()
        except (OSError, ValueError, KeyError, ImportError, pickle.UnpicklingError) as error:
            raise _no_encoder(directory, error) from None
        self._model.to("cuda" if torch.cuda.is_available() else "cpu")

    @torch.no_grad()
    def encode(
        self, texts: Sequence[str], batch_size: int, after_batch: Callable[[int], None] = lambda done: None
    ) -> np.ndarray:
        """float32 [n, D], of norm 1; 0 for a text in which the encoder's tokenizer sees nothing.

        Args:
            batch_size: texts at once; texts of like length go together.
            after_batch: called with the number of texts done; may raise to stop.
        """
        ids = self._tokenizer(list(texts), truncation=True, return_attention_mask=False)["input_ids"] if texts else []
        order = sorted(range(len(ids)), key=lambda text: len(ids[text]))
        width = self._model.config.get_text_config().hidden_size
        embeddings = np.zeros((len(ids), width), dtype=np.float32)
        for start in range(0, len(order), batch_size):
            batch = [text for text in order[start : start + batch_size] if ids[text]]
            if batch:
                embeddings[batch] = self._mean_states([ids[text] for text in batch]).cpu().numpy()
            after_batch(min(start + batch_size, len(order)))
        return embeddings

    def _mean_states(self, batch: Sequence[Sequence[int]]) -> Tensor:
        lengths = torch.tensor([len(ids) for ids in batch])
        padding = self._tokenizer.pad_token_id or 0
        padded = torch.full((len(batch), int(lengths.max())), padding)
        mask = torch.arange(padded.shape[1]) < lengths[:, None]
        padded[mask] = torch.tensor([token for ids in batch for token in ids])
        mask = mask.to(self._model.device)
        states = self._model(input_ids=padded.to(self._model.device), attention_mask=mask.long()).last_hidden_state
        return F.normalize((states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True), dim=1)


def _no_encoder(directory: Path, error: Exception) -> StageError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return StageError(
        f"{directory}: no encoder that AutoModel and AutoTokenizer load ({reason}); name the directory of a "
        "sentence-embedding model, with its tokenizer, as `encoder`"
    )
