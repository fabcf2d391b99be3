"""What a hypernetwork is trained to make small (ZeTT, embedding_init.md §1.14).

loss = cross-entropy of the frozen model on text in the drawn tokenizer + weight * lexical loss
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from losses.output import LossOutput
from losses.scores import token_scores
from losses.sft import cross_entropy_loss
from stages.hypernetwork.table import TokenRows
from stages.output_head import OutputHead
from stages.training.data.batch import SideBatch


class FrozenModel:
    """A causal language model that is given its embedding rows with every call; nothing of its own is trained.

    Args:
        model: in its compute type.
        head: what it does to final hidden states.
    """

    def __init__(self, model: nn.Module, head: OutputHead) -> None:
        self._body = model.base_model.eval().requires_grad_(False)
        self._head = head
        embedding = model.get_input_embeddings()
        # A padding id of the student's vocabulary means nothing in another one, and its row would get no gradient.
        embedding.padding_idx = None
        self._embedding = next(name for name, tensor in self._body.named_parameters() if tensor is embedding.weight)
        self._dtype = embedding.weight.dtype

    def cross_entropy(self, batch: SideBatch, rows: TokenRows, prefix: TokenRows) -> LossOutput:
        """Of the windows ``batch``, whose ids are rows of ``rows`` followed by those of ``prefix``, in nats a token.

        Rows of ``prefix`` are read, never predicted.
        """
        inputs = torch.cat([rows.input, prefix.input]).to(self._dtype)
        # The embedding module stays in use: some models scale what it gives.
        hidden = torch.func.functional_call(
            self._body,
            {self._embedding: inputs},
            kwargs={"input_ids": batch.ids, "attention_mask": batch.attention, "use_cache": False},
        ).last_hidden_state
        labels = batch.labels.flatten()
        logp = token_scores(
            hidden.flatten(0, 1),
            rows.output.to(self._dtype),
            labels,
            bias=None if rows.bias is None else rows.bias.to(self._dtype),
            softcap=self._head.softcap,
            scale=self._head.scale,
        ).label_logp
        return cross_entropy_loss(logp, labels >= 0)


def lexical_loss(predicted: TokenRows, known: TokenRows) -> Tensor:
    """Mean Euclidean distance of the predicted rows from those that the student has, over M tokens; inputs and outputs
    count half each. Zero, with zero gradient, where they are equal, and where there are no tokens."""
    pairs = [(predicted.input, known.input)]
    if predicted.output is not predicted.input:
        pairs.append((predicted.output, known.output))
    distances = [torch.linalg.vector_norm(ours - theirs.float(), dim=1).sum() for ours, theirs in pairs]
    return sum(distances) / (len(distances) * max(len(known.input), 1))
