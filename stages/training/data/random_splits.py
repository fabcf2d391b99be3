"""The student's text with tokens split at random: StochasTok, and the baselines it is compared with.

What becomes of a document is a function of (seed, epoch, document) and of how far the training is; the original text
is never changed, so that a teacher's view of it stays what it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from alignment.byte_models import Merges, merges_of
from alignment.byte_view import ByteView
from alignment.dropout import WordCutter, bpe_dropout, maxmatch_dropout
from alignment.encoding import Encoding
from alignment.respelling import respell
from alignment.splits import SplitTable
from alignment.token_index import TokenIndex
from alignment.token_table import TokenKind
from alignment.tokenizer_facts import load_tokenizer
from stages.objectives.base import schedule_factor
from stages.stage import StageError
from stages.training.data.split_options import SplitOptions
from stages.training.random import generator

_STREAM = 0x73706C697473  # of random numbers, which no other module draws from
_SIZES = "splits/"
_SCHEDULE_STEPS = 1 << 20  # schedules are functions of a step; fine enough for shares of the training

Words = Callable[[], np.ndarray | None]


@dataclass
class RandomSplits:
    """Splits the tokens of documents.

    Attributes:
        options: from the recipe.
        seed: of the splits.
        directory: where the student's tokenizer lies.
        cache: where tables are kept.
    """

    options: SplitOptions
    seed: int
    directory: Path
    cache: Path | None = None
    _view: ByteView | None = field(default=None, init=False)
    _table: SplitTable | None = field(default=None, init=False)
    _cutter: WordCutter | None = field(default=None, init=False)
    _has_lone_space: bool = field(default=False, init=False)

    def prepare(self, view: ByteView) -> None:
        """Build what every document needs.

        Args:
            view: the student's tokenizer.

        Raises:
            StageError: the tokenizer cannot be split in the way that is asked for.
        """
        self._view = view
        self._has_lone_space = bool(TokenIndex(view).of_kind(TokenKind.TEXT, b" "))
        if self.options.method == "stochastok":
            self._table = SplitTable.from_view(
                view,
                cuts_inside_characters=self.options.cuts_inside_characters,
                byte_fallback_pairs=self.options.byte_fallback_pairs,
                directory=self.cache,
            )
            if self.options.proportion and not self._table.splittable.any():
                raise StageError(
                    "no token of the student's vocabulary is two others put together, as with a byte tokenizer, so "
                    "there is nothing to split: leave the splits out, or use proportion: 0 for a control"
                )
        elif self.options.method == "bpe_dropout":
            self._cutter = WordCutter(view, bpe_dropout(view, self._read_merges(view)))
        else:
            self._cutter = WordCutter(view, maxmatch_dropout(view))

    def split(
        self, text: str, encoding: Encoding, words: Words, place: tuple[int, int, float], protected: np.ndarray | None
    ) -> tuple[Encoding, dict[str, int]]:
        """A document's tokens after its splits, and what there is to count of them.

        Args:
            text: of T tokens.
            encoding: as the tokenizer gives it; what it rewrites stays as it is.
            words: gives ``ByteView.words`` of the text.
            place: number of the document, epoch, and share of the training that is done when it is read.
            protected: bool [T], tokens that stay whole; None for none.

        Raises:
            StageError: the tokenizer does not tell its words, which the baselines cut anew.
        """
        number, epoch, done = place
        rng = generator(self.seed, epoch, number, _STREAM)
        kept = bool(rng.random() < self.options.deterministic_share)
        fixed = self._whole(encoding)
        fixed = fixed if protected is None else fixed | protected
        factor = schedule_factor(self.options.proportion_schedule, int(done * _SCHEDULE_STEPS), _SCHEDULE_STEPS)
        proportion = 0.0 if kept else min(1.0, factor * self.options.proportion)
        split = self._apply(encoding, words, proportion, fixed, rng) if proportion else encoding
        sizes = {
            "documents": 1,
            "deterministic_documents": int(kept),
            "tokens_before": len(encoding.ids),
            "tokens_after": len(split.ids),
            "cuts_inside_characters": _cuts_inside_characters(text, split) - _cuts_inside_characters(text, encoding),
        }
        if self._table is not None:
            sizes["splittable_tokens"] = int((self._table.splittable[encoding.ids] & ~fixed).sum())
        return split, {f"{_SIZES}{name}": size for name, size in sizes.items()}

    def _whole(self, encoding: Encoding) -> np.ndarray:
        """bool [T]: tokens that cannot be split whatever their bytes."""
        fixed = encoding.special | ~encoding.verbatim
        if self._has_lone_space:
            # A space that the tokenizer puts before a text is none of its bytes: alone, it would be in no chunk.
            invented = self._view.byte_lengths[encoding.ids] > np.diff(encoding.byte_ends, prepend=0)
            fixed |= invented
        return fixed

    def _apply(
        self, encoding: Encoding, words: Words, proportion: float, fixed: np.ndarray, rng: np.random.Generator
    ) -> Encoding:
        if self._cutter is not None:
            return self._cutter.respell(encoding, self._words(words), proportion, rng=rng, protected=fixed)
        (expansion,) = self._table.expand_batch(
            [encoding.ids],
            proportion,
            rngs=[rng],
            law=self.options.law,
            rounding=self.options.rounding,
            rounds=self.options.rounds,
            protected=[fixed],
        )
        last = np.arange(len(encoding.ids))
        return respell(encoding, expansion.ids, expansion.origin, last, self._view.byte_lengths)

    def _words(self, words: Words) -> np.ndarray:
        found = words()
        if found is None:
            raise StageError(
                f"method: {self.options.method} cuts words anew, and the student's tokenizer runs in Python and does "
                "not tell its words; use method: stochastok, or convert it to a fast one (tokenizer.json)"
            )
        return found

    def _read_merges(self, view: ByteView) -> Merges:
        backend = getattr(load_tokenizer(self.directory, trust_remote_code=False), "backend_tokenizer", None)
        model: Mapping[str, Any] = json.loads(backend.to_str())["model"] if isinstance(backend, Tokenizer) else {}
        if model.get("type") != "BPE" or view.affixes.any():
            kind = f"{model['type']} model" if model else "tokenizer in Python"
            marks = " whose entries carry marks of their place in a word" if view.affixes.any() else ""
            raise StageError(
                f"method: bpe_dropout needs the merges of byte-pair encoding, and the student has a {kind}{marks}; use "
                "method: maxmatch_dropout, or stochastok"
            )
        return merges_of(model)

    def describe(self, sizes: Mapping[str, int]) -> dict[str, Any]:
        """What was split, as JSON values under ``splits``.

        ``growth`` is tokens after over tokens before, ``splittable_share`` the share of the tokens that have a split;
        all of it counts every document once, as it was read first.
        """
        found = _own_sizes(sizes)
        before = found.get("tokens_before", 0)
        described: dict[str, Any] = {**found, "growth": found["tokens_after"] / before if before else 1.0}
        if self._table is not None:
            splittable = described.pop("splittable_tokens", 0)
            described["splittable_share"] = splittable / before if before else 0.0
            described["table"] = {
                "splits": len(self._table.left),
                "cuts_inside_characters": int(self._table.inside_character.sum()),
            }
        return {"splits": described}

    def warnings(self, sizes: Mapping[str, int]) -> list[str]:
        """What a person should be told of it."""
        found = _own_sizes(sizes)
        if not self.options.proportion or found.get("tokens_after", 0) != found.get("tokens_before", 1):
            return []
        return [
            "no token was split so far: texts of fewer than 1 / proportion tokens get no attempt with rounding: floor; "
            "rounding: stochastic reaches them"
        ]


def _own_sizes(sizes: Mapping[str, int]) -> dict[str, int]:
    return {name.removeprefix(_SIZES): size for name, size in sizes.items() if name.startswith(_SIZES)}


def other_sizes(sizes: Mapping[str, int]) -> dict[str, int]:
    """Of the sizes of documents, those that ``RandomSplits.split`` did not count."""
    return {name: size for name, size in sizes.items() if not name.startswith(_SIZES)}


def _cuts_inside_characters(text: str, encoding: Encoding) -> int:
    data = np.frombuffer(text.encode(), np.uint8)
    ends = np.unique(encoding.byte_ends)
    return int(((data[ends[ends < len(data)]] & 0xC0) == 0x80).sum())
