"""The student writes: sampled continuations of prompts, shared out over the processes and exchanged."""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteriaList

from alignment.byte_view import ByteView
from alignment.token_table import TokenKind
from stages.generation.sampling import Sampling, Stopping, continue_rows
from stages.stage import StageError, StageInterrupted
from stages.training.models import ScoringModel
from stages.training.on_policy.options import OnPolicyOptions
from stages.training.on_policy.prompts import Prompt
from stages.training.random import generator

_DRAWS = 0x726F6C6C  # the stream of random numbers of this module

Exchange = Callable[[Any], list[Any]]
"""Gives every process the objects of all, by rank."""


@dataclass(frozen=True)
class Rollout:
    """What the student wrote after a prompt.

    Attributes:
        prompt: what it continued.
        ids: its tokens, as sampled, up to the last whole character.
        text: what they spell.
        end: the special token that it ended with; None if it was cut off, or wrote what is no UTF-8.
        sampled: how many tokens it wrote, ``end`` not counted.
        end_mass: the probability of ending at once.
    """

    prompt: Prompt
    ids: tuple[int, ...]
    text: str
    end: int | None
    sampled: int
    end_mass: float


@dataclass(frozen=True)
class Author:
    """Continues prompts with the student as it is.

    A rollout depends on the student's weights, the prompt and the prompt's number: its neighbours in a batch, and with
    them the number of processes, add nothing but the rounding of padded matrix products.

    Attributes:
        student: in training; it writes in evaluation mode.
        view: its tokenizer.
        options: how to sample.
        seed: of the draws.
        rank, world_size: this process among all.
        exchange: between the processes.
        sharded: no process has all parameters, so all must write together.
        should_stop: whether this process was asked to stop.
    """

    student: ScoringModel
    view: ByteView
    options: OnPolicyOptions
    seed: int
    rank: int = 0
    world_size: int = 1
    exchange: Exchange = lambda mine: [mine]
    sharded: bool = False
    should_stop: Callable[[], bool] = lambda: False

    def write(self, prompts: Sequence[Prompt]) -> list[Rollout]:
        """One rollout a prompt, the same ones in every process. Collective.

        Raises:
            StageError: the student's logits are not finite.
            StageInterrupted: a process was asked to stop; every process raises it, and what was written is lost.
        """
        size = self.options.batch or math.ceil(len(prompts) / self.world_size)
        parts = [prompts[start : start + size] for start in range(0, len(prompts), size)]
        mine = {index: parts[index] for index in range(self.rank, len(parts), self.world_size)}
        if self.sharded and len(mine) < math.ceil(len(parts) / self.world_size):
            mine[len(parts)] = parts[0]  # not looked at: the others need this process's part of the parameters
        training = self.student.training
        self.student.eval()
        try:
            written = self._sample_all(mine)
        finally:
            self.student.train(training)
        everyone: dict[int, list[tuple[list[int], float]]] = {}
        for share in self.exchange(written):
            if isinstance(share, StageError | StageInterrupted):
                raise share
            everyone |= share
        rows = [row for index in range(len(parts)) for row in everyone[index]]
        return [self._rollout(prompt, *row) for prompt, row in zip(prompts, rows, strict=True)]

    def _sample_all(
        self, parts: Mapping[int, Sequence[Prompt]]
    ) -> dict[int, list[tuple[list[int], float]]] | StageError | StageInterrupted:
        """``_sample`` of every part, or what ended it, for all to know: others would wait for this process for ever.

        Where the parameters are split, the others need this process until every part is written, whatever became of it.
        """
        written: dict[int, list[tuple[list[int], float]]] = {}
        problem: StageError | StageInterrupted | None = None
        stopping = Stopping(self.should_stop)
        for index, part in parts.items():
            try:
                written[index] = self._sample(part, stopping)
            except StageError as error:
                problem = problem or error
            if stopping.stopped:
                problem = problem or StageInterrupted("stopped while the student was writing")
            if problem is not None and not self.sharded:
                break
        return problem or written

    def _sample(self, prompts: Sequence[Prompt], stopping: Stopping) -> list[tuple[list[int], float]]:
        """The sampled ids of each prompt, its end included, and the mass that ending at once had."""
        options = self.options
        special = np.flatnonzero(self.view.kinds == TokenKind.SPECIAL)
        first = _EndMass(torch.from_numpy(special), max(len(prompt.ids) for prompt in prompts))
        draws = [generator(self.seed, _DRAWS, prompt.number).random(options.max_new_tokens) for prompt in prompts]
        rows = continue_rows(
            self.student.model,
            self.view,
            [prompt.ids for prompt in prompts],
            np.stack(draws),
            Sampling(options.temperature, options.top_p, options.top_k),
            name="the student",
            observers=[first],
            stopping=StoppingCriteriaList([stopping]),
            synced=self.sharded,
        )
        return list(zip(rows, first.mass, strict=True))

    def _rollout(self, prompt: Prompt, ids: Sequence[int], end_mass: float) -> Rollout:
        ended = bool(ids) and self.view.kinds[ids[-1]] == TokenKind.SPECIAL
        content = ids[:-1] if ended else ids
        whole, text = whole_characters(content, self.view)
        end = ids[-1] if ended and len(whole) == len(content) else None
        return Rollout(prompt, tuple(whole), text, end, len(content), end_mass)


class _EndMass(LogitsProcessor):
    """Notes the probability of the special tokens before the first token is chosen.

    Attributes:
        mass: one number a row.
    """

    def __init__(self, special: Tensor, prompt_tokens: int) -> None:
        self.mass: list[float] = []
        self._special = special
        self._prompt_tokens = prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] == self._prompt_tokens:
            probabilities = scores.double().softmax(-1)
            self.mass = probabilities[:, self._special.to(scores.device)].sum(-1).tolist()
        return scores


def whole_characters(ids: Sequence[int], view: ByteView) -> tuple[list[int], str]:
    """The longest run of tokens from the first that spells whole UTF-8 characters, and the text that it spells."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    text, whole, kept = "", "", 0
    for count, token in enumerate(ids, start=1):
        try:
            text += decoder.decode(view.token_bytes(token) or b"")
        except UnicodeDecodeError:
            break
        if not decoder.getstate()[0]:
            whole, kept = text, count
    return list(ids[:kept]), whole
