"""One part of the audit's report, as both the text and the page show it."""

from __future__ import annotations

from dataclasses import dataclass

Row = tuple[str, ...]


@dataclass(frozen=True)
class Column:
    """A column of a table: heading, whether it holds numbers, what they mean, and whether the text has it too."""

    heading: str
    numeric: bool = True
    meaning: str = ""
    brief: bool = True


@dataclass(frozen=True)
class Section:
    """One part of the report.

    Attributes:
        identity: its name in links and for plots, one word.
        title: a heading that gives the result where there is one.
        sentences: for a person.
        details: more of them, on the page alone.
        columns, rows: a table; the page has it whole.
        brief: the rows that the text shows.
    """

    identity: str
    title: str
    sentences: tuple[str, ...] = ()
    details: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    rows: tuple[Row, ...] = ()
    brief: tuple[Row, ...] = ()
