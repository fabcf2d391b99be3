"""Guards against collapse: what the student writes, measured in every step and held against limits.

The gradient norm does not show a collapse: in a replication of on-policy distillation, lengths grew from 1.6 to 60
thousand characters under normal norms (distillation_losses.md §1.11). What shows it is the text: its length, its white
space and indentation (§1.13), how it ends, how much of it can be scored, and how often it repeats itself.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.training.on_policy.options import GuardOptions

_RUN = 4  # tokens of what counts as a repetition
_SOME_INDENTATION = 0.05  # share of indented lines below which a text has none to lose


@dataclass(frozen=True)
class Writing:
    """What guards look at in a rollout.

    Attributes:
        ids: the tokens as sampled.
        text: what they spell.
        reference: what the document says in its place; empty where it says nothing.
        cut_off: the student did not end it.
        end_mass: the probability that it gave to ending at once.
        scored_bytes: bytes of the text that both models can score.
    """

    ids: Sequence[int]
    text: str
    reference: str
    cut_off: bool
    end_mass: float
    scored_bytes: int


def measure(writings: Sequence[Writing]) -> dict[str, float]:
    """The measures of one step's rollouts; those without a denominator are left out.

    Returns:
        ``length_median`` and ``length_p95`` in tokens; ``cut_off``, ``empty``: shares of rollouts; ``end_mass``: mean;
        ``white_space``: share of characters, and ``white_space_rise``: over the references'; ``indented``: share of
        lines, ``reference_indented`` of the references'; ``content``: scored bytes of all bytes; ``repeated``: share of
        the runs of four tokens that a rollout has had before.
    """
    lengths = [len(each.ids) for each in writings]
    bytes_written = sum(len(each.text.encode()) for each in writings)
    values = {
        "length_median": float(np.median(lengths)),
        "length_p95": float(np.quantile(lengths, 0.95)),
        "cut_off": float(np.mean([each.cut_off for each in writings])),
        "empty": float(np.mean([not each.ids for each in writings])),
        "end_mass": float(np.mean([each.end_mass for each in writings])),
        "white_space": white_space([each.text for each in writings]),
        "white_space_rise": _rise(writings),
        "indented": indented([each.text for each in writings]),
        "reference_indented": indented([each.reference for each in writings]),
        "content": sum(each.scored_bytes for each in writings) / bytes_written if bytes_written else None,
        "repeated": repeated([each.ids for each in writings]),
    }
    return {name: value for name, value in values.items() if value is not None}


def white_space(texts: Sequence[str]) -> float | None:
    """Share of white space in all characters; None without characters."""
    characters = sum(map(len, texts))
    return sum(character.isspace() for text in texts for character in text) / characters if characters else None


def indented(texts: Sequence[str]) -> float | None:
    """Share of lines with text that begin with a space or a tab; None without such lines.

    The first line of a text does not count: it goes on where another text ends.
    """
    lines = [line for text in texts for line in re.split(r"\r?\n", text)[1:] if line.strip()]
    return sum(line[0] in " \t" for line in lines) / len(lines) if lines else None


def repeated(rows: Sequence[Sequence[int]]) -> float | None:
    """Share of runs of four tokens that the same row has had before; None if no row has four tokens."""
    runs = [[tuple(row[start : start + _RUN]) for start in range(len(row) - _RUN + 1)] for row in rows]
    total = sum(map(len, runs))
    return 1 - sum(len(set(row)) for row in runs) / total if total else None


def _rise(writings: Sequence[Writing]) -> float | None:
    """How much larger the share of white space is than in the references, of rollouts that have one."""
    pairs = [(each.text, each.reference) for each in writings if each.reference]
    ours, theirs = (white_space([pair[side] for pair in pairs]) for side in (0, 1))
    return None if ours is None or theirs is None else ours - theirs


@dataclass(frozen=True)
class Breach:
    """A limit that was passed; ``guard`` is the name of its option."""

    guard: str
    what: str
    value: float
    limit: float

    def __str__(self) -> str:
        return f"{self.what} is {self.value:.3g}, the limit ({self.guard}) is {self.limit:.3g}"


class Guards:
    """Compares the mean of the last steps with limits, some of them relative to the mean of the first steps."""

    def __init__(self, options: GuardOptions) -> None:
        self._options = options
        self._first: list[dict[str, float]] = []
        self._recent: deque[dict[str, float]] = deque(maxlen=options.recent_steps)

    def check(self, values: Mapping[str, float]) -> list[Breach]:
        """Take in the measures of a step, and say which limits are passed now."""
        self._recent.append(dict(values))
        if len(self._first) < self._options.reference_steps:
            self._first.append(dict(values))
        if len(self._recent) < self._options.recent_steps:
            return []
        now = _means(self._recent)
        breaches = self._absolute(now)
        # The last steps must lie beyond the first ones, or a collapse would be compared with itself.
        if len(self._first) >= self._options.reference_steps:
            breaches += self._relative(now, _means(self._first[: self._options.reference_steps]))
        return [breach for breach in breaches if breach.value > breach.limit]

    def _absolute(self, now: Mapping[str, float]) -> list[Breach]:
        options, breaches = self._options, []
        if options.stop_mass is not None:
            breaches += [
                Breach("stop_mass", "the share of empty rollouts", now["empty"], options.stop_mass),
                Breach("stop_mass", "the mass on ending at once", now["end_mass"], options.stop_mass),
            ]
        if options.white_space_rise is not None and "white_space_rise" in now:
            what = "the share of white space, over that of the data,"
            breaches.append(Breach("white_space_rise", what, now["white_space_rise"], options.white_space_rise))
        if options.content_share is not None and "content" in now:
            what = "the share of written bytes that cannot be scored (1 less content_share)"
            breaches.append(Breach("content_share", what, 1 - now["content"], 1 - options.content_share))
        return breaches

    def _relative(self, now: Mapping[str, float], first: Mapping[str, float]) -> list[Breach]:
        options, breaches = self._options, []
        for name, words in (("length_median", "median"), ("length_p95", "95th percentile")):
            if options.length_growth is not None:
                growth = now[name] / max(first[name], 1.0)
                what = f"the growth of the {words} of lengths since the first steps"
                breaches.append(Breach("length_growth", what, growth, options.length_growth))
        rises = (("cut_off", "cut_off_rise", "rollouts cut off"), ("repeated", "repetition_rise", "repeated tokens"))
        for name, guard, words in rises:
            limit = getattr(options, guard)
            if limit is not None and name in now and name in first:
                what = f"the rise of the share of {words} since the first steps"
                breaches.append(Breach(guard, what, now[name] - first[name], limit))
        had, should = first.get("indented", 0.0), now.get("reference_indented", 0.0)
        if options.indentation_loss is not None and min(had, should) >= _SOME_INDENTATION:
            loss = 1 - now.get("indented", 0.0) / had
            breaches.append(Breach("indentation_loss", "the loss of indented lines", loss, options.indentation_loss))
        return breaches

    def state(self) -> dict[str, Any]:
        """What a resumed training goes on from, as JSON values."""
        return {"first": self._first, "recent": list(self._recent)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state`` gave."""
        self._first = [dict(each) for each in state["first"]]
        self._recent = deque((dict(each) for each in state["recent"]), maxlen=self._options.recent_steps)


def _means(steps: Sequence[Mapping[str, float]] | deque) -> dict[str, float]:
    """The mean of every measure over the steps that have it."""
    names = dict.fromkeys(name for step in steps for name in step)
    return {name: float(np.mean([step[name] for step in steps if name in step])) for name in names}
