"""An ensemble of models that share a tokenizer: their next-token distributions as one, without [B, T, V] kept.

Legend: M members, B texts of a batch, N predicted tokens of all texts, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import StoppingCriteria

from alignment.byte_view import ByteView
from losses.predictions import LinearHead
from stages.evaluation.core import Request, TextScore, Watch, ignore
from stages.evaluation.ensembles.lock_step import write_together
from stages.evaluation.ensembles.means import Combination
from stages.evaluation.ensembles.reading import Reading, unread
from stages.evaluation.scoring import (
    LOGITS_BLOCK,
    ModelScores,
    TokenRow,
    base_states,
    batches,
    checked_head,
    positions_of,
    score_rows,
)
from stages.evaluation.text_start import TextStart
from stages.evaluation.token_scorer import RequestRow, TokenScorer
from stages.generation.sampling import Sampling
from stages.stage import StageError

_GREEDY = Sampling(temperature=0)


@dataclass(frozen=True)
class Member:
    """One model.

    Attributes:
        name: its row.
        model: a causal language model in evaluation mode; it may have rows beyond the vocabulary, which never enter.
        start: what stands before a text; members may differ in it.
        vocab_size: of the shared tokenizer.
    """

    name: str
    model: nn.Module
    start: TextStart
    vocab_size: int

    @cached_property
    def head(self) -> LinearHead:
        """The output head at no positions.

        Raises:
            StageError: it is not one that we can compute, or its logits are not finite.
        """
        return checked_head(self.model, self.vocab_size, [*self.start.start_ids, *range(min(8, self.vocab_size))])

    @property
    def room(self) -> int | None:
        """Tokens of text that the model can read; None where its configuration does not say."""
        positions = positions_of(self.model)
        return None if positions is None else positions - len(self.start.start_ids)


@dataclass(frozen=True)
class _Text:
    """One text as every member reads it.

    Attributes:
        ids: of each member, int32; they differ in the special tokens in front alone.
        predicted: how many tokens at the end are predicted: the scored ones, and of the context those before which
            every member has a token.
        scored: how many tokens at the end are scored.
    """

    ids: tuple[np.ndarray, ...]
    predicted: int
    scored: int

    @classmethod
    def of(cls, rows: Sequence[RequestRow]) -> _Text:
        """From each member's row of one request."""
        text = len(rows[0].ids) - rows[0].special
        return cls(
            tuple(row.ids for row in rows),
            text - (0 if all(row.special for row in rows) else 1),
            len(rows[0].ids) - rows[0].first_scored,
        )


class _Predicted(NamedTuple):
    """Predicted tokens: log-probabilities in nats, float32 [N], and most probable tokens, int64 [N], of the ensemble;
    those of the members, [M, N]."""

    logp: Tensor
    greedy: Tensor
    alone: Tensor
    alone_greedy: Tensor


class TokenEnsemble:
    """Scores and writes text token by token, with all members in lock-step.

    Args:
        name: the ensemble's row.
        members: two models or more.
        view: the tokenizer that they share.
        combination: for as many.
        batch_tokens: tokens of one forward pass, padding included.
    """

    def __init__(
        self, name: str, members: Sequence[Member], view: ByteView, combination: Combination, *, batch_tokens: int
    ) -> None:
        self.name = name
        self.members = tuple(member.name for member in members)
        self._members = members
        self._combination = combination
        self._batch_tokens = batch_tokens
        self._view = view
        self._scorers = [
            TokenScorer(member.name, member.model, view, member.start, batch_tokens=batch_tokens) for member in members
        ]

    def score(self, requests: Sequence[Request], watch: Watch = ignore) -> list[TextScore]:
        """One score a request, in order."""
        return [reading.score for reading in self.read(requests, watch)]

    def read(self, requests: Sequence[Request], watch: Watch = ignore) -> list[Reading]:
        """One reading a request, in order; what one member cannot be asked, the ensemble cannot.

        Raises:
            StageError: a member's log-probabilities are not finite.
        """
        found = list(zip(*(scorer.rows(requests) for scorer in self._scorers), strict=True))
        problems = [next((row for row in rows if isinstance(row, str)), None) for rows in found]
        texts = [_Text.of(rows) for rows, problem in zip(found, problems, strict=True) if problem is None]
        predicted = iter(self._predict(texts, watch))
        readings = []
        for request, problem in zip(requests, problems, strict=True):
            if problem is not None:
                readings.append(unread(request, problem))
                continue
            tokens, written = next(predicted)
            nats, *alone = (-tokens_logp.double().sum() for tokens_logp in (tokens.logp, *tokens.alone))
            greedy = bool((tokens.greedy == written).all())
            score = TextScore(float(nats), len(request.continuation.encode()), len(written), greedy)
            differ = (tokens.alone_greedy != tokens.alone_greedy[0]).any(0)
            readings.append(Reading(score, tuple(map(float, alone)), int(differ.sum())))
        return readings

    def score_rows(self, rows: Sequence[TokenRow], watch: Watch = ignore) -> ModelScores:
        """All scored tokens of ``rows``, before which stands what each member's tokenizer adds.

        Raises:
            StageError: a row is longer than a member's positions, or log-probabilities are not finite.
        """
        longest = max((len(row.ids) for row in rows), default=0)
        for member in self._members:
            if member.room is not None and longest > member.room:
                raise StageError(
                    f"{member.name}: a window takes {longest} tokens, the model has room for {member.room}; lower "
                    "window_bytes"
                )
        texts = [
            _Text.of([_behind(member.start.prefix_ids, row.ids, row.first_scored) for member in self._members])
            for row in rows
        ]
        scored = [tokens for tokens, _ in self._predict(texts, watch)]
        empty = torch.empty(0)
        return ModelScores(
            torch.cat([empty, *(tokens.logp for tokens in scored)]).numpy().astype(np.float32),
            torch.cat([empty, *(tokens.greedy for tokens in scored)]).numpy().astype(np.int32),
        )

    def generate(
        self, prompts: Sequence[str], *, max_bytes: int, stop: Sequence[str] = (), watch: Watch = ignore
    ) -> list[str | None]:
        """Greedy continuations.

        Raises:
            StageError: a member's logits are not finite.
        """
        return self._writer(_GREEDY).generate(prompts, max_bytes=max_bytes, stop=stop, watch=watch)

    def sample(
        self,
        prompts: Sequence[str],
        sampling: Sampling,
        seed: int,
        *,
        max_bytes: int,
        stop: Sequence[str] = (),
        watch: Watch = ignore,
    ) -> list[str | None]:
        """Continuations drawn from the ensemble; each is a function of ``seed`` and its prompt, whatever stands beside
        it.

        Raises:
            StageError: a member's logits are not finite.
        """
        return self._writer(sampling, seed).generate(prompts, max_bytes=max_bytes, stop=stop, watch=watch)

    def _writer(self, sampling: Sampling, seed: int = 0) -> TokenScorer:
        """Turns prompts into tokens and tokens into text, with the first member's tokens in front."""
        first = self._members[0]
        rooms = [member.room for member in self._members if member.room is not None]

        def write(rows: Sequence[Sequence[int]], new_tokens: int, ending: StoppingCriteria) -> list[list[int]]:
            texts = [_without_start(row, first.start) for row in rows]
            return write_together(
                self._members, self._combination, self._view, texts, new_tokens, ending, sampling=sampling, seed=seed
            )

        return TokenScorer(
            self.name,
            first.model,
            self._view,
            first.start,
            batch_tokens=self._batch_tokens,
            positions=min(rooms) + len(first.start.start_ids) if rooms else None,
            write=write,
        )

    @torch.inference_mode()
    def _predict(self, texts: Sequence[_Text], watch: Watch) -> list[tuple[_Predicted, Tensor]]:
        """What is said of the scored tokens of each text, and these tokens, int64."""
        results: list[tuple[_Predicted, Tensor] | None] = [None] * len(texts)
        total, done = sum(text.scored for text in texts), 0
        for batch in batches([max(map(len, text.ids)) for text in texts], self._batch_tokens):
            chosen = [texts[index] for index in batch]
            ids = np.concatenate([text.ids[0][len(text.ids[0]) - text.predicted :] for text in chosen])
            labels = torch.from_numpy(ids).long()
            predicted = self._predict_batch(chosen, labels)
            if not predicted.logp.isfinite().all():
                raise StageError(f"{self.name}: some log-probabilities are not finite; a member is broken")
            end = 0
            for index, text in zip(batch, chosen, strict=True):
                end += text.predicted
                scored = slice(end - text.scored, end)
                results[index] = _Predicted(*(values[..., scored] for values in predicted)), labels[scored]
                done += text.scored
            watch(done / total)
        return [result for result in results if result is not None]

    def _predict_batch(self, texts: Sequence[_Text], labels: Tensor) -> _Predicted:
        heads = [self._head(index, texts) for index in range(len(self._members))]
        alone = [tuple(part.cpu() for part in score_rows(head, labels.to(head.weight.device))) for head in heads]
        alone_logp, alone_greedy = (torch.stack(parts) for parts in zip(*alone, strict=True))
        evidence = _before(alone_logp, [text.predicted for text in texts])
        block = max(1, LOGITS_BLOCK // heads[0].vocab_size)
        device = heads[0].weight.device  # members may lie on several
        logp, greedy = [], []
        for start in range(0, len(labels), block):
            rows = slice(start, start + block)
            whole = self._combination((head.log_probs(rows).float().to(device) for head in heads), evidence[:, rows])
            logp.append(whole.gather(1, labels[rows, None].to(device)).squeeze(1).cpu())
            greedy.append(whole.argmax(1).cpu())
        return _Predicted(torch.cat(logp), torch.cat(greedy), alone_logp, alone_greedy)

    def _head(self, index: int, texts: Sequence[_Text]) -> LinearHead:
        """A member's output head at the places before all predicted tokens."""
        member = self._members[index]
        ids = [torch.from_numpy(text.ids[index]).long() for text in texts]
        # Attention is causal and padding stands on the right: no place that is used sees it, so no mask is needed.
        hidden = base_states(member.model, nn.utils.rnn.pad_sequence(ids, batch_first=True).to(member.model.device))
        before = [
            states[len(own) - text.predicted - 1 : len(own) - 1]
            for states, own, text in zip(hidden, ids, texts, strict=True)
        ]
        return replace(member.head, hidden=torch.cat(before).to(member.head.weight.device))


def _behind(special: Sequence[int], ids: np.ndarray, first_scored: int) -> RequestRow:
    return RequestRow(
        np.concatenate([np.array(special, dtype=np.int32), ids]), len(special), len(special) + first_scored
    )


def _without_start(row: Sequence[int], start: TextStart) -> list[int]:
    """A prompt's own tokens; a prompt without any is its start alone."""
    return [] if tuple(row) == start.start_ids else list(row[len(start.prefix_ids) :])


def _before(logp: Tensor, sizes: Sequence[int]) -> Tensor:
    """What each member gave to all predicted tokens before each of them: float64 [M, N] for ``logp`` [M, N] of texts
    of ``sizes`` tokens."""
    parts = logp.double().split(list(sizes), dim=1)
    return torch.cat([part.cumsum(1) - part for part in parts], dim=1)
