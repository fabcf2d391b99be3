"""From where an interrupted stage goes on, read off its ``work`` directory. Light: read while planning.

A phrase for people, that stands after "interrupted at" and "goes on from". Stages that keep something else than
checkpoints have a static method ``resume_point(work)`` of their own; ``newest_checkpoint`` speaks for all others.
"""

from __future__ import annotations

import json
import re
from pathlib import Path


def newest_checkpoint(work: Path, directory: str = "ckpt") -> str | None:
    """``step 1,200``: the highest ``step-N`` below ``directory`` whose marker is whole (R9); None if there is none."""
    complete = [
        int(match.group(1))
        for marker in work.glob(f"{directory}/step-*/COMPLETE.json")
        if (match := re.fullmatch(r"step-(\d+)", marker.parent.name)) and _is_whole(marker)
    ]
    return f"step {max(complete):,}" if complete else None


def counted(number: int, what: str) -> str | None:
    """``12 finished shards``, ``1 finished shard``; None for nothing."""
    return f"{number:,} {what}{'' if number == 1 else 's'}" if number else None


def _is_whole(marker: Path) -> bool:
    """A marker that a crash cut short is none."""
    try:
        return isinstance(json.loads(marker.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return False
