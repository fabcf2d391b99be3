"""A causal language model continues prompts: sampled, or greedily, each document by random numbers of its own."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import nn
from transformers import StoppingCriteriaList

from alignment.byte_view import ByteView
from alignment.token_table import TokenKind
from stages.generation.prompts import Prompt
from stages.generation.sampling import Sampling, Stopping, continue_rows
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

    def write(self, prompts: Sequence[Prompt], should_stop: Callable[[], bool]) -> list[Continuation]:
        """One continuation a prompt.

        Raises:
            StageError: a prompt has no tokens, or leaves no room for the new ones in the model's context, or the
                model's logits are not finite.
            StageInterrupted: ``should_stop`` said so.
        """
        rows = [self.view.prefix_ids + self.view.encode(prompt.text, exact=False).ids.tolist() for prompt in prompts]
        self._check(prompts, rows)
        draws = np.stack([document_draws(self.seed, prompt.id, self.new_tokens) for prompt in prompts])
        stopping = Stopping(should_stop)
        written = continue_rows(
            self.model,
            self.view,
            rows,
            draws,
            Sampling(self.temperature, self.top_p),
            name="the teacher",
            stopping=StoppingCriteriaList([stopping]),
        )
        if stopping.stopped:
            raise StageInterrupted("generate: stopped; finished documents are kept")
        return [self._continuation(row) for row in written]

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


def document_draws(seed: int, document_id: str, count: int) -> np.ndarray:
    """float64 [count] in [0, 1): a function of the seed and the document's id alone."""
    digest = hashlib.sha256(document_id.encode()).digest()
    stream = np.random.SeedSequence([seed, int.from_bytes(digest[:16], "big")])
    return np.random.Generator(np.random.Philox(stream)).random(count)
