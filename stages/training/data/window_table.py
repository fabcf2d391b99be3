"""Many windows as a few long arrays: what travels between processes, and what waits until a step takes it.

A list of windows is thousands of small arrays, which cost more to send and to keep than the numbers in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Protocol

import numpy as np

from stages.training.data.windows import Window


class WindowTable(Sequence[Window]):
    """Windows, stored field by field; indexing makes them anew.

    Whole numbers are kept in 32 bits and come back in the type that they had. Costs about 24 bytes a token and side
    pair, and nothing a window.
    """

    def __init__(self, windows: Sequence[Window]) -> None:
        self._size = len(windows)
        self._column = _column(windows) if windows else None

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Window:
        if not 0 <= index < self._size:
            raise IndexError(f"window {index} of {self._size}")
        return self._column[index]


class _Column(Protocol):
    """One field of all windows."""

    def __getitem__(self, index: int) -> Any: ...


class _Arrays:
    """Arrays of different lengths, one after the other."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self._dtype = arrays[0].dtype
        self._ends = np.cumsum([len(array) for array in arrays])
        values = np.concatenate(arrays)
        narrow = self._dtype == np.int64 and (not values.size or np.abs(values).max() < 2**31)
        self._values = values.astype(np.int32) if narrow else values

    def __getitem__(self, index: int) -> np.ndarray:
        start = self._ends[index - 1] if index else 0
        return self._values[start : self._ends[index]].astype(self._dtype, copy=False)


class _Records:
    """Instances of one dataclass, a column a field."""

    def __init__(self, kind: type, values: Sequence[Any]) -> None:
        self._kind = kind
        self._columns = {
            field.name: _column([getattr(value, field.name) for value in values]) for field in fields(kind)
        }

    def __getitem__(self, index: int) -> Any:
        return self._kind(**{name: column[index] for name, column in self._columns.items()})


class _Nothing:
    """A field that no window has."""

    def __getitem__(self, index: int) -> None:
        return None


def _column(values: Sequence[Any]) -> _Column:
    """The most compact form of a field; values that have none stay as they are."""
    kinds = {type(value) for value in values}
    if kinds == {type(None)}:
        return _Nothing()
    if kinds == {np.ndarray} and len({(value.dtype, value.shape[1:]) for value in values}) == 1:
        return _Arrays(values)
    if len(kinds) == 1 and is_dataclass(kind := kinds.pop()):
        return _Records(kind, values)
    return list(values)
