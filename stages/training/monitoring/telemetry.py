"""How fast training goes and what it spends its time and memory on, averaged over the steps between two log lines."""

from __future__ import annotations

import re
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from stages.training.monitoring.flops import ModelFlops
from stages.training.monitoring.step_record import StepRecord

WAITED = "waited"
"""Fact of a step beside its contents: the seconds that a process waited for its batch."""


class Telemetry:
    """Adds up what steps measured; every number covers all processes, but for times of phases and memory.

    Args:
        device: of this process.
        student: what the student's operations are counted from.
        teachers: likewise, one for each teacher; None for one that runs no model.
        peak_flops: operations that one device could do in a second; None if nobody knows.
    """

    def __init__(
        self,
        device: torch.device,
        student: ModelFlops,
        teachers: Sequence[ModelFlops | None],
        peak_flops: float | None,
    ) -> None:
        self._device = device
        self._student = student
        self._teachers = teachers
        self._peak_flops = peak_flops
        self._all_steps, self._all_seconds = 0, 0.0
        self.begin()

    def add(self, record: StepRecord) -> None:
        """Count one step."""
        self._steps += 1
        for name, value in record.contents().items():
            self._contents[name] = self._contents[name] + value
        for phase, seconds in record.seconds().items():
            self._phases[phase] += seconds

    @contextmanager
    def apart(self) -> Iterator[None]:
        """What is done inside (saving, evaluating) counts as no time of training."""
        start = time.monotonic()
        yield
        self._started += time.monotonic() - start

    @property
    def seconds_per_step(self) -> float:
        """Mean over all reported steps of this attempt."""
        return self._all_seconds / max(1, self._all_steps)

    @property
    def peak_memory_mib(self) -> float:
        """Most memory so far, in MiB: of the accelerator's allocator, or of this process on a CPU."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / 2**20
        return _peak_resident_bytes() / 2**20

    def report(self) -> dict[str, float]:
        """Rates and shares since the last report, by the names under which they are logged."""
        seconds = time.monotonic() - self._started
        self._all_steps, self._all_seconds = self._all_steps + self._steps, self._all_seconds + seconds
        processes = float(self._contents["processes"]) / self._steps
        waited = float(self._contents[WAITED]) / processes
        flops = self._flops() / processes / seconds
        values = {
            **_chunk_lengths(self._contents),
            "student_tokens_per_second": float(self._contents["student_tokens"]) / seconds,
            "teacher_tokens_per_second": float(self._contents["teacher_tokens"].sum()) / seconds,
            "bytes_per_second": float(self._contents["bytes"]) / seconds,
            "teraflops_per_second": flops / 1e12,
            "data_wait_share": waited / seconds,
            "seconds.step": seconds / self._steps,
            "seconds.data": waited / self._steps,
            **{f"seconds.{phase}": spent / self._steps for phase, spent in self._phases.items()},
            "peak_memory_mib": self.peak_memory_mib,
        }
        if self._peak_flops is not None:
            values["mfu"] = flops / self._peak_flops
        self.begin()
        return values

    def begin(self) -> None:
        """Measure from here: what was before counts for no report."""
        self._started = time.monotonic()
        self._steps = 0
        self._contents: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64))
        self._phases: dict[str, float] = defaultdict(float)

    def _flops(self) -> float:
        """Operations of all processes since the last report."""
        facts = ("tokens", "predictions", "pairs")
        student = [float(self._contents[f"student_{name}"]) for name in facts]
        teachers = torch.stack([self._contents[f"teacher_{name}"] for name in facts]).T.tolist()
        return self._student.training(*student) + sum(
            model.forward(*facts) for model, facts in zip(self._teachers, teachers, strict=True) if model is not None
        )


def _chunk_lengths(contents: Mapping[str, Tensor]) -> dict[str, float]:
    """How much of the text is in chunks, and how long these are before any objective merges them."""
    text, chunks = float(contents["bytes"]), float(contents["chunks"])
    if not text or not chunks:
        return {}
    lengths = {
        "coverage": float(contents["chunk_bytes"]) / text,
        "bytes_per_chunk": float(contents["chunk_bytes"]) / chunks,
        "student_tokens_per_chunk": float(contents["student_chunk_tokens"]) / chunks,
    }
    if teacher := float(contents["teacher_chunk_tokens"].sum()):
        lengths["teacher_tokens_per_chunk"] = teacher / chunks
    return lengths


def _peak_resident_bytes() -> int:
    """The most memory that this process has held so far."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:  # not Linux
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak << 10
    # ru_maxrss would begin at what the process held that started this one.
    return int(re.search(r"^VmHWM:\s+(\d+) kB$", status, flags=re.M)[1]) << 10
