"""An ensemble of models of any tokenizers: their exact next-byte distributions as one.

Legend: M members, R places in a text, 257 the bytes and the end of the text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from stages.evaluation.core import Problem, Request, TextScore, Watch, ignore
from stages.evaluation.ensembles.means import Combination
from stages.evaluation.ensembles.reading import Reading, unread
from stages.evaluation.exact_bytes.masses import END, ByteMasses
from stages.evaluation.exact_bytes.scorer import ExactByteScorer, Places
from stages.evaluation.exact_bytes.writing import write
from stages.stage import StageError

_BYTES_AT_ONCE = 1024  # of continuations; of each, every member has 257 numbers


class ByteEnsemble:
    """Scores and writes text byte by byte.

    At every byte each member has its exact distribution over what comes next (``ExactByteScorer``), which adds up to 1;
    the ensemble's is their combination. Of a mixture, the probability of a text is the weighted mean of the texts'
    exact probabilities, and each next-byte distribution follows from the members' weights by what they made of the
    bytes before.

    Args:
        name: the ensemble's row.
        members: two models or more.
        combination: for as many.
    """

    def __init__(self, name: str, members: Sequence[ExactByteScorer], combination: Combination) -> None:
        self.name = name
        self.members = tuple(member.name for member in members)
        self._members = members
        self._combination = combination
        self._known: dict[Request, Reading] = {}  # sections ask the same, and every byte is dear

    def next_byte(self, prefixes: Sequence[bytes]) -> np.ndarray:
        """float32 [B, 257]: log-probability, in nats, of every byte after each prefix, and last that the text ends.

        Raises:
            NotText: no UTF-8 text begins with a prefix.
            InexactEncoding: the tokenizer of a member spells no text that does.
            StageError: a prefix takes more tokens than a member has positions.
        """
        if not prefixes:
            return np.empty((0, END + 1), dtype=np.float32)
        places = [Places(prefix, [len(prefix)]) for prefix in prefixes]
        found = [
            [masses for (masses,) in member.masses(places, what_next=True, remember=True)] for member in self._members
        ]
        return self._combination(map(_stacked, found), _evidence(found)).float().numpy()

    def score(self, requests: Sequence[Request], watch: Watch = ignore) -> list[TextScore]:
        """One score a request, in order. A token is a byte."""
        return [reading.score for reading in self.read(requests, watch)]

    def read(self, requests: Sequence[Request], watch: Watch = ignore) -> list[Reading]:
        """One reading a request, in order; of requests that were read before, the same ones.

        Raises:
            StageError: the ensemble gives some continuation no probability at all.
        """
        new = list(dict.fromkeys(request for request in requests if request not in self._known))
        done = 0
        for batch in _batches(new):

            def part(share: float, start: int = done, size: int = len(batch)) -> None:
                watch((start + share * size) / len(new))

            self._known.update(zip(batch, self._read(batch, part), strict=True))
            done += len(batch)
        return [self._known[request] for request in requests]

    def generate(
        self, prompts: Sequence[str], *, max_bytes: int, stop: Sequence[str] = (), watch: Watch = ignore
    ) -> list[str | None]:
        """The most probable byte each time; ``exact_bytes.writing.sample`` draws."""
        return write(self, prompts, max_bytes=max_bytes, stop=stop, watch=watch)

    def _read(self, requests: Sequence[Request], watch: Watch) -> list[Reading]:
        problems = [self._problem(request) for request in requests]
        places = [self._places(request) for request, problem in zip(requests, problems, strict=True) if problem is None]
        masses = []
        for number, member in enumerate(self._members):

            def part(share: float, number: int = number) -> None:
                watch((number + share) / len(self._members))

            masses.append(member.masses(places, what_next=True, watch=part))
        found, asked = zip(*masses, strict=True), iter(places)
        return [
            self._reading(next(asked), next(found)) if problem is None else unread(request, problem)
            for request, problem in zip(requests, problems, strict=True)
        ]

    def _problem(self, request: Request) -> Problem | None:
        found = (member.asked(request) for member in self._members)
        return next((problem for problem in found if isinstance(problem, str)), None)

    def _reading(self, places: Places, members: Sequence[Sequence[ByteMasses]]) -> Reading:
        """The reading of one continuation, of which ``members`` have every place that ``_places`` gave."""
        written = torch.tensor(list(places.text[places.ends[0] :]))
        before = [masses[: len(written)] for masses in members]
        each = [_stacked(masses) for masses in before]
        logp = self._combination(each, _evidence(before))
        if self._combination.by_evidence:
            first, last = (_evidence([[masses[end]] for masses in members]) for end in (0, -1))
            alone = (first - last).flatten()
            prior = self._combination.posterior(None)
            nats = float((prior + first).logsumexp(0) - (prior + last).logsumexp(0))
        else:
            alone = -torch.stack([own.gather(1, written[:, None]).sum() for own in each])
            nats = -float(logp.gather(1, written[:, None]).sum())
        if not math.isfinite(nats):
            raise StageError(f"{self.name} gives {places.text[-24:]!r} no probability; take mean: arithmetic")
        greedy = torch.stack([own.argmax(1) for own in each])
        return Reading(
            TextScore(nats, len(written), len(written), bool((logp.argmax(1) == written).all())),
            tuple(alone.tolist()),
            int((greedy != greedy[0]).any(0).sum()),
        )

    def _places(self, request: Request) -> Places:
        """Before every byte of the continuation; of a mixture, at its end as well."""
        context, continuation = (text.encode() for text in request)
        count = len(continuation) + self._combination.by_evidence
        return Places(context + continuation, range(len(context), len(context) + count))


def _evidence(members: Sequence[Sequence[ByteMasses]]) -> torch.Tensor:
    """What each member gives to the bytes before each of R places: float64 [M, R], in nats."""
    return torch.tensor([[place.log_probability for place in masses] for masses in members], dtype=torch.float64)


def _stacked(masses: Sequence[ByteMasses]) -> torch.Tensor:
    """Next-byte log-probabilities [R, 257], float64."""
    return torch.from_numpy(np.stack([place.next_logp for place in masses])).double()


def _batches(requests: Sequence[Request]) -> Iterator[list[Request]]:
    batch: list[Request] = []
    size = 0
    for request in requests:
        batch.append(request)
        size += len(request.continuation)
        if size >= _BYTES_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
