"""Where held-out text is cut for the prompt-boundary test: places of a kind, and what tokens both sides have alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from alignment.byte_view import ByteView
from stages.evaluation.robustness.excerpts import draws, in_turn
from stages.evaluation.robustness.options import PromptBoundaryOptions
from stages.evaluation.windows import Document

KINDS: dict[str, re.Pattern[str]] = {
    "space": re.compile(r"(?<=[A-Za-z,;] )(?=[A-Za-z])"),
    "word": re.compile(r"(?<!\w)[^\W\d_\u4e00-\u9fff]{5,}(?!\w|\(|\.\w)"),
    "identifier": re.compile(r"\b(?:[A-Za-z]+_\w+|[a-z]+[A-Z]\w+|[A-Za-z]{4,}(?=\())"),
    "chinese": re.compile(r"[\u4e00-\u9fff]{2,}"),
}
"""Kind -> what a cut lies in: after the space before a word; inside a word, an identifier or a run of Chinese
characters."""


@dataclass(frozen=True)
class Cut:
    """A text that is cut in two.

    Attributes:
        kind: of the place, one of ``KINDS``.
    """

    id: str
    kind: str
    prompt: str
    continuation: str


@dataclass(frozen=True)
class CutTokens:
    """The tokens of a text whole, and of its two parts one after the other.

    Attributes:
        whole, parts: int32 [T], [U].
        first_scored: before this token the parts are the whole's, and part of the prompt.
        continuation: index in ``parts`` of the continuation's first token.
        inside: the cut lies inside a token of the whole.
    """

    whole: np.ndarray
    parts: np.ndarray
    first_scored: int
    continuation: int
    inside: bool


def choose_cuts(documents: Sequence[Document], options: PromptBoundaryOptions) -> list[Cut]:
    """Up to ``positions`` places of every kind, the first of every document before a second one of any."""
    found = []
    for kind in KINDS:
        places = [list(_places(document, kind, options)) for document in in_turn(documents)]
        deepest = max(map(len, places), default=0)
        cuts = [of_document[depth] for depth in range(deepest) for of_document in places if depth < len(of_document)]
        found += cuts[: options.positions]
    return found


def _places(document: Document, kind: str, options: PromptBoundaryOptions) -> Iterator[Cut]:
    """The cuts of a document that leave room for prompt and continuation, in an order of the seed's."""
    text = document.text
    rng = draws("prompt_boundary", options.seed, document.id, kind)
    places = []
    for match in KINDS[kind].finditer(text):
        # Words and the like are cut between two of their characters, at one place each.
        places.append(match.start() if kind == "space" else rng.randrange(match.start() + 1, match.end()))
    rng.shuffle(places)
    for place in places:
        start = _start(text, place, options.context_bytes)
        if place - start >= 16 and place + options.characters <= len(text):
            yield Cut(
                f"{document.id}/{kind}/{place}", kind, text[start:place], text[place : place + options.characters]
            )


def _start(text: str, place: int, size: int) -> int:
    """Where a context of at most ``size`` UTF-8 bytes before ``place`` begins, at a word where possible."""
    fits = len(text[:place].encode()[-size:].decode(errors="ignore"))
    start = place - fits
    if start == 0:
        return 0
    space = text.find(" ", start, max(start, place - 64))
    return start if space < 0 else space + 1


def tokens_of(view: ByteView, cut: Cut) -> CutTokens | None:
    """The tokens of a cut text; None where the tokenizer cannot spell it, or the parts share no token with the
    whole."""
    whole, prompt = view.encode_batch([cut.prompt + cut.continuation, cut.prompt], exact=False)
    continuation = _tokens_inside_text(view, cut.continuation)
    if continuation is None or not (whole.exact and prompt.exact):
        return None
    parts = np.concatenate([prompt.ids, continuation])
    least = min(len(whole.ids), len(parts))
    differ = np.flatnonzero(whole.ids[:least] != parts[:least])
    shared = int(differ[0]) if differ.size else least
    if shared == 0:
        return None
    border = len(cut.prompt.encode())
    first_scored = min(shared, len(prompt.ids))
    return CutTokens(whole.ids, parts, first_scored, len(prompt.ids), border not in whole.byte_ends)


def _tokens_inside_text(view: ByteView, text: str) -> np.ndarray | None:
    """The tokens of a text as they stand after other text: without a space that the tokenizer puts in front of it."""
    alone = view.encode(text, exact=False)
    if alone.exact and int(view.byte_lengths[alone.ids].sum()) == alone.text_bytes:
        return alone.ids
    after_newline = view.encode("\n" + text, exact=False)
    if not after_newline.exact or 1 not in after_newline.byte_ends:
        return None
    return after_newline.ids[np.searchsorted(after_newline.byte_ends, 1, side="right") :]
