"""What an installation and its machine are: facts for a bug report, none of them secret."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import psutil

from pipeline import provenance
from pipeline.executing.devices import gpu_names, visible_gpus
from pipeline.launch import recorded_environment
from pipeline.tracking.place import tracking_uri
from pipeline.urls import without_credentials
from pipeline.views.render import JSON_SCHEMA_VERSION

_PROGRAMS = ("torchrun", "deepspeed", "accelerate", "srun", "sbatch", "mlflow", "nvidia-smi")
_GIBIBYTE = 1 << 30


def _found(name: str) -> bool:
    """Whether the shell finds it, or stages do, which run beside this interpreter."""
    return shutil.which(name) is not None or Path(sys.executable).with_name(name).exists()


def describe(runs: Path) -> dict[str, Any]:
    """Versions, machine, what can launch stages, where runs and metrics go, and the variables that change training."""
    commit, dirty = provenance.git_state()
    place = runs if runs.exists() else Path.cwd()
    return {
        "schema_version": JSON_SCHEMA_VERSION,
        "versions": provenance.versions(),
        "code": f"{provenance.code_digest()[:12]} (commit {commit}{', changed' if dirty else ''})",
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": f"{psutil.virtual_memory().total / _GIBIBYTE:.0f} GiB",
        "free disk": f"{shutil.disk_usage(place).free / _GIBIBYTE:.0f} GiB at {place}",
        "GPUs": list(gpu_names()),
        "GPUs visible": visible_gpus(),
        "programs": [name for name in _PROGRAMS if _found(name)],
        "tracking": without_credentials(tracking_uri()),
        "environment": recorded_environment(),
    }
