"""StochasTok: replacing tokens at random by two tokens that spell the same bytes.

Source: Sims et al., StochasTok, arXiv 2506.01687; stochastok.md §1 to §4. Here is which tokens can be split and how;
``split_laws`` has the two laws by which splits are drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from alignment.byte_view import ByteView
from alignment.split_laws import ExpansionLaw, Rounding, attempts_of, binomial, steps
from alignment.table_cache import Arrays, cached_arrays
from alignment.token_codecs import TokenAffix
from alignment.token_table import TokenKind

_CACHE_KIND = "splits-1"


@dataclass(frozen=True)
class Expansion:
    """A sequence of T tokens after its splits, U in all.

    Attributes:
        ids: int32 [U].
        origin: int64 [U], for each the index of the token that it came from, so that labels and masks can follow.
    """

    ids: np.ndarray
    origin: np.ndarray


@dataclass(frozen=True)
class SplitTable:
    """Every way to write a token as two tokens of the same vocabulary, in compressed sparse rows.

    The splits of token t are the entries k with ``offsets[t] <= k < offsets[t + 1]``, first cut first.

    Attributes:
        offsets: int64 [V + 1].
        left: int32 [splits], ids of the first halves.
        right: int32 [splits], ids of the second halves.
        left_bytes: int32 [splits], bytes of the first half.
        inside_character: bool [splits], cuts of a UTF-8 character, which are legal and lossless.
    """

    offsets: np.ndarray
    left: np.ndarray
    right: np.ndarray
    left_bytes: np.ndarray
    inside_character: np.ndarray

    @classmethod
    def from_view(
        cls,
        view: ByteView,
        *,
        cuts_inside_characters: bool = True,
        byte_fallback_pairs: bool = False,
        directory: Path | None = None,
    ) -> SplitTable:
        """Cut every ordinary token at every byte and keep the cuts whose halves are both ordinary tokens.

        Special, added and byte-fallback tokens are neither split nor used as halves (stochastok.md §3). Where the
        spelling of tokens tells their place in a word, halves fit the whole's: ``##ing`` becomes ``##in`` and ``##g``,
        and only a second half may end a word. Of several tokens that fit, the lowest id is the half.

        Args:
            cuts_inside_characters: keep cuts inside a UTF-8 character, as byte-level vocabularies have them.
            byte_fallback_pairs: split a character of two bytes that is a token into its two byte-fallback tokens, where
                it has no other split there.
            directory: where tables are kept, by the vocabulary's fingerprint and these options; None keeps nothing.
        """
        options = (cuts_inside_characters, byte_fallback_pairs)
        identity = hashlib.sha256(repr((view.fingerprint, *options)).encode()).hexdigest()
        return cls(**cached_arrays(directory, _CACHE_KIND, identity, lambda: _find_splits(view, *options)))

    @cached_property
    def guarded_offsets(self) -> np.ndarray:
        """int64 [V + 2]: ``offsets`` with one more id, V, that has no splits."""
        return np.append(self.offsets, self.offsets[-1])

    @property
    def splittable(self) -> np.ndarray:
        """bool [V], tokens that have a split."""
        return np.diff(self.offsets) > 0

    def splits(self, token_id: int) -> list[tuple[int, int]]:
        """The legal splits of one token, first cut first; empty for a token that is never split."""
        row = slice(self.offsets[token_id], self.offsets[token_id + 1])
        return list(zip(self.left[row].tolist(), self.right[row].tolist(), strict=True))

    def expand(
        self, ids: ArrayLike, proportion: float, *, rng: np.random.Generator, law: ExpansionLaw = "steps"
    ) -> np.ndarray:
        """The ids that ``expand_batch`` gives for one sequence."""
        return self.expand_batch([ids], proportion, rngs=[rng], law=law)[0].ids

    def expand_batch(
        self,
        sequences: Sequence[ArrayLike],
        proportion: float,
        *,
        rngs: Sequence[np.random.Generator],
        law: ExpansionLaw = "steps",
        rounding: Rounding = "floor",
        rounds: int = 1,
        protected: Sequence[np.ndarray] | None = None,
    ) -> list[Expansion]:
        """Split tokens of many sequences at random; the bytes of each stay what they were.

        ``steps`` is the paper's law: floor(T · proportion) times, draw a position of the sequence as it then is
        and replace its token by one of its splits, if it has any. Pieces may be split again. ``binomial`` splits
        each token that can be split with probability ``proportion``, which also reaches short texts.

        What a sequence becomes depends on its own generator only, not on the others of the batch.

        Args:
            sequences: integers [T] each, token ids of this table's vocabulary.
            proportion: in [0, 1]; the paper's default is 0.1.
            rngs: a generator for each sequence, the only source of randomness; keyed by the caller.
            rounding: of the number of attempts, for law ``steps``: ``floor``, or ``stochastic``, which gives the
                fraction as a chance of one more, so that texts shorter than 1 / proportion take part.
            rounds: for law ``binomial``: so many passes with probability ``proportion / rounds``, of which the later
                ones may split pieces of the earlier ones.
            protected: bool [T] each, tokens that are never split; an attempt at one fails like any other.

        Raises:
            ValueError: an id is outside the vocabulary, an argument is none of the above, or there are not as many
                generators or masks as sequences.
        """
        if not 0.0 <= proportion <= 1.0:
            raise ValueError(f"proportion must be in [0, 1], got {proportion}")
        if rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {rounds}")
        arrays = [np.asarray(ids) for ids in sequences]
        masks = None if protected is None else [np.asarray(mask) for mask in protected]
        self._check(arrays, masks, rngs)
        lengths = np.array([len(ids) for ids in arrays], dtype=np.int64)
        ids = np.concatenate([np.zeros(0, np.int32), *arrays]).astype(np.int32)
        # The id V has no splits: it stands for what must not be split.
        hidden = ids if not masks else np.where(np.concatenate(masks), np.int32(self._vocab_size), ids)
        if law == "steps":
            counts = [attempts_of(n, proportion, rounding, rng) for n, rng in zip(lengths.tolist(), rngs, strict=True)]
            drawn = steps(self, hidden, lengths, np.array(counts, dtype=np.int64), rngs)
        elif law == "binomial":
            drawn = binomial(self, hidden, lengths, proportion, rounds, rngs)
        else:
            raise ValueError(f"law must be 'steps' or 'binomial', got {law!r}")
        return [
            Expansion(
                new if masks is None else np.where(new == self._vocab_size, own.astype(np.int32)[origin], new), origin
            )
            for own, (new, origin) in zip(arrays, drawn, strict=True)
        ]

    @property
    def _vocab_size(self) -> int:
        return len(self.offsets) - 1

    def _check(
        self, sequences: Sequence[np.ndarray], masks: Sequence[np.ndarray] | None, rngs: Sequence[np.random.Generator]
    ) -> None:
        masked = len(sequences) if masks is None else len(masks)
        if not len(sequences) == len(rngs) == masked:
            raise ValueError(f"{len(sequences)} sequences, {len(rngs)} generators and {masked} masks: give one each")
        for ids in sequences:
            if ids.ndim != 1 or not (np.issubdtype(ids.dtype, np.integer) or ids.size == 0):
                raise ValueError(f"ids must be a vector of integers, got {ids.dtype} of shape {ids.shape}")
            if ids.size and not 0 <= ids.min() <= ids.max() < self._vocab_size:
                index = int(np.argmax((ids < 0) | (ids >= self._vocab_size)))
                raise ValueError(
                    f"ids[{index}] is {ids[index]}, outside [0, {self._vocab_size}): "
                    "the table was built from the vocabulary of another tokenizer"
                )
        for ids, mask in zip(sequences, masks or (), strict=masks is not None):
            if mask.shape != ids.shape or mask.dtype != bool:
                raise ValueError(f"a protected mask must be bool of shape {ids.shape}, one flag a token")


def _find_splits(view: ByteView, cuts_inside_characters: bool, byte_fallback_pairs: bool) -> Arrays:
    """The arrays of a ``SplitTable``."""
    halves = _Halves(view)
    counts = np.zeros(view.vocab_size, dtype=np.int64)
    splits: list[tuple[int, int, int, bool]] = []
    for whole in np.flatnonzero(view.kinds == TokenKind.TEXT).tolist():
        found = [
            split for split in halves.of(whole, fallback=byte_fallback_pairs) if cuts_inside_characters or not split[3]
        ]
        counts[whole] = len(found)
        splits += found
    columns = zip(*splits, strict=True) if splits else ((), (), (), ())
    left, right, left_bytes, inside = columns
    return {
        "offsets": np.concatenate([[0], np.cumsum(counts)]),
        "left": np.array(left, np.int32),
        "right": np.array(right, np.int32),
        "left_bytes": np.array(left_bytes, np.int32),
        "inside_character": np.array(inside, bool),
    }


class _Halves:
    """Looks up the halves of tokens by their bytes and by the place in a word that they may have."""

    def __init__(self, view: ByteView) -> None:
        self._view = view
        self._marks_inner = bool((view.affixes & TokenAffix.CONTINUES).any())
        affixes: Sequence[int] = view.affixes.tolist()
        ids: dict[int, dict[bytes, int]] = {}
        for token in np.flatnonzero(view.kinds == TokenKind.TEXT)[::-1].tolist():  # the lowest id stays
            ids.setdefault(affixes[token], {})[view.token_bytes(token) or b""] = token
        fallback = np.flatnonzero(view.kinds == TokenKind.BYTE_FALLBACK).tolist()
        self._affixes, self._ids = affixes, ids
        self._fallback = {view.token_bytes(token) or b"": token for token in reversed(fallback)}

    def of(self, whole: int, *, fallback: bool) -> Iterable[tuple[int, int, int, bool]]:
        """(left, right, bytes of left, whether the cut is inside a character) of every split, first cut first."""
        data = self._view.token_bytes(whole) or b""
        affix = self._affixes[whole]
        inner = TokenAffix.CONTINUES if self._marks_inner else 0
        lefts = self._ids.get(affix & TokenAffix.CONTINUES, {})
        rights = self._ids.get(affix & TokenAffix.ENDS | inner, {})
        pair_of_bytes = fallback and len(data) == 2 and _is_continuation(data[1])
        for cut in range(1, len(data)):
            left = lefts.get(data[:cut])
            right = None if left is None else rights.get(data[cut:])
            if right is None and pair_of_bytes:
                left, right = self._fallback.get(data[:cut]), self._fallback.get(data[cut:])
            if left is not None and right is not None:
                yield left, right, cut, _is_continuation(data[cut])


def _is_continuation(byte: int) -> bool:
    """Whether a byte goes on a UTF-8 character that began before it."""
    return byte & 0xC0 == 0x80
