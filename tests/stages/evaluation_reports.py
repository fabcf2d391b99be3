"""A report as the ``evaluate`` stage writes it, from section reports of invented models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from stages.evaluation.sections import (
    Bars,
    Column,
    Curve,
    Item,
    Measure,
    Sample,
    SectionReport,
    Skipped,
    Table,
)

MODELS = ("teacher", "init", "control", "distill", "stochastok")
HOSTILE = "</script><script>document.title='run'</script><img src=x onerror=\"document.title='run'\"> & <!--"
UNSEEN = "two  spaces\n\ttab \x07bell \u200bzero\u202eright\u00a0hard \ufffd \u2028line"

BITS = Column("speeches", unit="bits per byte", better="lower", note="trained")
NOVEL = Column("novel", unit="bits per byte", better="lower", note="untrained")
TOKENS = Column("tokens per byte", digits=2)
ACCURACY = Column("accuracy", unit="%", better="higher", digits=1)


def _measures(values: Sequence[float], width: float) -> dict[str, Measure]:
    return {model: Measure(value, value - width, value + width) for model, value in zip(MODELS, values, strict=True)}


def _table(title: str, columns: Mapping[Column, Mapping[str, Measure]], references: Sequence[str]) -> Table:
    rows = {
        model: {column.name: measures[model] for column, measures in columns.items() if model in measures}
        for model in MODELS
    }
    differences = {
        reference: {
            model: {
                column.name: _minus(measures[model], measures[reference])
                for column, measures in columns.items()
                if model in measures and column.better
            }
            for model in MODELS
            if model != reference
        }
        for reference in references
    }
    return Table(title, tuple(columns), rows, differences)


def _minus(left: Measure, right: Measure) -> Measure:
    value, width = left.value - right.value, left.high - left.low
    return Measure(value, value - width / 2, value + width / 2)


def retention() -> SectionReport:
    """Bits per byte of five models; the best student of each domain is another one."""
    speeches = _measures((0.8513, 2.9171, 1.0122, 0.9036, 0.9148), 0.0123)
    novel = _measures((1.1042, 3.3121, 1.2345, 1.2411, 1.2399), 0.031)
    tokens = {model: Measure(0.229 if model == "teacher" else 0.281) for model in MODELS}
    table = _table(
        "Bits per byte on held-out text",
        {BITS: speeches, NOVEL: novel, TOKENS: tokens},
        ("teacher", "init", "control"),
    )
    bars = Bars(
        "Bits per byte by domain",
        "bits per byte (lower is better)",
        {model: {"speeches": speeches[model], "novel": novel[model]} for model in MODELS},
    )
    samples = (
        Sample("Four score and seven", {model: f" years ago {model}\n" for model in MODELS}, gold=" years ago our"),
        Sample(UNSEEN, {model: HOSTILE if model == "distill" else UNSEEN for model in MODELS}),
    )
    return SectionReport(
        "retention",
        "Retention",
        "Every model predicts the same bytes after the same bytes of context.",
        tables=(table,),
        bars=(bars,),
        items=(
            Item(
                "speeches/0",
                {"domain": "speeches"},
                "Four score",
                " and seven",
                {"teacher": " and"},
                {"teacher": False},
            ),
        ),
        samples=samples,
        skipped=(Skipped("document 7 of novel", "its text is changed by the tokenizer of init", "init"),),
        warnings=("stochastok on novel looks misaligned",),
        facts={"window_bytes": 1500, "bootstrap": {"resamples": 1000, "seed": 0}, "domains": ["speeches", "novel"]},
        metrics={f"{model}.bits_per_byte.speeches": measure.value for model, measure in speeches.items()},
    )


def langgame(items: int = 60) -> SectionReport:
    """Accuracy of four models, item by item; the teacher was not asked one of them."""
    values = _measures((61.25, 24.8, 31.04, 48.75, 55.449), 6.5)
    table = _table("Accuracy", {ACCURACY: values}, ("teacher", "control"))
    by_words = _table("Accuracy by words", {ACCURACY: values}, ("teacher", "control"))
    curve = Curve(
        "Accuracy by length",
        "letters",
        "accuracy, %",
        {
            model: [(length, 90 - 5 * length - 3 * place) for length in range(3, 9)]
            for place, model in enumerate(MODELS)
        },
    )
    return SectionReport(
        "langgame",
        "LangGame",
        f"Which of four words? Chance is 25 %.\n\n{HOSTILE}",
        tables=(table, by_words),
        bars=(Bars("Accuracy by task", "%", {model: {"contains": values[model]} for model in MODELS}),),
        curves=(curve,),
        items=tuple(_item(index) for index in range(items)),
        skipped=(Skipped("12 items", "the answer crosses a token boundary"),),
        facts={"digest": "sha256:0f1e2d", "chance": 0.25},
    )


def _item(index: int) -> Item:
    right = {model: index % 4 == 1 or index * (place + 2) % 7 in (1, 2, 3) for place, model in enumerate(MODELS)}
    return Item(
        id=f"item {index}",
        groups={"task": ("contains", "longest", "begins")[index % 3], "words": "held out" if index % 2 else "known"},
        prompt=HOSTILE if index == 3 else f"Which word contains the letter {chr(97 + index % 26)}?\n",
        gold="strawberry",
        answers={
            model: "strawberry" if right[model] else UNSEEN for model in MODELS if (index, model) != (0, "teacher")
        },
        correct={**right, **({"teacher": None} if index == 0 else {})},
        problems={"teacher": "crosses_boundary"} if index == 0 else {},
    )


def _preflight(model: str) -> dict[str, Any]:
    vocabulary = {"found": {"size": 50257, "hash": "0f1e2d"}, "falsifies": [], "failed": None}
    if model == "init":
        failed = "the tokenizer changes more than half of the documents of novel"
        return {"round trip": {"found": {"changed": 7}, "falsifies": ["score_texts"], "failed": failed}}
    passed = {"found": {"changed": 0}, "falsifies": ["score_texts"], "failed": None}
    return {"round trip": passed, "vocabulary": vocabulary}


def report(*, items: int = 60) -> dict[str, Any]:
    """The content of ``report.json``, as it is read back."""
    curve = [[step, 6 / (1 + step / 30)] for step in range(10, 410, 10)]
    training = {"steps": 400, "points": 40, "not_finite": 0, "measures": {"loss": curve, "alm": curve[::4]}}
    return json.loads(
        json.dumps(
            {
                "schema_version": 2,
                "title": f"Evaluation of {HOSTILE}",
                "settings": {"window_bytes": 1500, "max_documents": None, "trained_domains": ["speeches"]},
                "preflight": {model: _preflight(model) for model in MODELS},
                "sections": [retention().to_json(), langgame(items).to_json()],
                "curves": {"distill": training, "stochastok": {**training, "not_finite": 2}},
                "versions": {"tokenferry": "0.1.0", "torch": "2.13"},
            }
        )
    )
