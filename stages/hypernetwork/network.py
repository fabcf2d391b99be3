"""The hypernetwork: rows of a token's pieces -> the token's own row.

Zero-Shot Tokenizer Transfer (Minixhofer et al., NeurIPS 2024), embedding_init.md §1.14: the pieces' rows are projected,
a small transformer reads them, and the state of the first piece becomes the row. As in tokenkit, what is predicted is
the difference from the mean of the pieces' rows, and begins at zero. On purpose different from the paper: the encoder
normalises before its blocks (it needs no care at the start), input and output rows come from one linear map of the same
state, and there is no embedding of the language.

Legend: M tokens, L pieces, C columns of the vocabulary table, H hidden width.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from stages.artifacts import read_json, write_json

MANIFEST, WEIGHTS = "hypernet.json", "hypernet.safetensors"
_EPSILON = 1e-6
_PRIOR_SCALE = 10.0
"""About the size of a token's log-probability, so that the prior is of the order of one."""

# No torch.nn.GELU: for that, TransformerEncoderLayer may take a fused path at inference, which ignores "tanh".
_gelu = partial(F.gelu, approximate="tanh")


@dataclass(frozen=True)
class Shape:
    """What it takes to build a hypernetwork.

    Attributes:
        columns: C, width of a row that is read and predicted.
        hidden: H; divisible by ``heads``.
        layers, heads, expansion: of the encoder; a layer's feed-forward part is ``expansion * hidden`` wide.
        max_pieces: L.
        priors: whether tokens come with Unigram log-probabilities.
    """

    columns: int
    hidden: int
    layers: int
    heads: int
    expansion: int
    max_pieces: int
    priors: bool


class Hypernetwork(nn.Module):
    """Predicts rows of the vocabulary table. A fresh one gives the mean of the pieces' rows, which for a single piece
    is that piece's row.

    Attributes:
        mean, deviation: float32 [C], of every column of the student's table: they standardise what is read and scale
            what is predicted.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        hidden = shape.hidden
        self.register_buffer("mean", torch.zeros(shape.columns))
        self.register_buffer("deviation", torch.ones(shape.columns))
        self.project = nn.Linear(shape.columns, hidden)
        self.project_further = nn.Sequential(nn.Linear(hidden, hidden), nn.GELU("tanh"), nn.Linear(hidden, hidden))
        self.project_norm = nn.LayerNorm(hidden, _EPSILON)
        self.positions = nn.Parameter(torch.randn(shape.max_pieces, hidden) * 0.02)
        self.prior = nn.Linear(1, hidden, bias=False) if shape.priors else None
        # No torch.nn.TransformerEncoder: it would give all of its layers the same initial weights.
        self.encoder = nn.Sequential(*(_encoder_layer(shape) for _ in range(shape.layers)))
        self.norm = nn.LayerNorm(hidden, _EPSILON)
        self.head = nn.Linear(hidden, shape.columns)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def for_table(cls, shape: Shape, rows: Tensor, seed: int) -> Self:
        """A fresh network for the table ``rows`` [V, C]; leaves torch's random state alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = cls(shape)
        rows = rows.double()
        deviation = rows.std(dim=0, correction=0)
        network.mean.copy_(rows.mean(dim=0))
        network.deviation.copy_(torch.where(deviation > 0, deviation, 1.0))
        return network

    def forward(self, table: Tensor, pieces: Tensor, priors: Tensor | None = None) -> Tensor:
        """Rows of M tokens, float32 [M, C]; of one without pieces the mean row.

        Args:
            table: [V, C], the student's rows.
            pieces: int64 [M, L], a token's pieces from the left, -1 behind the last.
            priors: float32 [M], log-probabilities; 0, as without them, where there is none.
        """
        counts = (pieces >= 0).sum(dim=1)
        order = counts.argsort(stable=True)
        lengths = torch.bincount(counts, minlength=self.shape.max_pieces + 1).tolist()
        # Tokens of one length at a time: nothing is padded, so a row does not depend on the others of its block.
        groups = zip(range(len(lengths)), order.split(lengths), strict=True)
        made = [
            self._rows_of_length(table, pieces[ids, :length], None if priors is None else priors[ids])
            for length, ids in groups
            if len(ids)
        ]
        return torch.cat(made)[order.argsort()] if made else self.mean.new_empty(0, self.shape.columns)

    def start(self, table: Tensor, pieces: Tensor) -> Tensor:
        """What ``forward`` gives before any training, float32 [M, C]: the mean of the pieces' rows."""
        used = (pieces >= 0).unsqueeze(-1)
        total = torch.where(used, table[pieces.clamp(min=0)].float(), 0).sum(dim=1)
        return torch.where(used.any(dim=1), total / used.sum(dim=1).clamp(min=1), self.mean)

    def _rows_of_length(self, table: Tensor, pieces: Tensor, priors: Tensor | None) -> Tensor:
        start = self.start(table, pieces)
        length = pieces.shape[1]
        if length == 0:
            return start
        states = self.project((table[pieces].float() - self.mean) / self.deviation)
        states = self.project_norm(states + self.project_further(states)) + self.positions[:length]
        if self.prior is not None and priors is not None:
            states = states + self.prior(priors[:, None, None] / _PRIOR_SCALE)
        return start + self.deviation * self.head(self.norm(self.encoder(states)[:, 0]))


def _encoder_layer(shape: Shape) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(
        shape.hidden,
        shape.heads,
        shape.expansion * shape.hidden,
        dropout=0.0,
        activation=_gelu,
        layer_norm_eps=_EPSILON,
        batch_first=True,
        norm_first=True,
    )


def save(network: Hypernetwork, directory: Path, manifest: dict[str, Any]) -> None:
    """Write the weights, and ``manifest`` with the network's shape."""
    save_file({name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}, directory / WEIGHTS)
    write_json(directory / MANIFEST, {"network": asdict(network.shape), **manifest})


def read_manifest(directory: Path) -> dict[str, Any]:
    """What ``save`` wrote beside the weights."""
    return read_json(directory / MANIFEST)


def load(directory: Path) -> Hypernetwork:
    """The network that ``save`` wrote, for inference."""
    network = Hypernetwork(Shape(**read_manifest(directory)["network"]))
    network.load_state_dict(load_file(directory / WEIGHTS))
    return network.eval().requires_grad_(False)
