"""The evaluate stage on a few short documents, from its inputs to the report that it writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.artifacts import EvaluationArtifact
from stages.evaluate import Evaluate
from stages.stage import StageContext

TEXTS = {
    "prose": [
        "The quick fox sleeps where two boundaries meet, and the dog jumps on.",
        "Lazy dogs sleep; foxes do not.",
    ],
    "code": ["def subtract(left, right):\n    return left - right\n\nprint(subtract(345, 12))\n"],
    "german": ["Im Wald steht ein naïves Häuschen, 東京 liegt weit weg 🙂."],
}


def write_documents(directory: Path, texts: Mapping[str, Sequence[str]]) -> Path:
    """A documents artifact: domain -> its texts."""
    directory.mkdir(parents=True)
    records = [
        {"id": f"{domain}/{number}", "domain": domain, "weight": 1.0, "text": text}
        for domain, of_domain in texts.items()
        for number, text in enumerate(of_domain)
    ]
    lines = (json.dumps(record) for record in records)
    (directory / "documents.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return directory


def context(
    directory: Path,
    documents: Path,
    teacher: Path,
    models: Mapping[str, Path],
    *,
    training: Path | None = None,
    **settings: Any,
) -> StageContext:
    """Everything the stage is given; ``settings`` are its options, ``training`` the documents of ``data.train``."""
    (directory / "work").mkdir(parents=True, exist_ok=True)
    (directory / "out").mkdir()
    inputs = {"models": models, "teacher": {"sources/teacher": teacher}, "documents": {"sources/eval": documents}}
    if training is not None:
        inputs["training"] = {"sources/train": training}
    return StageContext(
        config=Evaluate.Config.model_validate(settings),
        inputs=inputs,
        work=directory / "work",
        out=directory / "out",
    )


def run(ctx: StageContext) -> dict[str, Any]:
    """The report of a run whose output is a sound artifact."""
    Evaluate().run(ctx)
    EvaluationArtifact.verify(ctx.out)
    return json.loads((ctx.out / "report.json").read_text(encoding="utf-8"))


def section(report: Mapping[str, Any], name: str = "retention") -> dict[str, Any]:
    """The one section of that name."""
    (found,) = [section for section in report["sections"] if section["name"] == name]
    return found
