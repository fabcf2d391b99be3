"""A causal language model continues prompts: sampled, or greedily, each document by random numbers of its own.

Legend: B prompts, N new tokens, V ids of the tokenizer (the model may have more logits).
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from alignment.byte_view import ByteView
from alignment.token_table import TokenKind
from stages.generation.prompts import Prompt
from stages.stage import StageError, StageInterrupted

Ending = Literal["finished", "cut", "broken"]


@dataclass(frozen=True)
class Continuation:
    """What the model wrote after a prompt.

    Attributes:
        text: whole characters only.
        tokens: how many it took, without the one that ends the text.
        ending: ``finished`` by a special token, ``cut`` after the most tokens allowed, or ``broken``: some tokens are
            not UTF-8, and the text ends before them.
    """

    text: str
    tokens: int
    ending: Ending


@dataclass(frozen=True)
class Writer:
    """Continues prompts.

    A document's text depends on the model, the options and the document's id: its neighbours in a batch add nothing but
    the rounding of padded matrix products.

    Attributes:
        model: a Hugging Face causal language model; its own settings for generation are put aside.
        view: its tokenizer. Whatever special token the model writes ends the text.
        new_tokens: the most tokens to write.
        temperature: 0 takes the most probable token.
        top_p: draw from the fewest tokens that hold this mass at least.
        seed: of the draws.
    """

    model: nn.Module
    view: ByteView
    new_tokens: int
    temperature: float
    top_p: float
    seed: int

    @torch.no_grad()
    def write(self, prompts: Sequence[Prompt], should_stop: Callable[[], bool]) -> list[Continuation]:
        """One continuation a prompt.

        Raises:
            StageError: a prompt has no tokens, or leaves no room for the new ones in the model's context, or the
                model's logits are not finite.
            StageInterrupted: ``should_stop`` said so.
        """
        rows = [self.view.prefix_ids + self.view.encode(prompt.text, exact=False).ids.tolist() for prompt in prompts]
        self._check(prompts, rows)
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        attention = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        stopping = _Stopping(should_stop)
        special = np.flatnonzero(self.view.kinds == TokenKind.SPECIAL).tolist()
        # In place of the model's: those would be mixed into what is given here.
        self.model.generation_config = GenerationConfig(
            do_sample=False, max_new_tokens=self.new_tokens, eos_token_id=special or None, pad_token_id=0
        )
        device = self.model.device
        written = self.model.generate(
            ids.to(device),
            attention_mask=attention.to(device),
            logits_processor=LogitsProcessorList([self._choice([prompt.id for prompt in prompts], width, device)]),
            stopping_criteria=StoppingCriteriaList([stopping]),
        )
        if stopping.stopped:
            raise StageInterrupted("generate: stopped; finished documents are kept")
        return [self._continuation(row) for row in written[:, width:].tolist()]

    def _check(self, prompts: Sequence[Prompt], rows: Sequence[list[int]]) -> None:
        context = getattr(self.model.config, "max_position_embeddings", None)
        for prompt, row in zip(prompts, rows, strict=True):
            if not row:
                raise StageError(f"document {prompt.id}: its prompt has no tokens; remove the document from data.train")
            if context is not None and len(row) + self.new_tokens > context:
                raise StageError(
                    f"document {prompt.id}: a prompt of {len(row):,} tokens and new_tokens: {self.new_tokens:,} do not "
                    f"fit the teacher's context of {context:,} tokens; lower new_tokens or prompt_bytes"
                )

    def _choice(self, document_ids: Sequence[str], prompt_tokens: int, device: torch.device) -> LogitsProcessor:
        real = torch.from_numpy(self.view.kinds != TokenKind.MISSING).to(device)
        if self.temperature == 0:
            return ChosenToken(real, prompt_tokens)
        draws = np.stack([document_draws(self.seed, document_id, self.new_tokens) for document_id in document_ids])
        return ChosenToken(real, prompt_tokens, torch.from_numpy(draws).to(device), self.temperature, self.top_p)

    def _continuation(self, ids: Sequence[int]) -> Continuation:
        pieces: list[bytes] = []
        ending: Ending = "cut"
        for token in ids:
            if self.view.kinds[token] == TokenKind.SPECIAL:
                ending = "finished"
                break
            pieces.append(self.view.token_bytes(token) or b"")
        data = b"".join(pieces)
        try:
            # Not final: a character that the last token leaves incomplete is no error.
            text = codecs.getincrementaldecoder("utf-8")().decode(data)
        except UnicodeDecodeError as error:
            text, ending = data[: error.start].decode(), "broken"
        return Continuation(text, len(pieces), ending)


class ChosenToken(LogitsProcessor):
    """Leaves one token at the position to write, so that greedy search takes it: the one that a row's draw falls on.

    Args:
        real: bool [V], ids that the tokenizer has; no other one is ever chosen.
        prompt_tokens: length of the padded prompts.
        draws: float64 [B, N] in [0, 1), one for every token to write; None leaves the most probable one.
        temperature: divides the logits.
        top_p: see ``Writer``.
    """

    def __init__(
        self,
        real: Tensor,
        prompt_tokens: int,
        draws: Tensor | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> None:
        self._real = real
        self._prompt_tokens = prompt_tokens
        self._draws = draws
        self._temperature = temperature
        self._top_p = top_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits [B, V or more] with all but the allowed ones at -inf.

        Raises:
            StageError: a logit is NaN or infinite, as of a model with damaged weights.
        """
        if not scores[:, : len(self._real)].isfinite().all():
            raise StageError("the teacher's logits are not finite: its weights are damaged")
        real = nn.functional.pad(self._real, (0, scores.shape[1] - len(self._real)))
        scores = scores.masked_fill(~real, -torch.inf)
        if self._draws is None:
            return scores
        probabilities = (scores.double() / self._temperature).softmax(-1)
        if self._top_p < 1:
            probabilities = _nucleus(probabilities, self._top_p)
        # In the order of ids, which rounding cannot change as it can that of nearly equal probabilities.
        cumulative = probabilities.cumsum(-1)
        draw = self._draws[:, input_ids.shape[1] - self._prompt_tokens, None]
        chosen = torch.searchsorted(cumulative, draw * cumulative[:, -1:], right=True)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


class _Stopping(StoppingCriteria):
    """Ends the writing of all texts when the stage is asked to stop."""

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop
        self.stopped = False

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        self.stopped = self.stopped or self._should_stop()
        return torch.full((len(input_ids),), self.stopped, device=input_ids.device)


def document_draws(seed: int, document_id: str, count: int) -> np.ndarray:
    """float64 [count] in [0, 1): a function of the seed and the document's id alone."""
    digest = hashlib.sha256(document_id.encode()).digest()
    stream = np.random.SeedSequence([seed, int.from_bytes(digest[:16], "big")])
    return np.random.Generator(np.random.Philox(stream)).random(count)


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """``probabilities [B, V]`` with 0 outside the fewest tokens that hold ``top_p`` at least."""
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    kept = ordered.cumsum(-1) - ordered < top_p
    return probabilities * torch.zeros_like(kept).scatter(1, order, kept)
