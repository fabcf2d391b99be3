"""Writing with several models at once: every token is chosen from what all of them make of what is written so far.

Legend: M members, B prompts, L tokens of the longest prompt, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import StoppingCriteria

from alignment.byte_view import ByteView
from alignment.token_table import TokenKind
from stages.evaluation.scoring import score_rows
from stages.generation.continuation import document_draws
from stages.generation.sampling import ChosenToken, Sampling

if TYPE_CHECKING:
    from stages.evaluation.ensembles.means import Combination
    from stages.evaluation.ensembles.token_level import Member

_PAD = 0


@torch.inference_mode()
def write_together(
    members: Sequence[Member],
    combination: Combination,
    view: ByteView,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    ending: StoppingCriteria,
    *,
    sampling: Sampling,
    seed: int,
) -> list[list[int]]:
    """Continue every prompt until a special token, until ``ending`` says so, or for ``new_tokens``.

    Args:
        prompts: text tokens; each member reads its own start before them.
        sampling: from which tokens of the ensemble's distribution; a temperature of 0 takes the most probable one.
        seed: of the draws, which are a function of it and of a prompt's tokens.

    Returns:
        The new tokens of each prompt, without a special token that ended it.

    Raises:
        StageError: a member's logits are not finite.
    """
    ids = [" ".join(map(str, prompt)) for prompt in prompts]
    real = torch.from_numpy(view.kinds != TokenKind.MISSING)
    special = torch.from_numpy(view.kinds == TokenKind.SPECIAL)
    draws = torch.from_numpy(np.stack([document_draws(seed, prompt, new_tokens) for prompt in ids]))
    name = " and ".join(member.name for member in members)
    choose = ChosenToken(real, 0, None if sampling.temperature == 0 else draws, sampling, name)
    # A prompt's first token says something of the members only if each of them has read something before it.
    first = 0 if all(member.start.prefix_ids for member in members) else 1
    readers = [Reader(member, prompts, first) for member in members]
    evidence = torch.stack([reader.evidence for reader in readers])
    written = torch.empty(len(prompts), 0, dtype=torch.long)
    going_on = torch.ones(len(prompts), dtype=torch.bool)
    lengths = torch.zeros(len(prompts), dtype=torch.long)
    for _ in range(new_tokens):
        own = [reader.log_probs for reader in readers]
        logp = choose(written, combination(own, evidence))
        token = torch.where(going_on, logp.argmax(1), _PAD)
        evidence = evidence + torch.stack([each.gather(1, token[:, None]).squeeze(1) for each in own])
        written = torch.cat([written, token[:, None]], dim=1)
        going_on &= ~special[token]
        lengths += going_on
        going_on &= ~ending(written, logp)
        if not going_on.any():
            break
        for reader in readers:
            reader.read(token)
    return [row[:length] for row, length in zip(written.tolist(), lengths.tolist(), strict=True)]


class Reader:
    """One member reading prompts and what is written after them, each token once.

    Args:
        first: the first token of a prompt that is evidence.

    Attributes:
        log_probs: float32 [B, V], of the next token, in nats.
        evidence: float64 [B], log-probability in nats of the prompts' tokens from ``first`` on.
    """

    def __init__(self, member: Member, prompts: Sequence[Sequence[int]], first: int) -> None:
        self._member = member
        self._cache: object | None = None
        starts = [member.start.prefix_ids if prompt else member.start.start_ids for prompt in prompts]
        rows = [[*start, *prompt] for start, prompt in zip(starts, prompts, strict=True)]
        width = max(map(len, rows))
        self._ids = torch.tensor([[_PAD] * (width - len(row)) + row for row in rows])
        self._mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        self._takes = frozenset(inspect.signature(member.model.base_model.forward).parameters)
        hidden = self._forward(self._ids)
        predicted = [max(0, len(prompt) - first) for prompt in prompts]
        head = replace(
            member.head,
            hidden=torch.cat([states[width - 1 - count : -1] for states, count in zip(hidden, predicted, strict=True)]),
        )
        labels = torch.cat([ids[width - count :] for ids, count in zip(self._ids, predicted, strict=True)])
        logp, _ = score_rows(head, labels.to(head.weight.device)) if len(labels) else (torch.empty(0), None)
        self.evidence = torch.stack([part.double().sum() for part in logp.cpu().split(predicted)])

    def read(self, tokens: Tensor) -> None:
        """Go on with one token a prompt, int64 [B]."""
        self._ids = torch.cat([self._ids, tokens[:, None]], dim=1)
        self._mask = torch.cat([self._mask, torch.ones_like(tokens)[:, None]], dim=1)
        # A model that keeps no states between calls reads everything again.
        self._forward(self._ids if self._cache is None else tokens[:, None])

    def _forward(self, ids: Tensor) -> Tensor:
        """Final hidden states of ``ids``, which stand behind what the cache has."""
        device = self._member.model.device
        options: dict[str, Any] = {"attention_mask": self._mask.to(device)}
        if "past_key_values" in self._takes:
            options |= {"past_key_values": self._cache, "use_cache": True}
        if "position_ids" in self._takes:
            positions = (self._mask.cumsum(1) - 1).clamp(min=0)
            options["position_ids"] = positions[:, -ids.shape[1] :].to(device)
        output = self._member.model.base_model(input_ids=ids.to(device), **options)
        self._cache = getattr(output, "past_key_values", None)
        hidden = output.last_hidden_state.to(self._member.head.weight.device)
        self.log_probs = replace(self._member.head, hidden=hidden[:, -1]).log_probs(slice(None)).float().cpu()
        return hidden
