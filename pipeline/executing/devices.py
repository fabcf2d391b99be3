"""The GPUs of this machine, found without importing torch."""

from __future__ import annotations

import functools
import glob
import os
import subprocess


def visible_gpus() -> int:
    """How many GPUs a stage would find, judged by device files and by what the environment lets through."""
    present = len(glob.glob("/dev/nvidia[0-9]*"))
    if not present and glob.glob("/dev/kfd"):
        present = len(glob.glob("/dev/dri/renderD*"))
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return present
    names = [name.strip() for name in chosen.split(",")]
    valid = next((index for index, name in enumerate(names) if name in ("", "-1")), len(names))
    # An entry may be a slice of a GPU, of which one device file has several.
    return valid if present else 0


def gpu_visible() -> bool:
    """Whether a stage would find a GPU."""
    return visible_gpus() > 0


@functools.cache
def gpu_names() -> tuple[str, ...]:
    """Name, memory and driver of every NVIDIA GPU of this machine; empty where there is no ``nvidia-smi``."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in listed.splitlines() if line.strip())
