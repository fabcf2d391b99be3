"""The bytes of all tokens of a vocabulary in one array, to spell many tokens without a loop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class BytePool:
    """The bytes of V tokens.

    Attributes:
        lengths: int32 [V].
    """

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self.lengths = np.array([len(token) for token in token_bytes], dtype=np.int32)
        self._starts = np.cumsum(self.lengths, dtype=np.int64) - self.lengths
        self._bytes = np.frombuffer(b"".join(token_bytes), np.uint8)

    def spell(self, ids: np.ndarray) -> np.ndarray:
        """uint8: the bytes of some tokens, one after the other."""
        lengths = self.lengths[ids]
        before = np.cumsum(lengths, dtype=np.int64) - lengths
        index = np.repeat(self._starts[ids] - before, lengths)
        index += np.arange(len(index))
        return self._bytes[index]
