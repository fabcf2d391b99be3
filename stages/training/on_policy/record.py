"""A sample of what the student wrote, for people to read: JSON lines in ``work``, published beside the model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from stages.training.monitoring import curve
from stages.training.on_policy.rollouts import Rollout

NAME = "rollouts.jsonl"
_SAMPLES = 2


def append(directory: Path, step: int, rollouts: Sequence[Rollout]) -> None:
    """Write down the first rollouts of a step (from 1)."""
    with (directory / NAME).open("a", encoding="utf-8") as file:
        for rollout in rollouts[:_SAMPLES]:
            line = {
                "step": step,
                "document": rollout.prompt.document_id,
                "prompt": rollout.prompt.text,
                "text": rollout.text,
                "tokens": rollout.sampled,
                "ended": rollout.end is not None,
                "reference": rollout.prompt.reference,
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def truncate(directory: Path, step: int) -> None:
    """Drop what was written after ``step``: a resumed run writes it again."""
    curve.truncate(directory, step, NAME)
