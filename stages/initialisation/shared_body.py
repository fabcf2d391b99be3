"""One frozen model that reads text in two vocabularies: its own, and one whose rows are being trained.

Legend: B windows, T tokens, C chunks, V rows of a vocabulary, M of them trained, D width, R scored positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from alignment.vocab_tensors import Role
from losses.chunks import chunk_last, last_token_index
from losses.head_arithmetic import finish_logits, row_blocks
from losses.predictions import LinearHead
from losses.scores import IGNORE_INDEX
from stages.model_loading import load_causal_lm
from stages.output_head import OutputHead, output_matrix
from stages.stage import StageError
from stages.training.data.batch import Batch, SideBatch


class SharedBody:
    """A student's frozen body under its own input matrix and under one for the target vocabulary.

    Args:
        student: directory of its model, loaded in its own dtype.
        source_size: ids of its tokenizer.
        layer: the hidden states to compare, an index into transformers' ``hidden_states``.
        rows: matrices for the target vocabulary, [V_target, D], by role; not changed here.
        tokens: int64 [M], the ids whose rows are trained.
        device: where everything is computed.

    Attributes:
        trained: role -> [M, D] float32, parameters that begin as the rows of ``rows``.

    Raises:
        StageError: output rows are to be trained but the model's head is not understood.
    """

    def __init__(
        self,
        student: Path,
        source_size: int,
        *,
        layer: int,
        rows: Mapping[Role, Tensor],
        tokens: Tensor,
        device: torch.device,
    ) -> None:
        model = load_causal_lm(student, dtype="auto").to(device).eval().requires_grad_(False)
        model.name_or_path = "the student"
        self._body = model.base_model
        self._embedding = model.get_input_embeddings()
        # It names a row of the whole matrix, whose gradient would be dropped; ours are numbered in each batch anew.
        self._embedding.padding_idx = None
        self._layer = layer
        self._input_rows = rows["input"]
        self._tokens = tokens.to(device)
        self._slot = torch.full((len(rows["input"]),), -1, device=device)
        self._slot[self._tokens] = torch.arange(len(tokens), device=device)
        self.trained: dict[Role, nn.Parameter] = {
            role: nn.Parameter(matrix[tokens].float().to(device)) for role, matrix in rows.items()
        }
        self._head = _target_head(model, source_size, rows["output"].to(device)) if "output" in rows else None

    def compare(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """How far the two readings are apart, from the end of each window's first trained token on.

        Args:
            batch: its ``teacher`` side in the model's own tokens, its ``student`` side in the target's.

        Returns:
            The sum over compared positions of the squared difference, mean over D, float32 with gradient; the number
            of positions; the final hidden states [B, T, D] of the target's reading.
        """
        with torch.no_grad():
            own, _ = self._read(batch.teacher, {"input_ids": batch.teacher.ids})
        ours, final = self._read(batch.student, {"inputs_embeds": self._embed(batch.student.ids)})
        chosen = self._compared(batch)
        own, ours = (
            chunk_last(states, side.chunk, batch.num_chunks)[chosen].float()
            for states, side in ((own, batch.teacher), (ours, batch.student))
        )
        return (ours - own).square().mean(dim=1).sum(), chosen.sum(), final

    def cross_entropy(self, side: SideBatch, hidden: Tensor) -> Tensor:
        """Mean negative log-probability of the labels under the output rows, in nats; only trained rows have gradient.

        Args:
            side: whose labels.
            hidden: [B, T, D], final hidden states; no gradient goes into them.
        """
        scored = side.labels != IGNORE_INDEX
        labels, hidden = side.labels[scored], hidden.detach()[scored]
        return trained_cross_entropy(replace(self._head, hidden=hidden), labels, self._tokens, self.trained["output"])

    def _read(self, side: SideBatch, tokens: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Hidden states [B, T, D] of the compared layer, and the final ones."""
        last = self._layer == -1
        output = self._body(
            **tokens, attention_mask=side.attention, use_cache=False, output_hidden_states=not last, return_dict=True
        )
        return output.last_hidden_state if last else output.hidden_states[self._layer], output.last_hidden_state

    def _embed(self, ids: Tensor) -> Tensor:
        """Embeddings [B, T, D] of target ids, by the model's own embedding module, which may scale them."""
        distinct, local = ids.unique(return_inverse=True)
        weight = self._input_rows[distinct.to(self._input_rows.device)].to(ids.device, self._embedding.weight.dtype)
        slot = self._slot[distinct]
        trained = self.trained["input"][slot.clamp(min=0)].to(weight.dtype)
        weight = torch.where((slot >= 0)[:, None], trained, weight)
        return functional_call(self._embedding, {"weight": weight}, (local,))

    def _compared(self, batch: Batch) -> Tensor:
        """bool [B, C]: chunks of a window from that of its first trained token on."""
        chunk = batch.student.chunk
        trained = (self._slot[batch.student.ids] >= 0) & (chunk >= 0)
        first = torch.where(trained, chunk, batch.num_chunks).amin(dim=1, keepdim=True)
        number = torch.arange(batch.num_chunks, device=chunk.device)
        return (last_token_index(chunk, batch.num_chunks) >= 0) & (number >= first)


def trained_cross_entropy(head: LinearHead, labels: Tensor, tokens: Tensor, rows: Tensor) -> Tensor:
    """Mean cross-entropy in nats of a vocabulary of which some rows are trained.

    The others enter through their part of the normaliser alone, which is computed block by block without gradient.

    Args:
        head: R positions; its rows of ``tokens`` are not read.
        labels: int64 [R].
        tokens: int64 [M], the trained ids.
        rows: [M, D], their rows, which get gradient.
    """
    frozen_mass, label_logit = [], []
    for block in row_blocks(len(head), 16 * head.vocab_size, labels.device):
        logits = head.logits(block)
        label_logit.append(logits.gather(1, labels[block, None]).squeeze(1))
        frozen_mass.append(logits.index_fill_(1, tokens, -torch.inf).logsumexp(dim=1))
    bias = None if head.bias is None else head.bias[tokens].to(rows.dtype)
    logits = finish_logits(head.hidden.to(rows.dtype) @ rows.t(), bias, head.scale, head.softcap)
    slot = torch.full((head.vocab_size,), -1, device=labels.device)
    slot[tokens] = torch.arange(len(tokens), device=labels.device)
    column = slot[labels]
    own = logits.gather(1, column.clamp(min=0)[:, None]).squeeze(1)
    score = torch.where(column >= 0, own, torch.cat(label_logit))
    return (torch.logaddexp(torch.cat(frozen_mass), logits.logsumexp(dim=1)) - score).mean()


def _target_head(model: nn.Module, source_size: int, rows: Tensor) -> LinearHead:
    """The model's head with other rows, at no position yet.

    Raises:
        StageError: the head is not understood, or has a bias.
    """
    _, bias = output_matrix(model)
    if bias is not None:
        raise StageError(
            "refine: token_distill cannot train the output rows of a model with an output bias; set output: keep"
        )
    head = OutputHead.of(model, source_size)
    head.check(model, torch.arange(min(2, source_size), device=rows.device)[None])
    return replace(head, vocab_size=len(rows)).on(rows.new_empty(0, rows.shape[1]), rows, None)
