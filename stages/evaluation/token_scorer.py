"""A Hugging Face model, of tokens or of bytes, answers requests in text.

Legend: T tokens of a context with its continuation, without special tokens.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from transformers import StoppingCriteria, StoppingCriteriaList

from alignment.byte_view import ByteView
from alignment.encoding import Encoding
from alignment.token_table import TokenKind
from stages.evaluation.core import Problem, Request, TextScore, Watch, ignore
from stages.evaluation.kept_states import keeps_states
from stages.evaluation.scoring import ModelScores, batches, positions_of, score_windows
from stages.evaluation.shared_contexts import SharedScoring, plan
from stages.evaluation.text_start import TextStart
from stages.generation.sampling import Sampling, continue_rows

Writer = Callable[[Sequence[Sequence[int]], int, StoppingCriteria], list[list[int]]]
"""Prompts as rows of tokens, the most tokens to write, and what ends a row -> what is written after each row, up to a
special token or its end; tokens after its end are of no account."""

_GREEDY = Sampling(temperature=0)


@dataclass(frozen=True)
class RequestRow:
    """Tokens of a request, int32 [T and more], the ``special`` first ones of which are no text; those from
    ``first_scored`` on spell the continuation."""

    ids: np.ndarray
    special: int
    first_scored: int

    @property
    def scored(self) -> slice:
        return slice(self.first_scored, None)


class TokenScorer:
    """Scores text by the tokens that the model's own tokenizer makes of it.

    Context and continuation are tokenized together, as one text, and cut at the context's last byte. The string of a
    special token in a text is text. Special tokens stand in front as ``start`` says and are never scored; an end of
    text is not scored.

    Args:
        name: the model's row.
        model: a causal language model in evaluation mode.
        view: its tokenizer.
        start: what stands before a text.
        batch_tokens: tokens of one forward pass, padding included.
        positions: tokens that it may read; None for as many as the model can.
        write: continues rows of tokens greedily; None for the model itself.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        view: ByteView,
        start: TextStart,
        *,
        batch_tokens: int,
        positions: int | None = None,
        write: Writer | None = None,
    ) -> None:
        self.name = name
        self._model = model
        self._view = view
        self._start = start
        self._batch_tokens = batch_tokens
        self._positions = positions_of(model) if positions is None else positions
        self._write = write or self._write_alone

    def score(self, requests: Sequence[Request], watch: Watch = ignore) -> list[TextScore]:
        """One score a request, in order.

        Raises:
            StageError: the model's head is not one that we can compute, or its log-probabilities are not finite.
        """
        found = self.rows(requests)
        rows = [row for row in found if isinstance(row, RequestRow)]
        scores = self._score_rows(rows, watch)
        results = []
        offset = 0
        for request, row in zip(requests, found, strict=True):
            size = len(request.continuation.encode(errors="surrogatepass"))
            if not isinstance(row, RequestRow):
                results.append(TextScore(float("nan"), size, 0, False, row))
                continue
            tokens = row.ids[row.scored]
            here = slice(offset, offset + len(tokens))
            offset = here.stop
            nats = -float(scores.logp[here].sum(dtype=np.float64))
            results.append(TextScore(nats, size, len(tokens), bool((scores.greedy[here] == tokens).all())))
        return results

    def _score_rows(self, rows: Sequence[RequestRow], watch: Watch) -> ModelScores:
        branches = plan(rows)
        size, batch_tokens = self._view.vocab_size, self._batch_tokens
        if branches is not None and self._keeps_states:
            return SharedScoring(self._model, size, batch_tokens=batch_tokens, on_batch=watch)(rows, branches)
        return score_windows(
            self._model, rows, prefix_ids=(), vocab_size=size, batch_tokens=batch_tokens, on_batch=watch
        )

    @cached_property
    def _keeps_states(self) -> bool:
        return keeps_states(self._model, [token % self._view.vocab_size for token in range(16)])

    def rows(self, requests: Sequence[Request]) -> list[RequestRow | Problem]:
        """Each request as tokens, or why it has no score."""
        encodings = self._encode([context + continuation for context, continuation in requests])
        return [self._row(request, encoding) for request, encoding in zip(requests, encodings, strict=True)]

    def generate(
        self, prompts: Sequence[str], *, max_bytes: int, stop: Sequence[str] = (), watch: Watch = ignore
    ) -> list[str | None]:
        """Greedy continuations, the same whatever stands beside a prompt, but for the rounding of padded products.

        A continuation that reaches the end of the model's context ends there. Bytes that are no UTF-8 end it too.

        Raises:
            StageError: the model's logits are not finite.
        """
        rows = [self._prompt(encoding) for encoding in self._encode(prompts)]
        waiting = [index for index, row in enumerate(rows) if row is not None]
        texts: list[str | None] = [None] * len(prompts)
        done = 0
        for batch in self._generation_batches([rows[index] for index in waiting], max_bytes):
            members = [waiting[index] for index in batch]
            share = len(members) / len(waiting)
            written = self._continue([rows[index] for index in members], max_bytes, stop, watch, done, share)
            for index, data in zip(members, written, strict=True):
                texts[index] = _finish(data, max_bytes, stop)
            done += share
            watch(done)
        return texts

    def _encode(self, texts: Sequence[str]) -> list[Encoding | None]:
        """None for a text that has no bytes, or whose bytes its tokens do not spell."""
        encodable = [index for index, text in enumerate(texts) if _has_bytes(text)]
        found: list[Encoding | None] = [None] * len(texts)
        encodings = self._view.encode_batch([texts[index] for index in encodable], exact=False)
        for index, encoding in zip(encodable, encodings, strict=True):
            found[index] = encoding if encoding.exact else None
        return found

    def _row(self, request: Request, encoding: Encoding | None) -> RequestRow | Problem:
        if not request.continuation:
            return "empty"
        if encoding is None:
            return "not_representable"
        border = len(request.context.encode())
        # Tokens of no bytes at the start (a lone dummy prefix) are among those that spell a text without context.
        context_tokens = int(np.searchsorted(encoding.byte_ends, border, side="right")) if border else 0
        if border and (context_tokens == 0 or encoding.byte_ends[context_tokens - 1] != border):
            return "crosses_boundary"
        special = self._start.prefix_ids if context_tokens else self._start.start_ids
        if not special and not context_tokens:
            return "no_start"
        if self._positions is not None and len(special) + len(encoding.ids) > self._positions:
            return "too_long"
        ids = np.concatenate([np.array(special, dtype=np.int32), encoding.ids])
        return RequestRow(ids, len(special), len(special) + context_tokens)

    def _prompt(self, encoding: Encoding | None) -> list[int] | None:
        if encoding is None:
            return None
        special = self._start.prefix_ids if len(encoding.ids) else self._start.start_ids
        row = [*special, *encoding.ids.tolist()]
        fits = self._positions is None or len(row) < self._positions
        return row if row and fits else None

    def _generation_batches(self, rows: Sequence[Sequence[int]], max_bytes: int) -> list[list[int]]:
        """Prompts that are continued together. One that nears the end of the context is alone, so that it shortens
        no other's continuation."""
        batched = []
        # A token of one byte is the shortest: no continuation takes more of them than it has bytes.
        for batch in batches([len(row) + max_bytes for row in rows], self._batch_tokens):
            alone = [index for index in batch if self._new_tokens(rows[index], max_bytes) < max_bytes]
            together = [index for index in batch if index not in alone]
            batched += [[index] for index in alone] + ([together] if together else [])
        return batched

    def _new_tokens(self, row: Sequence[int], max_bytes: int) -> int:
        return max_bytes if self._positions is None else min(max_bytes, self._positions - len(row))

    def _continue(
        self,
        rows: Sequence[Sequence[int]],
        max_bytes: int,
        stop: Sequence[str],
        watch: Watch,
        done: float,
        share: float,
    ) -> list[bytes]:
        """What the model writes after each row, up to a special token; maybe more than asked for."""
        new_tokens = min(self._new_tokens(row, max_bytes) for row in rows)
        ending = _Ending(
            self._view, [text.encode() for text in stop], max_bytes, lambda part: watch(done + share * part), new_tokens
        )
        written = self._write(rows, new_tokens, ending)
        return [b"".join(self._view.token_bytes(token) or b"" for token in row) for row in written]

    def _write_alone(self, rows: Sequence[Sequence[int]], new_tokens: int, ending: StoppingCriteria) -> list[list[int]]:
        return continue_rows(
            self._model,
            self._view,
            rows,
            np.empty((len(rows), new_tokens)),
            _GREEDY,
            name=self.name,
            stopping=StoppingCriteriaList([ending]),
        )


class _Ending(StoppingCriteria):
    """Ends a row once it has ``max_bytes`` or a string of ``stop``; what is written behind that is padding."""

    def __init__(self, view: ByteView, stop: Sequence[bytes], max_bytes: int, watch: Watch, new_tokens: int) -> None:
        self._view = view
        self._stop = stop
        self._max_bytes = max_bytes
        self._watch = watch
        self._new_tokens = new_tokens
        self._steps = 0
        self._written: list[bytes] = []

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        self._steps += 1
        self._watch(min(1.0, self._steps / self._new_tokens))
        self._written = self._written or [b""] * len(input_ids)
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if self._view.kinds[token] != TokenKind.SPECIAL:
                self._written[row] += self._view.token_bytes(token) or b""
        ended = [len(data) >= self._max_bytes or any(text in data for text in self._stop) for data in self._written]
        return torch.tensor(ended, device=input_ids.device)


def _finish(data: bytes, max_bytes: int, stop: Sequence[str]) -> str:
    """The text of ``data``: at most ``max_bytes`` of it, whole characters, up to the first of ``stop``."""
    data = data[:max_bytes]
    try:
        # Not final: a character that is cut off at the end is no error.
        text = codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError as error:
        text = data[: error.start].decode()
    return text[: min((place for place in map(text.find, stop) if place >= 0), default=len(text))]


def _has_bytes(text: str) -> bool:
    """Whether UTF-8 can hold the text: it cannot hold half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
