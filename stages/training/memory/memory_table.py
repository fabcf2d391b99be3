"""The lines of a memory plan: what each use of memory takes, where and when; what they come to, and how they look."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

GIB = 2**30

_LIBRARIES = 768 * 2**20
"""What grows beside tensors: libraries imported on the way (DeepSpeed, torch's compiler), text, and what libraries keep
of shapes that they have met. In runs on a CPU 0.05 to 0.7 GiB, the most in bf16 with windows of many lengths."""

_SLACK = 0.1
"""Share of the tensors that the C library's allocator does not give back, and a checkpoint that is being read."""

Place = Literal["device", "host", "nvme"]
When = Literal["always", "in a step", "while the student writes"]


@dataclass(frozen=True)
class Line:
    """One use of memory.

    Attributes:
        name: what it is.
        size: bytes in each process; None for what is not known before it is tried.
        place: where it is held.
        when: it is held; what a step needs and what the student needs to write are never there together.
    """

    name: str
    size: int | None
    place: Place = "device"
    when: When = "always"


@dataclass(frozen=True)
class MemoryPlan:
    """All uses of memory in each process.

    Attributes:
        lines: in the order of the module's table, without empty ones.
    """

    lines: tuple[Line, ...]

    def total(self, place: Place) -> int:
        """Bytes in one place at the fullest, as far as they are known."""
        sizes = dict.fromkeys(get_args(When), 0)
        for line in self.lines:
            if line.place == place:
                sizes[line.when] += line.size or 0
        return sizes["always"] + max(sizes["in a step"], sizes["while the student writes"])

    def of_process(self, resident: int) -> MemoryPlan:
        """The same for a training on the CPU, where what is measured is the whole process and not tensors alone.

        Args:
            resident: bytes that the process holds before the training: Python, libraries, tokenizers.
        """
        allowance = _LIBRARIES + round(_SLACK * self.total("device"))
        return MemoryPlan((*self.lines, Line("process so far", resident), Line("allowance", allowance)))

    def table(self) -> list[str]:
        """One line of text a use, in GiB."""
        width = max(len(line.name) for line in self.lines)
        return [f"  {line.name:<{width}}  {_in_gib(line.size)}{_elsewhere(line)}" for line in self.lines]

    def record(self) -> dict[str, Any]:
        """The plan as JSON values, in bytes."""
        totals = {place: self.total(place) for place in ("device", "host", "nvme")}
        return {"lines": [asdict(line) for line in self.lines], "total": totals}


def _in_gib(size: int | None) -> str:
    return "  unknown" if size is None else f"{size / GIB:9.3f}"


def _elsewhere(line: Line) -> str:
    place = {"device": "", "host": "  in host memory", "nvme": "  on NVMe"}[line.place]
    return place + (f"  {line.when}" if line.when == "while the student writes" else "")
