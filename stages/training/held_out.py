"""Text that is not trained on, to choose the best checkpoint by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import islice

import torch
from torch import Tensor, nn

from alignment.byte_view import ByteView
from losses.chunks import shift_scores
from losses.output import LossOutput
from losses.scores import token_scores
from losses.sft import cross_entropy_loss
from stages.stage import StageError
from stages.training.backends.backend import Backend
from stages.training.data.batch import SideBatch, collate, to_device
from stages.training.data.windows import Document, Window, plain_windows
from stages.training.models import Signals


class HeldOut:
    """Measures the student's cross-entropy on windows that all processes share among themselves.

    Args:
        windows: of the text, in the student's tokens, the same in every process.
        every: steps between two measurements.
        micro_batch: windows in one forward pass of one process.
        rank, world_size: this process among all.
        device: of this process.
        student: the module that the backend trains; it is in evaluation mode while it is measured.
        backend: runs it.
    """

    def __init__(
        self,
        windows: Sequence[Window],
        every: int,
        micro_batch: int,
        rank: int,
        world_size: int,
        device: torch.device,
        student: nn.Module,
        backend: Backend,
    ) -> None:
        self.every = every
        # Every process takes the same number of forward passes, the last ones perhaps of windows that do not count.
        share = math.ceil(len(windows) / world_size)
        mine = [(windows[index], 1) for index in range(rank, len(windows), world_size)]
        mine += [(windows[0], 0)] * (share - len(mine))
        self._batches = [mine[start : start + micro_batch] for start in range(0, share, micro_batch)]
        self._device = device
        self._student = student
        self._backend = backend

    @torch.no_grad()
    def bits_per_byte(self) -> float:
        """Cross-entropy of all predicted tokens over the bytes that they stand for, in bits. Collective."""
        self._student.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self._device)
        for windows in self._batches:
            side = to_device(collate([window for window, _ in windows]).student, self._device)
            counts = torch.tensor([count for _, count in windows], device=self._device)[:, None]
            scored = side.scored & (counts > 0)

            def nats(signals: Signals, side: SideBatch = side, scored: Tensor = scored) -> list[LossOutput]:
                return [cross_entropy_loss(_label_logp(signals, side), scored)]

            (output,) = self._backend.forward(side, nats, False).outputs
            sums += torch.stack([output.total.double(), (side.lengths * scored).sum().double()])
        self._student.train()
        nats_sum, text = self._backend.sum(sums).tolist()
        return nats_sum / math.log(2) / text


def held_out_windows(documents: Iterable[Document], view: ByteView, tokens: int, most: int) -> list[Window]:
    """The windows of the first ``most`` documents, of at most ``tokens`` tokens.

    Raises:
        StageError: a document is a conversation, or there is no text to predict.
    """
    windows: list[Window] = []
    for document in islice(documents, most):
        if document.messages is not None:
            raise StageError(f"keep_best: document {document.id} of data.eval is a conversation; it takes plain text")
        ids = view.encode(document.text, exact=False).ids
        windows += plain_windows(ids, view.byte_lengths, view.prefix_ids, tokens)
    if not windows:
        raise StageError("keep_best: data.eval has no text of two tokens or more to measure the student on")
    return windows


def _label_logp(signals: Signals, side: SideBatch) -> Tensor:
    """Log-probability of every token [B, T]; from the output head where no objective asks for it."""
    if signals.label_logp is not None:
        return signals.label_logp
    head = signals.head
    scores = token_scores(
        head.hidden,
        head.weight,
        side.labels.flatten(),
        bias=head.bias,
        softcap=head.softcap,
        scale=head.scale,
        vocab_size=head.vocab_size,
    )
    return shift_scores(scores.label_logp.view(side.ids.shape))
