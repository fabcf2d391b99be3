"""Coverings of a text by a tokenizer's valid encodings, and the exact probabilities that follow from them.

Source: Phan et al., arXiv 2410.09303 (bytes), and Phan, Khisti, Ullrich, arXiv 2512.14954 (tokens of a smaller
vocabulary); evaluation.md §4. What is said here about symbols holds for both: each token stands for a sequence of
symbols, its bytes or the smaller vocabulary's tokens that it decomposes into.

A sequence of tokens is *valid* if it is what encoding gives for what it spells. A *covering* of some symbols is a valid
sequence that spells them, and perhaps more, and whose last token holds the last of them. The probability that a text
begins with the symbols is the sum over their coverings (byte-token representation lemma). It is exact for a model that
gives invalid sequences no probability; what a real model leaks on these is not counted.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from alignment.byte_models import ByteModel
from alignment.byte_view import ByteView
from alignment.prefix_tree import PrefixTree, prefix_tree
from alignment.special_tokens import Roles
from alignment.table_cache import cached_arrays
from alignment.token_index import TokenIndex
from alignment.vocab import align_vocabularies

Symbols = tuple[int, ...]
Encode = Callable[[Symbols], list[int] | None]
"""Symbols -> the tokens that the tokenizer makes of them; None if it cannot."""
LanguageModel = Callable[[tuple[int, ...]], Sequence[float]]
"""Token ids so far -> log-probability of every next id, in nats."""


class NotASubset(ValueError):
    """A vocabulary holds tokens that the other one lacks, or cannot spell all of its tokens."""


class CoverEncodings:
    """The coverings of any symbols by one vocabulary.

    Args:
        spellings: token id -> its symbols; without tokens that have none.
        encode: the tokenizer, on symbols.
    """

    def __init__(self, spellings: Mapping[int, Sequence[int]], encode: Encode) -> None:
        self._sorted = sorted((tuple(symbols), token) for token, symbols in spellings.items())
        self._spelling = {token: symbols for symbols, token in self._sorted}
        self._longest = max(map(len, self._spelling.values()))
        self._encode = encode

    def coverings(self, prefix: Sequence[int]) -> list[tuple[int, ...]]:
        """All coverings of ``prefix``, in no particular order; of no symbols, the empty sequence."""
        prefix = tuple(prefix)
        if not prefix:
            return [()]
        found = []
        for cut in range(max(0, len(prefix) - self._longest), len(prefix)):
            # A valid sequence is the encoding of what it spells, so there is one at most before each last token.
            before = self._valid(prefix[:cut])
            if before is not None:
                lasts = (token for token in self._beginning_with(prefix[cut:]))
                found += [covering for last in lasts if self._is_valid(covering := (*before, last))]
        return found

    def log_probability(self, prefix: Sequence[int], model: LanguageModel) -> float:
        """Log-probability in nats that a text begins with ``prefix``; -inf if it cannot."""
        return _log_sum(_log_probability(covering, model) for covering in self.coverings(prefix))

    def next_symbols(self, prefix: Sequence[int], model: LanguageModel) -> dict[int, float]:
        """Probability of each next symbol after ``prefix``; what they lack to 1 is that the text ends there.

        The model is asked once for every place where the last token of a covering may begin.
        """
        prefix = tuple(prefix)
        parts: dict[int, list[float]] = defaultdict(list)
        total = []
        for covering in self.coverings(prefix):
            logp = _log_probability(covering, model)
            total.append(logp)
            spelled = self._spell(covering)
            if len(spelled) > len(prefix):
                parts[spelled[len(prefix)]].append(logp)
                continue
            following = model(covering)
            for token, symbols in self._spelling.items():
                if following[token] > -math.inf and self._is_valid((*covering, token)):
                    parts[symbols[0]].append(logp + float(following[token]))
        return {symbol: math.exp(_log_sum(logps) - _log_sum(total)) for symbol, logps in parts.items()}

    def _spell(self, tokens: Sequence[int]) -> Symbols:
        return tuple(itertools.chain.from_iterable(self._spelling[token] for token in tokens))

    def _valid(self, symbols: Symbols) -> tuple[int, ...] | None:
        tokens = self._encode(symbols) if symbols else []
        return None if tokens is None or self._spell(tokens) != symbols else tuple(tokens)

    def _is_valid(self, tokens: tuple[int, ...]) -> bool:
        return self._valid(self._spell(tokens)) == tokens

    def _beginning_with(self, symbols: Symbols) -> list[int]:
        start = bisect.bisect_left(self._sorted, (symbols, -1))
        beginning = itertools.takewhile(
            lambda entry: entry[0][: len(symbols)] == symbols, itertools.islice(self._sorted, start, None)
        )
        return [token for _, token in beginning]


def decomposition_tree(
    student: ByteView,
    teacher: ByteView,
    student_model: ByteModel,
    *,
    student_roles: Roles,
    teacher_roles: Roles,
    directory: Path | None = None,
) -> PrefixTree:
    """The student tokens that every teacher token decomposes into, as a tree.

    A special token of the teacher is the student's of the same role or string, or has no sequence.

    Args:
        student_model: the student tokenizer's own model on bytes (``byte_model``), for tokens that are no text.
        directory: where to keep the tree.

    Raises:
        NotASubset: a student token's bytes are no token of the teacher, or a teacher token has no decomposition.
    """

    def build() -> Mapping[str, np.ndarray]:
        _check_subset(student, teacher)
        alignment = align_vocabularies(
            student, teacher, model=student_model, source_roles=student_roles, target_roles=teacher_roles
        )
        undone = np.flatnonzero((alignment.piece_counts == 0) & (teacher.byte_lengths > 0))
        if len(undone):
            raise NotASubset(
                f"{len(undone):,} of the teacher's {teacher.vocab_size:,} tokens cannot be spelled by the student's "
                f"tokenizer, the first of them {teacher.token_bytes(int(undone[0]))!r}"
            )
        return prefix_tree(alignment.pieces, alignment.offsets).arrays()

    identity = [
        student.fingerprint,
        teacher.fingerprint,
        *sorted(student_roles.items()),
        *sorted(teacher_roles.items()),
    ]
    fingerprint = hashlib.sha256(repr(identity).encode()).hexdigest()
    return PrefixTree(**cached_arrays(directory, "decompositions-1", fingerprint, build))


def _check_subset(student: ByteView, teacher: ByteView) -> None:
    index = TokenIndex(teacher)
    tokens = np.flatnonzero(student.byte_lengths).tolist()
    lacking = [token for token in tokens if index.find(student.token_bytes(token) or b"") is None]
    if lacking:
        raise NotASubset(
            f"{len(lacking):,} of the student's {len(tokens):,} tokens are no tokens of the teacher, the first of them "
            f"{student.token_bytes(lacking[0])!r}"
        )


def _log_probability(tokens: tuple[int, ...], model: LanguageModel) -> float:
    return sum(float(model(tokens[:index])[token]) for index, token in enumerate(tokens))


def _log_sum(logps: Sequence[float]) -> float:
    logps = list(logps)
    largest = max(logps, default=-math.inf)
    if largest == -math.inf:
        return largest
    return largest + math.log(sum(math.exp(logp - largest) for logp in logps))
