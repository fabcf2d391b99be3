"""What a tokenizer makes of text: bytes per token, tokens per word, words that stay whole, frequencies of tokens.

A *word* is a run of letters, digits and the marks on them, in any script. Chinese, Japanese or Thai, which are written
without spaces, have few and long ones: there bytes and characters per token are the numbers to read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np

from alignment.audit.batch import SideTokens
from alignment.audit.text_classes import CLASSES, SCRIPTS, ClassifiedText, classify
from alignment.byte_view import ByteView
from alignment.encoding import Encoding

_WORD_CLASSES = np.array([name.startswith("numerals") or name in (*SCRIPTS, "other letters") for name in CLASSES])
_SPACE = 0x20
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class TextUse:
    """Counts over a text, which add up over texts.

    Attributes:
        documents, bytes, characters, words: of the text; bytes of UTF-8.
        tokens: what the text is encoded to, without special tokens around it.
        word_tokens: tokens that a word touches, summed over words.
        whole_words: words that are one token, with or without the space before them.
        verbatim_bytes: bytes in tokens that spell them: all but what the tokenizer rewrites or has no token for.
    """

    documents: int = 0
    bytes: int = 0
    characters: int = 0
    words: int = 0
    tokens: int = 0
    word_tokens: int = 0
    whole_words: int = 0
    verbatim_bytes: int = 0

    def __add__(self, other: TextUse) -> TextUse:
        return TextUse(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @property
    def bytes_per_token(self) -> float | None:
        """None of no token, as the other quotients of nothing."""
        return _quotient(self.bytes, self.tokens)

    @property
    def tokens_per_byte(self) -> float | None:
        """Forward passes of a model per byte that it writes, one token at a time."""
        return _quotient(self.tokens, self.bytes)

    @property
    def characters_per_token(self) -> float | None:
        """Unicode code points per token."""
        return _quotient(self.characters, self.tokens)

    @property
    def fertility(self) -> float | None:
        """Tokens per word (Rust et al. 2021), at least 1."""
        return _quotient(self.word_tokens, self.words)

    @property
    def single_token_retention(self) -> float | None:
        """STRR, the share of words that stay one token (arXiv 2510.09947)."""
        return _quotient(self.whole_words, self.words)

    @property
    def coverage(self) -> float | None:
        """Share of the bytes that tokens spell as they are."""
        return _quotient(self.verbatim_bytes, self.bytes)

    @property
    def measures(self) -> dict[str, float | None]:
        """Name -> value of every quotient above."""
        names = ("bytes_per_token", "tokens_per_byte", "characters_per_token")
        return {name: getattr(self, name) for name in (*names, "fertility", "single_token_retention", "coverage")}


@dataclass(frozen=True)
class Usage:
    """What a tokenizer makes of some documents.

    Attributes:
        use: counts over all of them.
        frequencies: int64 [V], occurrences of each id.
        script_bytes: float64 [classes of text], bytes of each of ``CLASSES``.
        script_tokens: float64, the same of tokens; one that spans several classes counts in parts, by bytes.
    """

    use: TextUse
    frequencies: np.ndarray
    script_bytes: np.ndarray
    script_tokens: np.ndarray

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @property
    def bytes_per_token_by_script(self) -> dict[str, float]:
        """Script -> bytes per token of its words, the script with the most bytes first."""
        found = [(float(self.script_bytes[index]), name, index) for index, name in enumerate(CLASSES)]
        order = sorted((-size, name, index) for size, name, index in found if size and name in SCRIPTS)
        return {name: -size / float(self.script_tokens[index]) for size, name, index in order}


def usage(view: ByteView, texts: Sequence[str]) -> Usage:
    """Encode documents and count. Memory goes with a megabyte of text, or with the longest document.

    Raises:
        InexactEncoding: a text has lone surrogates and thus no bytes.
    """
    empty = np.zeros(len(CLASSES))
    total = Usage(TextUse(), np.zeros(view.vocab_size, dtype=np.int64), empty, empty)
    for block in _blocks(texts):
        total += _block_usage(view, block)
    return total


def _blocks(texts: Sequence[str]) -> Iterator[list[str]]:
    """Texts a megabyte at a time."""
    block: list[str] = []
    size = 0
    for text in texts:
        block.append(text)
        size += len(text)
        if size >= _BLOCK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


def _block_usage(view: ByteView, texts: list[str]) -> Usage:
    encodings = view.encode_batch(texts, exact=False)
    classified = classify(texts)
    tokens = _end_to_end(encodings, classified.starts)
    sizes = np.bincount(classified.classes, minlength=len(CLASSES)).astype(np.float64)
    parts = tokens.share_out(np.ones(len(tokens.ids)), len(classified.text))
    word_starts, word_ends = _words(classified)
    touching, whole = _tokens_of_words(tokens, word_starts, word_ends, classified.text)
    use = TextUse(
        documents=len(texts),
        bytes=len(classified.text),
        characters=sum(map(len, texts)),
        words=len(word_starts),
        tokens=len(tokens.ids),
        word_tokens=int(touching.sum()),
        whole_words=int(whole.sum()),
        verbatim_bytes=int(tokens.lengths[tokens.verbatim].sum()),
    )
    return Usage(
        use=use,
        frequencies=np.bincount(tokens.ids, minlength=view.vocab_size).astype(np.int64),
        script_bytes=sizes,
        script_tokens=np.bincount(classified.classes, parts, minlength=len(CLASSES)),
    )


def _end_to_end(encodings: Sequence[Encoding], starts: np.ndarray) -> SideTokens:
    """The tokens of documents that lie one after the other; ``starts`` int64 [D + 1] says where."""
    sizes = np.array([len(encoding.ids) for encoding in encodings])
    document = np.repeat(np.arange(len(encodings)), sizes)
    ends = np.concatenate([encoding.byte_ends for encoding in encodings]) + starts[document]
    firsts = (np.cumsum(sizes) - sizes)[sizes > 0]
    begins = np.concatenate([[0], ends])[: len(ends)]
    begins[firsts] = starts[:-1][sizes > 0]
    text = ~np.concatenate([encoding.special for encoding in encodings])
    return SideTokens(
        ids=np.concatenate([encoding.ids for encoding in encodings])[text],
        starts=begins[text],
        ends=ends[text],
        chunk=np.full(int(text.sum()), -1),
        verbatim=np.concatenate([encoding.verbatim for encoding in encodings])[text],
        document=document[text],
    )


def _words(classified: ClassifiedText) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends, int64 [words] each, of the words in the bytes; none runs over two documents."""
    # A space counts with the word after it, but is no part of it.
    inside = _WORD_CLASSES[classified.classes] & (classified.text != _SPACE)
    before = np.concatenate([[False], inside[:-1]])
    before[classified.starts[:-1][np.diff(classified.starts) > 0]] = False
    starts = np.flatnonzero(inside & ~before)
    outside = np.append(np.flatnonzero(~inside), len(inside))
    ends = outside[np.searchsorted(outside, starts)]
    return starts, np.minimum(ends, classified.starts[np.searchsorted(classified.starts, starts, "right")])


def _tokens_of_words(
    tokens: SideTokens, starts: np.ndarray, ends: np.ndarray, text: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each word how many tokens touch it, and whether it is one, which may hold the space before it as well."""
    # A piece of a rewritten character has no bytes, and stands at the start of the stretch that it is of.
    first = np.minimum(np.searchsorted(tokens.ends, starts, "right"), np.searchsorted(tokens.starts, starts, "left"))
    touching = np.searchsorted(tokens.starts, ends, "left") - first
    one = touching == 1
    token_starts, token_ends = tokens.starts[first[one]], tokens.ends[first[one]]
    spaced = (token_starts == starts[one] - 1) & (text[token_starts] == _SPACE)
    whole = np.zeros(len(starts), dtype=bool)
    whole[one] = (token_ends == ends[one]) & ((token_starts == starts[one]) | spaced) & tokens.verbatim[first[one]]
    return touching, whole


def _quotient(part: int, whole: int) -> float | None:
    return part / whole if whole else None
