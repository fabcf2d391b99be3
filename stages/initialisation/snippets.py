"""Short pieces of the training text that contain given tokens, in both tokenizations."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from alignment.byte_view import ByteView, InexactEncoding
from alignment.encoding import Encoding
from alignment.spans import align_batch
from stages.initialisation.task import Transplant
from stages.stage import StageError, StageInterrupted
from stages.training.data.windows import Window, text_windows
from stages.training.random import generator

HELD_OUT = 64
"""Most snippets that are kept to measure with."""
_DOCUMENTS_AT_ONCE = 64


@dataclass(frozen=True)
class Snippets:
    """Windows of text; their ``teacher`` side is the source tokenizer's, their ``student`` side the target's.

    Attributes:
        tokens: int64 [M], in ascending order the wanted ids that occur in ``training``.
        training: each contains a wanted token.
        held_out: others that do.
    """

    tokens: np.ndarray
    training: list[Window]
    held_out: list[Window]


def count_tokens(transplant: Transplant) -> np.ndarray:
    """How often each target id occurs in the training text: int64 [V_target].

    Raises:
        StageError: a text cannot be encoded.
        StageInterrupted: the stage was asked to stop.
    """
    counts = np.zeros(transplant.target.vocab_size, dtype=np.int64)
    for texts in _blocks_of_texts(transplant):
        for encoding in _encode(transplant.target, texts):
            counts += np.bincount(encoding.ids, minlength=len(counts))
    return counts


def most_frequent(counts: np.ndarray, candidates: np.ndarray, most: int, keys: np.ndarray) -> np.ndarray:
    """In ascending order, the ids of the ``most`` candidates (bool [V]) that occur most often, if at all: int64 [M].

    Args:
        counts: int64 [V].
        keys: uint64 [V], which decide between equally frequent ones, so that permuted ids give the same tokens.
    """
    found = np.flatnonzero(candidates & (counts > 0))
    return np.sort(found[np.lexsort((keys[found], -counts[found]))[:most]])


def find_snippets(
    transplant: Transplant, wanted: np.ndarray, counts: np.ndarray, *, snippets: int, tokens: int
) -> Snippets:
    """About ``snippets`` windows for each wanted token, or all that have it, drawn from all of the training text.

    Tokens are found as the target tokenizer cuts the text, and windows begin and end where both tokenizations have a
    boundary, so that both sides read the same bytes. A window that contains several wanted tokens counts for all of
    them; it is drawn with the probability that the rarest of them asks for.

    Args:
        wanted: int64 [M], target ids.
        counts: int64 [V_target], how often each occurs in the text.
        tokens: most tokens of a window, on either side.

    Raises:
        StageError: a text cannot be encoded.
        StageInterrupted: the stage was asked to stop.
    """
    is_wanted = np.zeros(len(counts), dtype=bool)
    is_wanted[wanted] = True
    missing = np.where(is_wanted, snippets, 0)
    probability = snippets / np.maximum(counts, 1)
    training: list[Window] = []
    left_over: list[tuple[float, int, Window]] = []
    for number, (draw, window) in enumerate(_drawn_windows(transplant, tokens)):
        inside = np.unique(window.student.ids[window.student.chunk >= 0])
        inside = inside[is_wanted[inside]]
        if (draw < probability[inside[missing[inside] > 0]]).any():
            missing[inside] -= 1
            training.append(window)
        elif len(inside):
            # The highest draws come from all of the text as well.
            push = heapq.heappush if len(left_over) < HELD_OUT else heapq.heappushpop
            push(left_over, (draw, number, window))
    seen = wanted[missing[wanted] < snippets]
    return Snippets(seen, training, [window for *_, window in sorted(left_over, key=lambda item: item[1])])


def _drawn_windows(transplant: Transplant, tokens: int) -> Iterator[tuple[float, Window]]:
    """All windows of the text, each with a number drawn uniformly from [0, 1)."""
    document = 0
    for texts in _blocks_of_texts(transplant):
        source, target = _encode(transplant.source, texts), _encode(transplant.target, texts)
        for *pair, chunks in zip(source, target, align_batch(source, target), strict=True):
            windows = text_windows(transplant.source, transplant.target, tuple(pair), chunks, tokens)
            yield from zip(generator(transplant.seed, document).random(len(windows)).tolist(), windows, strict=True)
            document += 1


def _blocks_of_texts(transplant: Transplant) -> Iterator[list[str]]:
    texts = iter(transplant.texts())
    while block := list(itertools.islice(texts, _DOCUMENTS_AT_ONCE)):
        if transplant.should_stop():
            raise StageInterrupted
        yield block


def _encode(view: ByteView, texts: Sequence[str]) -> list[Encoding]:
    try:
        return view.encode_batch(texts, exact=False)
    except InexactEncoding as error:
        raise StageError(f"refine: token_distill cannot read one of the training texts: {error}") from None
