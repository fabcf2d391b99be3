"""Edits of a sequence of units: the letters of a word, or the words of a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

Units = tuple[str, ...]


def insert_after(units: Units, new: str, mark: str) -> Units:
    """``new`` after every ``mark``."""
    return tuple(part for unit in units for part in ((unit, new) if unit == mark else (unit,)))


def insert_before(units: Units, new: str, mark: str) -> Units:
    """``new`` before every ``mark``."""
    return tuple(part for unit in units for part in ((new, unit) if unit == mark else (unit,)))


def delete(units: Units, mark: str) -> Units:
    """Without any ``mark``."""
    return tuple(unit for unit in units if unit != mark)


def substitute(units: Units, new: str, mark: str) -> Units:
    """``new`` in place of every ``mark``."""
    return tuple(new if unit == mark else unit for unit in units)


def swap(units: Units, first: str, second: str) -> Units:
    """``first`` and ``second`` in each other's places."""
    return tuple({first: second, second: first}.get(unit, unit) for unit in units)


def near_edit(units: Units, alphabet: Sequence[str], rng: Random) -> Units:
    """A random small slip: neighbours swapped, a unit left out, doubled, or replaced by one of ``alphabet``."""
    place = rng.randrange(len(units))
    left, unit, right = units[:place], units[place], units[place + 1 :]
    slips = [(*left, unit, unit, *right), (*left, rng.choice(alphabet), *right)]
    if len(units) > 1:
        slips += [left + right, (*left, *right[:1], unit, *right[1:])]
    return rng.choice(slips)
