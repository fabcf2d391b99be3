"""What a training stage leaves: an ordinary Hugging Face directory, and beside the model how it came about."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from transformers import AutoTokenizer

from stages.artifacts import write_json
from stages.stage import StageContext
from stages.training.backends.backend import Backend
from stages.training.memory import memory_report
from stages.training.models import ScoringModel
from stages.training.monitoring import curve

MAX_SHARD_SIZE = "5GB"
_SCRATCH = "export"


def export_student(ctx: StageContext, backend: Backend, student: ScoringModel, notes: Mapping[str, Any]) -> None:
    """Write weights, configuration and tokenizer to ``ctx.out``, with the training curve and what is to be said of it.

    A student that ZeRO-3 has split is put together on disk, a tensor at a time, and read from there file by file, so
    that no process ever holds it whole. Collective; an export that was killed is simply done again.

    Args:
        ctx: the stage's context.
        backend: holds the weights.
        student: names them.
        notes: becomes ``training_data.json``, if there are any.
    """
    scratch = ctx.work / _SCRATCH
    if ctx.rank == 0:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
    weights = backend.weights(scratch)
    if ctx.rank != 0 or weights is None:
        return
    if ctx.config.adapter is not None:
        from stages.training.adapters.adapters import merged_weights  # PEFT takes a second to import

        weights = merged_weights(student.model, weights)
    student.model.save_pretrained(ctx.out, state_dict=dict(weights), max_shard_size=MAX_SHARD_SIZE)
    shutil.rmtree(scratch)
    tokenizer = AutoTokenizer.from_pretrained(ctx.input("student"))
    tokenizer.save_pretrained(ctx.out)
    for name in (curve.NAME, memory_report.NAME):
        shutil.copy2(ctx.work / name, ctx.out / name)
    if notes:
        write_json(ctx.out / "training_data.json", notes)
