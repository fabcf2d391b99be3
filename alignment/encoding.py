"""One tokenized text with every token located in the text's bytes: what tokenizers give and alignments take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Encoding:
    """One tokenized text of T tokens.

    A token spans the bytes from the end of the token before it to its own end. White space for which the tokenizer has
    no token falls to the token after it, and stays outside at the end of the text; other characters that it drops (a
    composed accent, say) fall to the token before them.

    Attributes:
        ids: int32 [T].
        byte_ends: int64 [T], the offset of each token's end in the text's UTF-8 bytes; never decreases.
        special: bool [T], tokens that stand for no byte of the text.
        boundary: bool [T], False where a token ends inside a stretch of text that only several tokens together
            stand for (the pieces of a rewritten character): its end is unknown, and ``byte_ends`` has the start of
            that stretch instead. The last token of the stretch ends it.
        verbatim: bool [T], tokens whose bytes are those of the text that they span; False where the tokenizer
            rewrote the text (case, Unicode normal form, white space) or had only ``<unk>`` for it. False for all
            tokens of a stretch that is rewritten. True for special tokens.
        text_bytes: length of the text.
    """

    ids: np.ndarray
    byte_ends: np.ndarray
    special: np.ndarray
    boundary: np.ndarray
    verbatim: np.ndarray
    text_bytes: int

    @property
    def exact(self) -> bool:
        """Whether the tokens' bytes, one after the other, are the text."""
        return bool(self.verbatim.all()) and (self.byte_ends[-1] if self.byte_ends.size else 0) == self.text_bytes


def concatenated(parts: Sequence[Encoding]) -> Encoding:
    """The encoding of several texts one after the other, with the tokens that each has by itself."""
    starts = np.cumsum([0, *(part.text_bytes for part in parts)])
    return Encoding(
        ids=np.concatenate([part.ids for part in parts]),
        byte_ends=np.concatenate([part.byte_ends + start for part, start in zip(parts, starts, strict=False)]),
        special=np.concatenate([part.special for part in parts]),
        boundary=np.concatenate([part.boundary for part in parts]),
        verbatim=np.concatenate([part.verbatim for part in parts]),
        text_bytes=int(starts[-1]),
    )
