"""Tensors that come one after another -> safetensors files of a limited size, without ever holding all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

MAX_SHARD_BYTES = 2 * 2**30
"""Bytes of tensors in one file; only a single larger tensor makes a larger file."""


class ShardWriter:
    """Collects tensors and writes a file whenever the next one would not fit.

    Args:
        path_of: number of a file (from 0) -> its path.
        max_bytes: what is collected before it is written.
    """

    def __init__(self, path_of: Callable[[int], Path], max_bytes: int = MAX_SHARD_BYTES) -> None:
        self._path_of = path_of
        self._max_bytes = max_bytes
        self._waiting: dict[str, Tensor] = {}
        self._bytes = 0
        self._files = 0

    def add(self, name: str, tensor: Tensor) -> str:
        """Take a tensor, which must not change until it is written; returns the name of the file it will be in."""
        size = tensor.numel() * tensor.element_size()
        if self._waiting and self._bytes + size > self._max_bytes:
            self.flush()
        self._waiting[name] = tensor
        self._bytes += size
        return self._path_of(self._files).name

    def flush(self) -> None:
        """Write what was not written yet."""
        if self._waiting:
            save_file(self._waiting, self._path_of(self._files))
            self._files += 1
            self._waiting, self._bytes = {}, 0
