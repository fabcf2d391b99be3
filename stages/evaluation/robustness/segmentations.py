"""One model reads one text in its own tokens and in random ones, and is compared with itself.

Legend: T tokens of the text, U of a random segmentation, P places that are compared, L layers, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from alignment.byte_view import ByteView
from alignment.splits import Expansion, SplitTable
from losses.predictions import LinearHead
from stages.evaluation.scoring import checked_head, positions_of, score_rows
from stages.stage import StageError

NO_BYTE = 256
"""Where the probability of tokens without bytes is counted: that the text ends, say."""
_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Comparison:
    """A model on one text in one random segmentation.

    Attributes:
        nats: of the text after its first own token.
        places: P, ends of words that were split.
        kl_nats: float64 [P], KL divergence of the next byte's distribution from that after the own tokens.
        same_byte: bool [P], the most probable next byte is the same.
        distance: float64 [L + 1, P], 1 - cosine similarity of the hidden states, embeddings first.
    """

    nats: float
    places: int
    kl_nats: np.ndarray
    same_byte: np.ndarray
    distance: np.ndarray


@dataclass(frozen=True)
class Reading:
    """What a model made of a sequence of tokens: hidden states [L + 1, T, D] and nats of its tokens from the first
    scored one on."""

    states: Tensor
    nats: float


class Reader:
    """A model that can be asked for its hidden states and for the next byte.

    Raises:
        StageError: the model's head is not one that we can compute.
    """

    def __init__(self, model: nn.Module, view: ByteView, probe: Sequence[int]) -> None:
        self._model = model
        self._prefix = list(view.prefix_ids)
        self._head = checked_head(model, view.vocab_size, [*self._prefix, *probe][:16])
        firsts = [data[0] if (data := view.token_bytes(token)) else NO_BYTE for token in range(view.vocab_size)]
        self._first_byte = torch.tensor(firsts, device=self._head.weight.device)

    @torch.inference_mode()
    def read(self, ids: np.ndarray, first_scored: int) -> Reading:
        """Hidden states at all tokens, and the nats of those from ``first_scored`` (at least 1) on.

        Raises:
            StageError: the model has fewer positions.
        """
        positions = positions_of(self._model)
        if positions is not None and len(self._prefix) + len(ids) > positions:
            raise StageError(
                f"an excerpt takes {len(self._prefix) + len(ids)} tokens, the model has {positions} positions; lower "
                "excerpt_bytes of invariance"
            )
        tokens = torch.tensor([[*self._prefix, *ids.tolist()]], device=self._model.device)
        out = self._model.base_model(input_ids=tokens, use_cache=False, output_hidden_states=True)
        states = torch.stack([layer[0, len(self._prefix) :].to(tokens.device) for layer in out.hidden_states])
        before = states[-1, first_scored - 1 : -1].to(self._head.weight.device)
        labels = torch.tensor(ids[first_scored:], dtype=torch.int64, device=before.device)
        logp, _ = score_rows(self._at(before), labels)
        return Reading(states, -float(logp.double().sum()))

    @torch.inference_mode()
    def next_bytes(self, states: Tensor) -> Tensor:
        """float64 [P, 257]: probability of each first byte of the next token after final hidden states [P, D]."""
        head = self._at(states.to(self._head.weight.device))
        found = torch.zeros(len(states), NO_BYTE + 1, dtype=torch.float64, device=head.weight.device)
        for start in range(0, len(states), _ROWS_AT_ONCE):
            rows = slice(start, min(start + _ROWS_AT_ONCE, len(states)))
            probabilities = head.logits(rows).softmax(-1).double()
            found[rows].index_add_(1, self._first_byte, probabilities)
        return found

    def _at(self, states: Tensor) -> LinearHead:
        return replace(self._head, hidden=states)


def random_segmentations(
    table: SplitTable, ids: np.ndarray, proportion: float, seeds: Sequence[Sequence[int]]
) -> list[Expansion]:
    """One random segmentation a seed, by StochasTok's law; a short text takes part by chance."""
    return table.expand_batch(
        [ids] * len(seeds),
        proportion,
        rngs=[np.random.default_rng(list(seed)) for seed in seeds],
        rounding="stochastic",
    )


def word_ends(text: str, ends: np.ndarray) -> np.ndarray:
    """bool [T]: tokens that end where a word of the text does, given the bytes [T] at which they end."""
    found = set()
    byte = 0
    for place, character in enumerate(text):
        byte += len(character.encode())
        following = text[place + 1 : place + 2]
        if character.isalnum() and not following.isalnum():
            found.add(byte)
    return np.isin(ends, np.fromiter(found, dtype=np.int64, count=len(found)))


def split_words(is_end: np.ndarray, expansion: Expansion) -> np.ndarray:
    """int64 [P]: the tokens of the text that end a word, some token of which was split.

    Args:
        is_end: bool [T], as of ``word_ends``.
    """
    pieces = np.bincount(expansion.origin, minlength=len(is_end))
    word = np.cumsum(is_end) - is_end
    split = np.bincount(word, weights=pieces > 1, minlength=int(word[-1]) + 1 if len(word) else 0) > 0
    return np.flatnonzero(is_end & split[word])


def compare(reader: Reader, own: Reading, expansion: Expansion, places: np.ndarray) -> Comparison:
    """A random segmentation, whose first piece after the first own token is the first scored, beside the own tokens.

    Args:
        places: int64 [P], tokens of the text.
    """
    last_piece = np.searchsorted(expansion.origin, np.arange(int(expansion.origin[-1]) + 1), side="right") - 1
    other = reader.read(expansion.ids, int(last_piece[0]) + 1)
    ours = own.states[:, torch.from_numpy(places)]
    theirs = other.states[:, torch.from_numpy(last_piece[places])]
    left, right = (reader.next_bytes(states[-1]) for states in (ours, theirs))
    tiny = torch.finfo(torch.float32).tiny
    kl = (left * (left.clamp_min(tiny).log() - right.clamp_min(tiny).log())).sum(1)
    similarity = nn.functional.cosine_similarity(ours.double(), theirs.double(), dim=-1)
    return Comparison(
        nats=other.nats,
        places=len(places),
        kl_nats=kl.cpu().numpy(),
        same_byte=(left.argmax(1) == right.argmax(1)).cpu().numpy(),
        distance=(1 - similarity).cpu().numpy(),
    )
