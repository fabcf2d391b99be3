"""The coverings of a byte prefix by a tokenizer's valid encodings, as a small tree behind one certain trunk.

Source: Phan et al., arXiv 2410.09303 (byte-token representation lemma); Hayase et al., arXiv 2506.14123 (trees of
coverings); evaluation.md §4, §5. ``alignment.cover_encodings`` has the same by definition, slowly.

A *covering* of a prefix is a valid sequence of tokens (``alignment.covers_validity``) that spells it, and perhaps more,
and whose last token holds its last byte. The probability that a text begins with the prefix is the sum over its
coverings, exactly for a model that gives invalid sequences nothing.

An end of a token is *certain* where no token of the vocabulary could lie across it, whatever follows the prefix: every
sequence of tokens has an end there. Before the last certain end all coverings are one sequence, the trunk; the tree is
made of what comes after it.

Legend: V vocabulary, N tokens.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from alignment.byte_trie import ByteTrie
from alignment.byte_view import ByteView, InexactEncoding
from alignment.covers_text import futures, split_text
from alignment.covers_tokenizer import spelled_encoder, validity_of
from alignment.covers_validity import Begun

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Estimator = Literal["valid", "all"]
"""Which coverings count: ``valid`` ones only; or ``all`` whose tokens before the last one are valid, with any last
token that fits. A model that gives invalid sequences nothing makes no difference between the two."""


@dataclass(frozen=True)
class CoverNode:
    """A valid sequence of tokens after the trunk that spells a part of the prefix, or all of it.

    Attributes:
        path: the tokens.
        parent: index of the node with all of them but the last; -1 for the trunk itself.
        lasts: int64 [N], the tokens that make a covering when put after ``path``; none where ``path`` is all.
        following: bool [V], what may come after ``path`` where it spells the prefix; None elsewhere, and where that was
            not asked for.
        may_end: the text may end after ``path``.
    """

    path: tuple[int, ...]
    parent: int
    lasts: np.ndarray
    following: np.ndarray | None = None
    may_end: bool = False


@dataclass(frozen=True)
class CoverTree:
    """The coverings of one prefix: parents stand before their children, and the first node is the trunk.

    Attributes:
        prefix: the bytes, after a space that the tokenizer puts in front of a text.
        trunk: the tokens up to the last certain end.
        start: bytes that they spell.
    """

    prefix: bytes
    trunk: tuple[int, ...]
    start: int
    nodes: tuple[CoverNode, ...]


@dataclass(frozen=True)
class _Branch:
    """A node as it grows: what it spells of the bytes after the trunk, and what matters to the next token."""

    path: tuple[int, ...]
    parent: int
    spelled: int
    begun: Begun

    def then(self, token: int, data: bytes, index: int) -> _Branch:
        """The node behind ``token``; ``index`` is this node's own."""
        return _Branch((*self.path, token), index, self.spelled + len(data), self.begun.then(token, data))


class Covers:
    """The coverings of any byte prefix by one tokenizer.

    Args:
        tokenizer: a Hugging Face tokenizer.
        view: its byte view.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, view: ByteView) -> None:
        self.view = view
        self._spelled = [view.token_bytes(token) or b"" for token in range(view.vocab_size)]
        self._tokens = np.array(sorted(np.flatnonzero(view.byte_lengths).tolist(), key=self._spelled.__getitem__))
        self._entries = [self._spelled[token] for token in self._tokens.tolist()]
        self._longest = int(view.byte_lengths.max(initial=1))
        self._trie = ByteTrie.from_view(view)
        self._goes_on = np.zeros(len(self._trie.start), dtype=bool)
        self._goes_on[self._trie.parent()[1:]] = True
        self._encode, self._put_in_front = spelled_encoder(view)
        self._validity = validity_of(tokenizer, view, self._encode)

    @property
    def method(self) -> str:
        """How valid sequences are told from others, for reports."""
        return self._validity.method

    def tree(self, prefix: bytes, *, estimator: Estimator = "valid", what_next: bool = True) -> CoverTree:
        """The coverings of ``prefix`` and what may come after it.

        Args:
            what_next: whether the latter is wanted; without it there are no nodes for sequences that spell all of
                ``prefix``, but for the trunk itself.

        Raises:
            NotText: no UTF-8 text begins with ``prefix``.
            InexactEncoding: the tokenizer does not spell the texts that begin with ``prefix``.
        """
        lead = self._put_in_front(prefix)
        spelled = lead + prefix
        text, rest = split_text(spelled)
        # An end of a token at the prefix's own end is certain, but all tokens that end there count.
        trunk, ends, whole = self._trunk(text, rest, lead, len(spelled) - (estimator == "all"))
        start = int(ends[-1]) if len(ends) else 0
        starts = np.append(0, ends)
        first = self._validity.first(text, rest, starts, trunk)
        begun = Begun(spelled[starts[first] : start], tuple(trunk[first:].tolist()))
        ids = tuple(trunk.tolist())
        nodes: list[CoverNode] = []
        length = len(spelled) - start
        for branch, lasts in _pruned(self._grow(spelled[start:], begun, estimator), length if what_next else None):
            finished = branch.spelled == length
            following = self._following(branch.begun, estimator) if finished and what_next else None
            may_end = finished and (estimator == "all" or (not rest and whole == (*ids, *branch.path)))
            nodes.append(CoverNode(branch.path, branch.parent, lasts, following, may_end))
        if length and not any(len(node.lasts) for node in nodes):
            raise self._inexact(text.removeprefix(lead.decode()), rest)
        return CoverTree(spelled, ids, start, tuple(nodes))

    def canonical(self, text: str) -> tuple[int, ...]:
        """The tokens of a whole text.

        Raises:
            InexactEncoding: they do not spell it.
        """
        return tuple(self.view.encode(text).ids.tolist())

    def _trunk(
        self, text: str, rest: bytes, lead: bytes, latest: int
    ) -> tuple[np.ndarray, np.ndarray, tuple[int, ...] | None]:
        """The tokens before the last certain end up to ``latest``, their ends, and all tokens of ``text`` by itself."""
        alone, *others = self._encode([text + end for end in ("", *futures(text, rest))])
        if alone is None and text.encode() != lead:
            raise self._inexact(text.encode()[len(lead) :].decode(), rest)
        found = [ids for ids in others if ids is not None]
        if not found:  # the tokenizer has few characters, and none that stands for its kind
            found = [ids for ids in self._encode([text + end for end in futures(text, b"")]) if ids is not None]
        shared = _common_start(found)
        ends = np.cumsum(self.view.byte_lengths[shared], dtype=np.int64)
        ends = ends[ends <= min(len(text.encode()), latest)]
        certain = np.flatnonzero(self._certain(text.encode() + rest)[ends])
        kept = int(certain[-1]) + 1 if len(certain) else 0
        return shared[:kept], ends[:kept], None if alone is None else tuple(alone.tolist())

    def _certain(self, data: bytes) -> np.ndarray:
        """bool [bytes + 1]: the places between characters that no token of the vocabulary could lie across."""
        values, starts = np.frombuffer(data, np.uint8), np.arange(len(data))
        node, depth = self._trie.walk(values, starts, np.full(len(data), len(data)))
        longest = self._trie.longest[node]
        reach = starts + np.where(longest >= 0, self.view.byte_lengths[longest], 0)
        reach[(starts + depth == len(data)) & self._goes_on[node]] = len(data) + 1
        across = np.maximum.accumulate(np.append(0, reach))
        continues = np.append((values & 0xC0) == 0x80, False)
        return (across <= np.arange(len(data) + 1)) & ~continues

    def _grow(self, rest: bytes, begun: Begun, estimator: Estimator) -> list[tuple[_Branch, np.ndarray]]:
        """Every node with its last tokens, parents before their children."""
        grown: list[tuple[_Branch, np.ndarray]] = []
        waiting = deque([_Branch((), -1, 0, begun)])
        while waiting:
            branch = waiting.popleft()
            left = rest[branch.spelled :]
            lasts = self._beginning_with(left) if left else np.empty(0, dtype=np.int64)
            inner = self._inside(left)
            valid = self._validity.following(branch.begun, inner)
            if estimator == "valid":
                lasts = lasts[self._validity.following(branch.begun, lasts)]
            waiting += [branch.then(token, self._spelled[token], len(grown)) for token in inner[valid].tolist()]
            grown.append((branch, lasts))
        return grown

    def _following(self, begun: Begun, estimator: Estimator) -> np.ndarray:
        """bool [V]: the tokens with bytes that may come next."""
        following = self.view.byte_lengths > 0
        if estimator == "valid":
            following[self._tokens] = self._validity.following(begun, self._tokens)
        return following

    def _beginning_with(self, data: bytes) -> np.ndarray:
        """int64 [N]: the tokens that begin with ``data``, themselves ``data`` or longer."""
        first = bisect.bisect_left(self._entries, data)
        end = bisect.bisect_right(self._entries, data, lo=first, key=lambda entry: entry[: len(data)])
        return self._tokens[first:end]

    def _inside(self, data: bytes) -> np.ndarray:
        """int64 [N]: the tokens that ``data`` begins with, all of it at most."""
        found: list[int] = []
        for size in range(1, min(self._longest, len(data)) + 1):
            first = bisect.bisect_left(self._entries, data[:size])
            found += self._tokens[first : bisect.bisect_right(self._entries, data[:size], lo=first)].tolist()
        return np.array(found, dtype=np.int64)

    def _inexact(self, text: str, rest: bytes) -> InexactEncoding:
        """Why no text that begins so is spelled by its tokens."""
        try:
            self.view.encode(text)
        except InexactEncoding as error:
            return error
        return InexactEncoding(
            f"tokenizer {self.view.name!r} spells no text that goes on with the incomplete character {rest!r} after "
            f"{text[-16:]!r}",
            len(text.encode()),
        )


def _pruned(grown: Sequence[tuple[_Branch, np.ndarray]], length: int | None) -> list[tuple[_Branch, np.ndarray]]:
    """The nodes that lead somewhere: to a covering, or to a sequence that spells all ``length`` bytes."""
    needed = [len(lasts) > 0 or branch.spelled == length for branch, lasts in grown]
    needed[0] = True
    for index in range(len(grown) - 1, 0, -1):
        needed[grown[index][0].parent] |= needed[index]
    number = np.cumsum(needed) - 1
    return [
        (replace(branch, parent=int(number[branch.parent]) if branch.parent >= 0 else -1), lasts)
        for (branch, lasts), keep in zip(grown, needed, strict=True)
        if keep
    ]


def _common_start(sequences: Sequence[np.ndarray]) -> np.ndarray:
    """The longest sequence that all begin with."""
    length = min(map(len, sequences))
    same = np.all([sequence[:length] == sequences[0][:length] for sequence in sequences], axis=0)
    return sequences[0][: length if same.all() else int(np.argmin(same))]
