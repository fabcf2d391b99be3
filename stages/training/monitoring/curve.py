"""The training curve of a stage: JSON lines in ``work``, published beside the model as ``training.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

NAME = "training.jsonl"


def append(directory: Path, step: int, values: Mapping[str, float]) -> None:
    """Add one point."""
    with (directory / NAME).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, **values}) + "\n")


def truncate(directory: Path, step: int, name: str = NAME) -> None:
    """Drop points after ``step``: a resumed run takes those steps again, and the curve must not double back."""
    path = directory / name
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            point = json.loads(line)
        except json.JSONDecodeError:
            continue  # the line a kill cut short, or nothing after the last one
        if point["step"] <= step:
            kept.append(line)
    temporary = path.with_name(f"{name}.tmp")  # a kill in the middle must not cost the points before
    temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    temporary.replace(path)
