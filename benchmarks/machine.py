"""The line that every benchmark begins with: on what it was measured."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version


def machine(device: str = "cpu") -> str:
    """The accelerator, or how many CPUs, with their architecture."""
    if device == "cuda":
        import torch

        return f"{torch.cuda.get_device_name()} ({platform.machine()})"
    return f"{os.cpu_count()} CPUs ({platform.machine()})"


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Of those ``packages`` that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # what we compare with need not be there
            continue
    return found


def measured_on(packages: Sequence[str], *, device: str = "cpu", threads: int | None = None) -> str:
    """Machine, threads, Python and packages in a line."""
    named = ", ".join(f"{package} {number}" for package, number in versions(packages).items())
    counted = "" if threads is None else f", {'one thread' if threads == 1 else f'{threads} threads'}"
    return f"{machine(device)}{counted}; Python {platform.python_version()}, {named}"
