"""A section of the evaluation: what it asks of one model, and what it says of all of them.

A section scores one model at a time, so that the models need not lie in memory together and finished ones survive an
interruption; its report then puts them side by side. Reports are plain data: the table, the page and the JSON file are
made from the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import nn

    from alignment.byte_view import ByteView
    from stages.evaluation.core import Ability, Scorer, Watch
    from stages.evaluation.windows import Conversation, Document

SCHEMA_VERSION = 2
TEACHER = "teacher"
"""Row name of the teacher."""

FEWEST = 6
"""Documents or items that an interval takes at least: five that do not differ in truth all lean to one side in 1 of 16
cases, which is more often than a 95 % interval may err; six do so in 1 of 32."""


@dataclass(frozen=True)
class Measure:
    """A number with its 95 % interval, where there is one.

    Attributes:
        too_few: documents or items that the number is of, where they are fewer than an interval takes.
    """

    value: float
    low: float | None = None
    high: float | None = None
    too_few: int | None = None


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        unit: of the values, which are shown as they are: a share of 0.5 is 0.5, or 50 with the unit "%".
        better: which end is good; None for facts that are neither.
        digits: decimals shown.
        note: a second line of the heading, such as whether a domain was trained on.
        measured_from: rows whose own numbers the column's are shares of; of two runs they must be the same for the
            column to be compared.
    """

    name: str
    unit: str = ""
    better: Literal["lower", "higher"] | None = None
    digits: int = 3
    note: str = ""
    measured_from: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """Models down, measures across.

    Attributes:
        rows: row name -> column name -> measure; a missing one is shown as "-".
        differences: reference (``teacher``, the initial model, the control) -> row name -> column name -> row minus
            reference, in the column's unit, with a paired interval where there is one.
    """

    title: str
    columns: tuple[Column, ...]
    rows: Mapping[str, Mapping[str, Measure]]
    differences: Mapping[str, Mapping[str, Mapping[str, Measure]]] = field(default_factory=dict)


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
    """One prompt and how every model goes on: row name -> continuation; ``gold`` is how the text itself does."""

    prompt: str
    continuations: Mapping[str, str]
    gold: str = ""


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
        tables: the first has the key measures, which the page's summary and ``table.txt`` begin with.
        facts: settings and digests that the numbers depend on.
        metrics: ``<row>.<measure>`` -> value, for MLflow; prefixed by the section's name when they are published.
        warnings: lines for the user.
        data: numbers behind what is shown, for programs; JSON alone, never on the page.
        files: path -> text, written below a directory of the section's name; ``report.json`` has the paths.
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
    data: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain containers, for ``report.json``."""
        return asdict(replace(self, files={})) | {"files": list(self.files)}


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


@dataclass(frozen=True)
class SectionContext:
    """What sections may know before a model is loaded.

    Attributes:
        paths: row name -> directory of every model, the teacher's first.
        views: row name -> its tokenizer; an ensemble of several has none.
        trained_domains: domains of the documents that the students were trained on.
        initial, control: rows that every measure is also given relative to, beside the teacher's, where the recipe
            names them.
        changed: row name -> ids of the documents that its tokenizer does not spell -> where.
        conversations: those of the evaluation data; the other documents are plain text.
        batch_tokens: tokens of one forward pass, padding included.
        cache: a directory for tables that any stage may need again; None for none.
        window_bytes: most bytes of a window of retention.
    """

    paths: Mapping[str, Path]
    views: Mapping[str, ByteView]
    trained_domains: Sequence[str]
    initial: str | None
    control: str | None
    changed: Mapping[str, Mapping[str, str]]
    conversations: Sequence[Conversation]
    batch_tokens: int
    cache: Path | None
    window_bytes: int = 1500

    def references(self) -> dict[str, str]:
        """What every other row's measures are compared with, keys of ``Table.differences``: role -> row name."""
        found = {TEACHER: TEACHER, "initial": self.initial, "control": self.control}
        return {role: row for role, row in found.items() if row is not None}


class Section(Protocol):
    """One kind of question.

    Attributes:
        name: a file name and an anchor.
        relies_on: what the preflight must not have denied a model; a section without the attribute relies on all.
    """

    name: str
    relies_on: frozenset[Ability]

    def score(self, subject: Subject, watch: Watch) -> Any:
        """What ``subject`` makes of the section's questions: plain JSON data without NaN, kept between attempts.

        Raises:
            StageError: the section cannot be asked of this model, which is then listed as skipped.
            StageInterrupted: out of ``watch``.
        """

    def report(self, results: Mapping[str, Any]) -> SectionReport:
        """Row name -> what ``score`` gave, the teacher's row first, to what is shown.

        Any row may be missing, the teacher's too: it was skipped, which the stage adds to the report. At least one is
        there. Values have been through JSON: keys are strings, tuples lists.
        """


Sections = Callable[[Any, "Sequence[Document]", SectionContext], Sequence[Section]]
"""Makes sections of an option's value (see ``SECTIONS`` of the stage ``evaluate``) and the plain-text documents.

Raises:
    StageError: the options do not fit the models or documents.
"""
