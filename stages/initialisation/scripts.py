"""The script that each token of a vocabulary is written in."""

from __future__ import annotations

import numpy as np

from alignment.audit.text_classes import CLASSES, SCRIPTS, classify
from alignment.byte_view import ByteView

_FIRST_SCRIPT = len(CLASSES) - len(SCRIPTS)


def token_scripts(view: ByteView) -> np.ndarray:
    """int64 [V]: index into ``SCRIPTS`` of the script that most bytes of each token's letters belong to.

    -1 for tokens without a letter of these scripts: special tokens, digits, punctuation, parts of a character.
    """
    tokens = (view.token_bytes(token) or b"" for token in range(view.vocab_size))
    classified = classify([token.decode(errors="ignore") for token in tokens])
    owner = np.repeat(np.arange(view.vocab_size), np.diff(classified.starts))
    script = classified.classes.astype(np.int64) - _FIRST_SCRIPT
    letters = script >= 0
    size = view.vocab_size * len(SCRIPTS)
    counts = np.bincount(owner[letters] * len(SCRIPTS) + script[letters], minlength=size).reshape(-1, len(SCRIPTS))
    return np.where(counts.any(axis=1), counts.argmax(axis=1), -1)
