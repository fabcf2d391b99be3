"""``init.json``: how every row of the new model came about."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignment.byte_view import ByteView
from alignment.vocab_report import spelling
from stages.initialisation.chain import MadeRows
from stages.initialisation.plan import TensorPlan
from stages.initialisation.task import Transplant

SCHEMA_VERSION = 2
_LISTED = 20


def describe(
    config: Any,
    transplant: Transplant,
    plans: Mapping[str, TensorPlan],
    made: Mapping[str, MadeRows],
    *,
    matrix_rows: int,
    tied: bool,
) -> dict[str, Any]:
    """What was made from what, as JSON values.

    ``tensors`` holds for each tensor its role, dtype, methods with their options, the rows that each made and those of
    it that were rejected, anchors, diagnostics, and the sha256 of its rows (without padding) and of the weights over
    old rows that made them.
    """
    alignment = transplant.alignment
    return {
        "schema_version": SCHEMA_VERSION,
        "tokenizer_size": alignment.target_size,
        "matrix_rows": matrix_rows,
        "padding_rows": matrix_rows - alignment.target_size,
        "tied": tied,
        "seed": config.seed,
        "copy_exact": config.copy_exact,
        "source_fingerprint": alignment.source_fingerprint,
        "target_fingerprint": alignment.target_fingerprint,
        "alignment_fingerprint": alignment.fingerprint,
        "tensors": {name: _describe_tensor(plan, made[name], transplant.target) for name, plan in plans.items()},
    }


def _describe_tensor(plan: TensorPlan, made: MadeRows, target: ByteView) -> dict[str, Any]:
    return {
        "role": plan.tensor.role,
        "dtype": str(made.values.dtype).removeprefix("torch."),
        "chain": [options.model_dump(mode="json", exclude_none=True) for options in plan.chain],
        "methods": list(made.methods),
        "rows": made.counts,
        "rejected": {name: _listing(ids, target) for name, ids in made.rejected.items() if ids},
        "anchors": {"shared": plan.anchors.shared, "used": len(plan.task.anchor_source)},
        "broken_donor_rows": _listing(plan.anchors.broken, target),
        "diagnostics": {name: _summary(values) for name, values in made.diagnostics.items()},
        "biases": sorted(made.followers),
        "sha256": _digest(made.values),
        "weights_sha256": made.weights_sha256,
    }


def _listing(ids: Sequence[int], target: ByteView) -> dict[str, Any]:
    """How many tokens there are, and the first of them."""
    rows = [{"id": token, "token": spelling(target, token)} for token in ids[:_LISTED]]
    return {"count": len(ids), "rows": rows}


def _summary(values: np.ndarray) -> dict[str, float]:
    known = values[np.isfinite(values)]
    if not len(known):
        return {"rows": 0}
    return {
        "rows": len(known),
        "mean": float(known.mean()),
        "median": float(np.median(known)),
        "largest": float(known.max()),
    }


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().data).hexdigest()
