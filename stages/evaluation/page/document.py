"""The page as a whole: what is on it, in which order, and that nothing on it runs or is fetched but our own script."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from stages.evaluation.numbers import MISSING, interval, is_number, shown
from stages.evaluation.page.charts import Charts
from stages.evaluation.page.tables import differences_in_summary, models_of, section_rows, summary, without_interval
from stages.evaluation.page.text import script_data, visible

_TEMPLATES = Path(__file__).parent / "templates"


def render(report: Mapping[str, Any]) -> str:
    """The page of one evaluation, whose every number and text is taken from ``report``.

    Args:
        report: the content of ``report.json``, ``schema_version`` 2.
    """
    sections = report["sections"]
    models = models_of(report)
    charts = Charts(models)
    colours = {model: charts.style_class(model) for model in models}
    script = _read("items.js")
    asked = [section for section in sections if section["items"]]
    return (
        _environment()
        .get_template("page.html")
        .render(
            report=report,
            sections=sections,
            models=models,
            colours=colours,
            summary=summary(sections, models),
            section_rows=section_rows,
            without_interval=without_interval,
            differences_in_summary=differences_in_summary,
            charts=charts,
            skipped=[(section["title"], entry) for section in sections for entry in section["skipped"]],
            warnings=[(section["title"], line) for section in sections for line in section["warnings"]],
            findings={
                model: {name: check["found"] for name, check in checks.items()}
                for model, checks in report["preflight"].items()
            },
            items=sum(len(section["items"]) for section in asked),
            items_data=script_data(_items(asked, colours)),
            style=Markup(_read("page.css")),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"brief": brief, "flat": flat, "interval": interval, "shown": shown, "visible": visible}
    return environment


def _read(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _items(sections: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> dict[str, Any]:
    """What ``items.js`` shows; ``colours`` has all models."""
    return {
        "models": list(colours),
        "colours": list(colours.values()),
        "sections": [{"title": section["title"], "items": section["items"]} for section in sections],
    }


def brief(value: float | None) -> str:
    """``value`` with four significant digits: for numbers whose size nobody knows beforehand."""
    return f"{value:.4g}" if is_number(value) else MISSING


def flat(value: Any) -> list[tuple[str, str]]:
    """Leaves of nested objects and lists with their dotted path; a list of plain values is one leaf."""
    return list(_leaves(value, ""))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for name, child in value.items():
            yield from _leaves(child, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list) and any(isinstance(child, Mapping | list) for child in value):
        for index, child in enumerate(value):
            yield from _leaves(child, f"{path}.{index}" if path else str(index))
    elif isinstance(value, list):
        yield path, ", ".join(str(child) for child in value) or "none"
    elif not isinstance(value, Mapping):
        yield path, "none" if value is None else str(value)
    elif path:
        yield path, "none"
