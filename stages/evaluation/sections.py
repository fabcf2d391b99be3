"""A section of the evaluation: what it asks of one model, and what it says of all of them.

A section scores one model at a time, so that the models need not lie in memory together and finished ones survive an
interruption; its report then puts them side by side. Reports are plain data: the table, the page and the JSON file are
made from the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import nn

    from alignment.byte_view import ByteView
    from stages.evaluation.core import Scorer, Watch

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Measure:
    """A number with its 95 % interval, where there is one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Column:
    """One column of a table. ``better`` says which end is good; None for facts that are neither."""

    name: str
    unit: str = ""
    better: Literal["lower", "higher"] | None = None
    digits: int = 3


@dataclass(frozen=True)
class Table:
    """Models down, measures across. ``rows`` maps row name -> column name -> measure; a missing one is shown as "-"."""

    title: str
    columns: tuple[Column, ...]
    rows: Mapping[str, Mapping[str, Measure]]


@dataclass(frozen=True)
class Bars:
    """Groups of bars: ``values`` maps row name -> group -> measure."""

    title: str
    unit: str
    values: Mapping[str, Mapping[str, Measure]]


@dataclass(frozen=True)
class Curve:
    """Lines: ``lines`` maps row name -> points (x, y) in ascending x."""

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True)
class Item:
    """One question and what every model made of it, for the drill-down.

    Attributes:
        groups: what it counts in (task, stratum, …), name -> value.
        answers: row name -> answer as text.
        correct: row name -> whether it is right; None where the model could not be asked, ``problems`` says why.
        problems: row name -> reason.
    """

    id: str
    groups: Mapping[str, str]
    prompt: str
    gold: str
    answers: Mapping[str, str] = field(default_factory=dict)
    correct: Mapping[str, bool | None] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One prompt and how every model goes on: row name -> continuation."""

    prompt: str
    continuations: Mapping[str, str]


@dataclass(frozen=True)
class Skipped:
    """What was not measured, of which model (None: of any), and why."""

    what: str
    why: str
    model: str | None = None


@dataclass(frozen=True)
class SectionReport:
    """Everything that is shown of one section.

    Attributes:
        name: of the section; a heading's anchor and the first part of its metrics' names.
        about: what the numbers mean, in a paragraph: definitions, policies, chance level.
        facts: settings and digests that the numbers depend on.
        metrics: ``<row>.<measure>`` -> value, for MLflow; prefixed by the section's name when they are published.
        warnings: lines for the user.
    """

    name: str
    title: str
    about: str
    tables: tuple[Table, ...] = ()
    bars: tuple[Bars, ...] = ()
    curves: tuple[Curve, ...] = ()
    items: tuple[Item, ...] = ()
    samples: tuple[Sample, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    warnings: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain containers, for ``report.json``."""
        return asdict(self)


@dataclass(frozen=True)
class Subject:
    """One model under evaluation.

    Attributes:
        name: its row: the stage that made it, or ``teacher``.
        path: its directory; of an ensemble, None.
        view: its tokenizer; of an ensemble of several tokenizers, None.
        scorer: answers requests.
        model: the loaded model, where there is exactly one.
    """

    name: str
    path: Path | None
    view: ByteView | None
    scorer: Scorer
    model: nn.Module | None


class Section(Protocol):
    """One kind of question. ``name`` is a file name and an anchor."""

    name: str

    def score(self, subject: Subject, watch: Watch) -> Any:
        """What ``subject`` makes of the section's questions: plain JSON data, kept between attempts.

        Raises:
            StageError: the section cannot be asked of any model.
            StageInterrupted: out of ``watch``.
        """

    def report(self, results: Mapping[str, Any]) -> SectionReport:
        """Row name -> what ``score`` gave, the teacher's row first where there is one, to what is shown."""
