"""Exact probabilities of bytes under a model of tokens (Phan et al., arXiv 2410.09303; evaluation.md §4).

Any byte prefix has a probability, wherever it ends: inside a token, inside a character. So a continuation has one after
any context, and the next byte a distribution, without the bias of the tokens that the context happens to be cut into.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

from alignment.byte_view import ByteView, InexactEncoding
from alignment.covers import Covers, CoverTree, Estimator
from alignment.covers_text import NotText
from alignment.tokenizer_facts import load_tokenizer
from stages.evaluation.core import Problem, Request, TextScore, Watch, ignore
from stages.evaluation.exact_bytes.masses import END, ByteMasses, Weigher
from stages.evaluation.exact_bytes.next_tokens import Group, Ids, ModelTokens, NextTokens
from stages.evaluation.text_start import TextStart
from stages.stage import StageError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from stages.evaluation.sections import Subject

_FIRST_GREEDY_BYTES = 8  # most continuations are not greedy, which their first bytes show
_GREEDY_GROWTH = 4
_MOST_COVERS = 2  # a hundred megabytes and seconds of work each, for a large vocabulary
_KNOWN_COVERS: dict[str, Covers] = {}


class Places(NamedTuple):
    """A text, and where in its bytes to ask."""

    text: bytes
    ends: Sequence[int]


class DocumentMass(NamedTuple):
    """A whole text: log-probabilities, in nats, of all its coverings and of its own tokens, and how many those are."""

    log_probability: float
    canonical: float
    tokens: int


class ExactByteScorer:
    """Scores bytes by all that a tokenizer could have made of them.

    Args:
        name: the model's row.
        covers: of its tokenizer.
        tokens: the model.
        estimator: which coverings count.
    """

    def __init__(
        self,
        name: str,
        covers: Covers,
        tokens: NextTokens,
        *,
        estimator: Estimator = "valid",
    ) -> None:
        self.name = name
        self.covers = covers
        self.estimator = estimator
        self.tokens = tokens
        self._weigher = Weigher(covers.view)

    @classmethod
    def of_model(
        cls,
        name: str,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        view: ByteView,
        start: TextStart,
        *,
        batch_tokens: int,
        estimator: Estimator = "valid",
    ) -> Self:
        """The scorer of a Hugging Face causal language model in evaluation mode.

        Args:
            view: of ``tokenizer``.
            start: what stands before every text.
            batch_tokens: tokens of one forward pass, padding included.

        Raises:
            StageError: the model's head is not one that we can compute, or no token could begin a text.
        """
        tokens = ModelTokens(model, view.vocab_size, start.start_ids, batch_tokens=batch_tokens)
        return cls(name, _covers_of(tokenizer, view), tokens, estimator=estimator)

    @classmethod
    def of_subject(cls, subject: Subject, *, batch_tokens: int, estimator: Estimator = "valid") -> Self:
        """The scorer of a model under evaluation.

        Raises:
            StageError: it is several models, or ``of_model`` refuses it.
        """
        if subject.model is None or subject.view is None or subject.path is None:
            raise StageError(f"{subject.name} is not one model: exact sums over tokens are made of single models")
        tokenizer = load_tokenizer(subject.path, trust_remote_code=False)
        start = TextStart.of(tokenizer, subject.view)
        return cls.of_model(
            subject.name, subject.model, tokenizer, subject.view, start, batch_tokens=batch_tokens, estimator=estimator
        )

    def behind(self, ids: Ids) -> Self:
        """The same scorer where the tokens ``ids``, which are no part of any text, stand before every text."""
        return type(self)(self.name, self.covers, self.tokens.behind(ids), estimator=self.estimator)

    def log_probability(self, prefixes: Sequence[bytes]) -> np.ndarray:
        """float64 [B]: log-probability, in nats, that a text begins with each of ``prefixes``.

        Raises:
            NotText: no UTF-8 text begins with one of them.
            InexactEncoding: the tokenizer spells no text that does.
            StageError: one takes more tokens than the model has positions.
        """
        found = self.masses([Places(prefix, [len(prefix)]) for prefix in prefixes], what_next=False)
        return np.array([masses.log_probability for (masses,) in found], dtype=np.float64)

    def next_byte(self, prefixes: Sequence[bytes]) -> np.ndarray:
        """float32 [B, 257]: log-probability, in nats, of every byte after each prefix, and last that the text ends.

        Each row adds up to 1. What is computed is kept for a next call with longer prefixes.

        Raises:
            NotText, InexactEncoding, StageError: as ``log_probability``.
        """
        places = [Places(prefix, [len(prefix)]) for prefix in prefixes]
        rows = [masses.next_logp for (masses,) in self.masses(places, what_next=True, remember=True)]
        return np.stack(rows) if rows else np.empty((0, END + 1), dtype=np.float32)

    def masses(
        self, places: Sequence[Places], *, what_next: bool, remember: bool = False, watch: Watch = ignore
    ) -> list[list[ByteMasses]]:
        """What the model says at each place of each text; one forward pass over a text serves all of its places.

        Args:
            what_next: whether the next byte's distribution is wanted as well.
            remember: keep what texts that go on from these will need.

        Raises:
            NotText, InexactEncoding, StageError: as ``log_probability``.
        """
        forests = [self._forest(place, what_next) for place in places]
        return self._weigh(forests, what_next=what_next, remember=remember, watch=watch)

    def documents(self, texts: Sequence[str], watch: Watch = ignore) -> list[DocumentMass]:
        """Exact and canonical probabilities of ``texts``: one pass over their own tokens, and one over what departs.

        Raises:
            InexactEncoding, StageError: as ``log_probability``.
        """
        forests = [self._forest(Places(text.encode(), [len(text.encode())]), what_next=False) for text in texts]
        # What is certain of a text is the beginning of what the tokenizer makes of it.
        canonical = [self.covers.canonical(text) for text in texts]
        groups = [Group(ids, _sequences(tree)) for ids, (tree,) in zip(canonical, forests, strict=True)]
        found = []
        for ids, (tree,), answer in zip(canonical, forests, self.tokens.answer(groups), strict=True):
            logp = answer.predictions.log_probs(slice(None)).double().cpu().numpy()
            masses = self._weigher.weigh(tree, float(answer.cumulative[len(tree.trunk)]), logp, what_next=False)
            found.append(DocumentMass(masses.log_probability, float(answer.cumulative[-1]), len(ids)))
            watch(len(found) / len(texts))
        return found

    def score(self, requests: Sequence[Request], watch: Watch = ignore) -> list[TextScore]:
        """One score a request, in order: the probability of both texts together over that of the context.

        Greedy is what writes the most probable byte each time. ``tokens`` are those of the texts' own encoding that
        reach into the continuation.
        """
        found = [self.asked(request) for request in requests]
        forests = [trees for trees in found if not isinstance(trees, str)]
        weighed = iter(self._weigh(forests, what_next=False, remember=False, watch=lambda share: watch(share / 2)))
        scores = []
        for request, trees in zip(requests, found, strict=True):
            size = len(request.continuation.encode(errors="surrogatepass"))
            if isinstance(trees, str):
                scores.append(TextScore(float("nan"), size, 0, False, trees))
                continue
            before, whole = next(weighed)
            scores.append(TextScore(before.log_probability - whole.log_probability, size, self._tokens(request), False))
        for index, greedy in self._greedy(requests, [score.problem is None for score in scores], watch).items():
            scores[index] = replace(scores[index], greedy=greedy)
        return scores

    def generate(
        self, prompts: Sequence[str], *, max_bytes: int, stop: Sequence[str] = (), watch: Watch = ignore
    ) -> list[str | None]:
        """The most probable byte each time."""
        from stages.evaluation.exact_bytes.writing import write

        return write(self, prompts, max_bytes=max_bytes, stop=stop, watch=watch)

    def _forest(self, place: Places, what_next: bool) -> list[CoverTree]:
        return [self.covers.tree(place.text[:end], estimator=self.estimator, what_next=what_next) for end in place.ends]

    def _weigh(
        self, forests: Sequence[Sequence[CoverTree]], *, what_next: bool, remember: bool, watch: Watch
    ) -> list[list[ByteMasses]]:
        groups: list[Group] = []
        homes: list[list[tuple[int, int]]] = []
        for number, trees in enumerate(forests):
            for main, members in _by_main(trees).items():
                groups.append(Group(main, [ids for index in members for ids in _sequences(trees[index])]))
                homes.append([(number, index) for index in members])
        weighed: list[list[ByteMasses | None]] = [[None] * len(trees) for trees in forests]
        answers = self.tokens.answer(groups, remember=remember)
        for done, (members, answer) in enumerate(zip(homes, answers, strict=True), start=1):
            end = 0
            for number, index in members:
                tree = forests[number][index]
                start, end = end, end + len(tree.nodes)
                logp = answer.predictions.log_probs(slice(start, end)).double().cpu().numpy()
                trunk_logp = float(answer.cumulative[len(tree.trunk)])
                weighed[number][index] = self._weigher.weigh(tree, trunk_logp, logp, what_next=what_next)
            watch(done / len(groups))
        return [[masses for masses in row if masses is not None] for row in weighed]

    def asked(self, request: Request) -> list[CoverTree] | Problem:
        """The coverings of the context and of both texts, or why there is no score."""
        if not request.continuation:
            return "empty"
        try:
            context = request.context.encode()
            text = context + request.continuation.encode()
            trees = self._forest(Places(text, [len(context), len(text)]), what_next=False)
        except (InexactEncoding, NotText, UnicodeEncodeError):
            return "not_representable"
        longest = max(len(ids) for tree in trees for ids in _sequences(tree))
        return trees if self.tokens.room(longest) else "too_long"

    def _tokens(self, request: Request) -> int:
        encoding = self.covers.view.encode(request.context + request.continuation)
        return int((encoding.byte_ends > len(request.context.encode())).sum())

    def _greedy(self, requests: Sequence[Request], scored: Sequence[bool], watch: Watch) -> dict[int, bool]:
        """For each request with a score, whether every byte of its continuation is the most probable one.

        Asks for a few bytes first and goes on where all of them were.
        """
        open_ = {index: 0 for index, has_score in enumerate(scored) if has_score}
        verdicts: dict[int, bool] = {}
        step = _FIRST_GREEDY_BYTES
        while open_:
            places = []
            for index, done in open_.items():
                context, continuation = (text.encode() for text in requests[index])
                ends = range(len(context) + done, len(context) + min(len(continuation), done + step))
                places.append(Places(context + continuation, ends))
            for index, place, found in zip(list(open_), places, self.masses(places, what_next=True), strict=True):
                agree = all(
                    int(masses.next_logp.argmax()) == place.text[end]
                    for end, masses in zip(place.ends, found, strict=True)
                )
                open_[index] += len(place.ends)
                if not agree or place.ends.stop == len(place.text):
                    verdicts[index] = agree
                    del open_[index]
            step *= _GREEDY_GROWTH
            watch(0.5 + len(verdicts) / (2 * len(scored)))
        return verdicts


def _covers_of(tokenizer: PreTrainedTokenizerBase, view: ByteView) -> Covers:
    """The coverings by a tokenizer, made once for models that share it: what they have learned of texts is kept."""
    if view.fingerprint not in _KNOWN_COVERS:
        while len(_KNOWN_COVERS) >= _MOST_COVERS:
            del _KNOWN_COVERS[next(iter(_KNOWN_COVERS))]
        _KNOWN_COVERS[view.fingerprint] = Covers(tokenizer, view)
    return _KNOWN_COVERS[view.fingerprint]


def _by_main(trees: Sequence[CoverTree]) -> dict[Ids, list[int]]:
    """The trees by the sequence that one pass is made over: the longest trunk, or their own where that departs."""
    longest = max((tree.trunk for tree in trees), key=len, default=())
    found: dict[Ids, list[int]] = {}
    for index, tree in enumerate(trees):
        main = longest if longest[: len(tree.trunk)] == tree.trunk else tree.trunk
        found.setdefault(main, []).append(index)
    return found


def _sequences(tree: CoverTree) -> list[Ids]:
    """The token sequence of every node."""
    return [(*tree.trunk, *node.path) for node in tree.nodes]
