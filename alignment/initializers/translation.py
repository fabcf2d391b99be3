"""Trans-Tokenization: a new token's row is made of the rows of the tokens that it translates (embedding_init.md §1.11).

Remy et al., "Trans-Tokenization and Cross-lingual Vocabulary Transfers" (COLM 2024)::

    row(t) = sum_s w(s, t) old_row(s),      w(s, t) = count(s, t) / sum_s' count(s', t)

A count is the number of times that the target token t stands in a word that translates a word with the source token s.
On purpose unlike the released code: words are aligned by ``word_alignment``; a token that no translation reaches takes
nothing from tokens that it contains (the next method of a chain, such as ``piece_mean``, does that); and a number is
spelled and not translated, so that the identity of numbers is no matter of luck.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array, diags_array
from torch import Tensor

from alignment.byte_view import ByteView
from alignment.initializers.rows import SparseRows
from alignment.initializers.word_alignment import Sentences, cells
from alignment.vocab import VocabAlignment

_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
"""Scripts that put no space between words: there every token is taken for a word."""


class Words:
    """Token sequences cut into words, which are numbered in the order in which they are first met.

    A word ends before white space, before and after a punctuation mark or symbol, and at every token of a script that
    puts no spaces between words; a token that is part of a character continues the word.
    """

    def __init__(self, view: ByteView) -> None:
        edges = [_edges(view.token_bytes(token)) for token in range(view.vocab_size)]
        self._opens, self._closes = np.array(edges, dtype=bool).reshape(-1, 2).T
        self._numbers: dict[bytes, int] = {}

    def sentences(self, encoded: Iterable[np.ndarray]) -> Sentences:
        """The words of sentences given as token ids, int32 [T] each; new words get the next numbers."""
        numbers: list[int] = []
        offsets = [0]
        for ids in encoded:
            starts = self._opens[ids]
            starts[1:] |= self._closes[ids[:-1]]
            bounds = [0, *(np.flatnonzero(starts[1:]) + 1).tolist(), len(ids)] if len(ids) else [0]
            for start, end in itertools.pairwise(bounds):
                numbers.append(self._numbers.setdefault(ids[start:end].tobytes(), len(self._numbers)))
            offsets.append(len(numbers))
        return Sentences(np.array(numbers, dtype=np.int32), np.array(offsets, dtype=np.int64))

    @property
    def tokens(self) -> list[np.ndarray]:
        """The token ids of each word, int32, by its number."""
        return [np.frombuffer(word, dtype=np.int32) for word in self._numbers]


def _edges(data: bytes | None) -> tuple[bool, bool]:
    """Whether a token begins a word, and whether it ends one, whatever is beside it."""
    text = (data or b"").decode(errors="replace")
    if not text:
        return False, False
    return text[0].isspace() or _stands_alone(text[0]), _stands_alone(text[-1])


def _stands_alone(character: str) -> bool:
    if character == "\N{REPLACEMENT CHARACTER}":
        return False
    return unicodedata.category(character)[0] in "PS" or unicodedata.name(character, "").startswith(_UNSPACED)


def token_counts(
    links: csr_array, source_words: Sequence[np.ndarray], target_words: Sequence[np.ndarray], *, shape: tuple[int, int]
) -> csr_array:
    """Counts of linked words handed down to their tokens.

    Each token of the target word receives the link's count. Half of it comes from the source token at the same place
    and half from all source tokens alike; all of it from all alike where the words have different numbers of tokens.

    Args:
        links: [source words, target words].
        source_words, target_words: the token ids of each word.
        shape: V_target, V_source.

    Returns:
        float64 [V_target, V_source].
    """
    found = coo_array(links)
    sources, targets = [source_words[word] for word in found.row], [target_words[word] for word in found.col]
    rows, columns = (np.array([len(word) for word in words], dtype=np.int64) for words in (sources, targets))
    link, i, j = cells(rows, columns)
    same_length = (rows == columns)[link]
    shares = np.where(same_length, 0.5 + 0.5 * rows[link] * (i == j), 1.0) / rows[link]
    source_tokens = _flat(sources)[(np.cumsum(rows) - rows)[link] + i]
    target_tokens = _flat(targets)[(np.cumsum(columns) - columns)[link] + j]
    return csr_array(coo_array((found.data[link] * shares, (target_tokens, source_tokens)), shape=shape))


def _flat(words: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(words) if len(words) else np.empty(0, dtype=np.int32)


def frequent(counts: csr_array, min_count: float) -> csr_array:
    """The counts of at least ``min_count``; others are most often wrong alignments."""
    kept = csr_array(counts)
    kept.sum_duplicates()
    kept.data = np.where(kept.data >= min_count, kept.data, 0)
    kept.eliminate_zeros()
    return kept


def with_numbers_spelled(counts: csr_array, alignment: VocabAlignment, numbers: np.ndarray) -> csr_array:
    """Counts in which each target token of ``numbers``, bool [V_target], has its own pieces instead of translations."""
    spelled = csr_array((np.ones(len(alignment.pieces)), alignment.pieces, alignment.offsets), shape=counts.shape)
    return csr_array(diags_array((~numbers).astype(float)) @ counts + diags_array(numbers.astype(float)) @ spelled)


def translation_rows(counts: csr_array, target_ids: Tensor) -> SparseRows:
    """Weights in proportion to the counts [V_target, V_source] of each target id, int64 [M]; they sum to one.

    A target id without counts has no weights. Source ids are in ascending order.
    """
    found = csr_array(counts[target_ids.numpy()])
    found.sum_duplicates()
    found.eliminate_zeros()
    lengths = np.diff(found.indptr)
    place = np.arange(max(int(lengths.max(initial=0)), 1)) < lengths[:, None]
    indices = np.full(place.shape, -1, dtype=np.int64)
    weights = np.zeros(place.shape, dtype=np.float32)
    indices[place] = found.indices
    weights[place] = found.data / np.repeat(found.sum(axis=1), lengths)
    return SparseRows(torch.from_numpy(indices), torch.from_numpy(weights))
