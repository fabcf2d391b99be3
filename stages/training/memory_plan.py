"""How much memory a training stage will take in each process, line by line, before anything is loaded.

Pure: from what the models weigh (``memory_facts``) and how the stage is laid out to bytes. With Φ parameters of which Ψ
train, e bytes of the compute type, N processes, V rows and width D of the output head, R = rows x tokens positions of a
micro-batch, S scores read at the head, and 1/N wherever ZeRO splits (Rajbhandari et al., arXiv 1910.02054, section 3
and figure 1; their K = 12 is our 4 + 8):

    student parameters     e Φ; split by ZeRO-3
    gradients              4 Ψ float32 sums, and e Ψ of one backward pass where e < 4; the sums split by ZeRO-2 and 3
    master weights         4 Ψ; split by ZeRO-1 to 3; none for fp32 without ZeRO
    Adam's moments         8 Ψ; split by ZeRO-1 to 3 (arXiv 1412.6980)
    activations            as counted; with checkpointing e R D a layer (arXiv 1604.06174)
    one layer at work      the activations of one layer: gradients in the backward pass, or computed again
    output head            4 R D (3 S + 2), e V D for the matrix's gradient, and a tile of r x c logits: 12 r c + 8 c D
                           (``losses.fused_head``)
    distributions          of the losses that compare them: 8 V D + 4 R D and blocks of logits (``losses.rowwise``)
    teacher parameters     as held; split by ZeRO-3
    teacher at work        one layer, and 8 R D at the head
    teacher's signals      of all micro-batches of a step: e R D and a layer's e R D each, 12 R K, or 8 R
    communication          DeepSpeed's bucket of b gradients, allocated whole by ZeRO-2 (e b) and 3 (4 b), as needed by
                           ZeRO-1 (4 min(Ψ, b)); and for ZeRO-3 e min(Φ, live parameters) that are gathered

An upper estimate: every row is taken to be full. What other processes of the machine hold, and a GPU's own context, are
not in it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from losses.scores import ACCELERATOR_TILE_BYTES, ACCELERATOR_TILE_ROWS, CPU_TILE_BYTES, CPU_TILE_ROWS
from stages.training.memory_facts import ModelMemory

GIB = 2**30
BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's ``reduce_bucket_size``, unless its configuration has another."""
_LIVE_ELEMENTS = 1_000_000_000
"""DeepSpeed's ``stage3_max_live_parameters``."""
_TILES = {False: (CPU_TILE_BYTES, CPU_TILE_ROWS), True: (ACCELERATOR_TILE_BYTES, ACCELERATOR_TILE_ROWS)}
"""Bytes of a tile of logits and its most rows, without and with an accelerator."""
_BLOCK_BYTES = {False: 256 * 2**20, True: 2 * GIB}
"""What blocks of logits may take without and with an accelerator (``losses.head_arithmetic``)."""

Offload = Literal["none", "cpu", "nvme"]
Place = Literal["device", "host", "nvme"]


@dataclass(frozen=True)
class Layout:
    """How a step is cut and where things are held.

    Attributes:
        rows, tokens: of a micro-batch.
        passes: forward passes of one process in a step.
        processes: that train together.
        student_stage, teacher_stage: what ZeRO splits; 0 for nothing.
        offload_optimizer, offload_parameters, offload_teacher: where they go instead of the device.
        bucket: gradients that DeepSpeed reduces together.
        checkpointing: activations are computed again in the backward pass.
        accelerator: the models are not on the CPU.
    """

    rows: int
    tokens: int
    passes: int
    processes: int = 1
    student_stage: int = 0
    teacher_stage: int = 0
    offload_optimizer: Offload = "none"
    offload_parameters: Offload = "none"
    offload_teacher: Offload = "none"
    bucket: int = BUCKET_ELEMENTS
    checkpointing: bool = False
    accelerator: bool = False

    @property
    def positions(self) -> int:
        """R, tokens of a micro-batch with its padding."""
        return self.rows * self.tokens

    def share(self, size: float, split: bool) -> float:
        """What one process holds of ``size`` that ZeRO splits, or not."""
        return size / self.processes if split else size


@dataclass(frozen=True)
class Reading:
    """What the losses read.

    Attributes:
        scores: log-probabilities at each position of the student: none, the label's, or the boundary's too.
        distributions: losses that compare whole distributions.
        signal: what is kept of the teacher for a step.
        top_k: tokens a position with ``signal`` top_k.
        layers: hidden layers that are read beside the last.
        projection: numbers in projections that the losses train.
    """

    scores: int
    distributions: int = 0
    signal: Literal["full", "top_k", "scores"] | None = None
    top_k: int = 0
    layers: int = 0
    projection: int = 0


@dataclass(frozen=True)
class Line:
    """One use of memory.

    Attributes:
        name: what it is.
        size: bytes in each process; None for what is not known before it is tried.
        place: where it is held.
    """

    name: str
    size: int | None
    place: Place = "device"


@dataclass(frozen=True)
class MemoryPlan:
    """All uses of memory in each process.

    Attributes:
        lines: in the order of the module's table, without empty ones.
    """

    lines: tuple[Line, ...]

    def total(self, place: Place) -> int:
        """Bytes in one place, as far as they are known."""
        return sum(line.size or 0 for line in self.lines if line.place == place)

    def table(self) -> list[str]:
        """One line of text a use, in GiB."""
        width = max(len(line.name) for line in self.lines)
        return [f"  {line.name:<{width}}  {_in_gib(line.size)}{_elsewhere(line)}" for line in self.lines]

    def record(self) -> dict[str, Any]:
        """The plan as JSON values, in bytes."""
        totals = {place: self.total(place) for place in ("device", "host", "nvme")}
        return {"lines": [asdict(line) for line in self.lines], "total": totals}


def plan_memory(
    student: ModelMemory, teacher: ModelMemory | None, layout: Layout, reading: Reading, *, copies: int = 0
) -> MemoryPlan:
    """What one process will hold at its fullest.

    Args:
        student: as it trains.
        teacher: None for none, for scores from a file, and for the student itself.
        layout: of the stage.
        reading: of the losses.
        copies: bytes of other copies of the student's weights, for a teacher made of the student.
    """
    lines = [*_states(student, layout, reading), *_student_at_work(student, layout, reading)]
    if teacher is not None:
        lines += _teacher(teacher, layout)
    lines.append(Line("copies for the teacher", copies))
    lines.append(Line("teacher's signals", _signals(teacher or student, layout, reading)))
    lines.append(Line("communication", _communication(student, layout)))
    return MemoryPlan(tuple(line for line in lines if line.size != 0))


def _states(student: ModelMemory, layout: Layout, reading: Reading) -> list[Line]:
    """Parameters, gradients and the optimiser's state."""
    stage, share = layout.student_stage, layout.share
    trained = student.trained + reading.projection
    parameters = share(student.parameter_bytes + student.itemsize * reading.projection, stage == 3)
    one_pass = student.itemsize * trained if student.itemsize < 4 else 0
    gradients = share(4 * trained, stage >= 2) + share(one_pass, stage == 3)
    masters = share(4 * trained, stage >= 1) if student.itemsize < 4 or stage >= 1 else 0
    state = _place(layout.offload_optimizer)
    return [
        Line("student parameters", round(parameters), _place(layout.offload_parameters)),
        Line("gradients", round(gradients), "device" if state == "device" else "host"),
        Line("master weights", round(masters), state),
        Line("Adam's moments", round(share(8 * trained, stage >= 1)), state),
    ]


def _student_at_work(student: ModelMemory, layout: Layout, reading: Reading) -> list[Line]:
    """What a forward and a backward pass of one micro-batch need beside."""
    rows_by_width = layout.positions * student.width
    matrix = student.output_rows * student.width
    activations = student.activations
    layer = None if activations is None else activations // student.layers
    if layout.checkpointing:
        activations = student.itemsize * rows_by_width * student.layers
    head = _output_head(student, layout, reading.scores) if reading.scores else 0
    distributions = 0
    if reading.distributions:
        block = min(_BLOCK_BYTES[layout.accelerator], 32 * layout.positions * student.output_rows)
        distributions = 4 * rows_by_width * reading.distributions + block
        distributions += 8 * matrix * student.vocabulary_trains * reading.distributions
    return [
        Line("activations", activations),
        Line("one layer at work", layer),
        Line("output head", head),
        Line("distributions", distributions),
    ]


def _output_head(student: ModelMemory, layout: Layout, scores: int) -> int:
    """The fused head: what it keeps, a tile of logits with its temporaries, and that tile's part of the matrix."""
    budget, most = _TILES[layout.accelerator]
    columns = min(student.output_rows, budget // (4 * min(layout.positions, most)))
    tile = 3 * 4 * columns * min(layout.positions, most) + 2 * 4 * columns * student.width
    matrix = student.itemsize * student.output_rows * student.width * student.vocabulary_trains
    return 4 * layout.positions * student.width * (3 * scores + 2) + tile + matrix


def _teacher(teacher: ModelMemory, layout: Layout) -> list[Line]:
    split = layout.teacher_stage == 3
    matrix = teacher.itemsize * teacher.output_rows * teacher.width  # whole everywhere: it is read after the layers
    layer = None if teacher.activations is None else teacher.activations // teacher.layers
    return [
        Line("teacher parameters", round(layout.share(teacher.parameter_bytes, split)), _place(layout.offload_teacher)),
        Line("teacher's output matrix", matrix if split else 0),
        Line("teacher at work", None if layer is None else layer + 8 * layout.positions * teacher.width),
    ]


def _signals(teacher: ModelMemory, layout: Layout, reading: Reading) -> int:
    positions = layout.positions * layout.passes
    if reading.signal is None:
        return 0
    if reading.signal == "full":
        return positions * (8 + teacher.itemsize * teacher.width * (1 + reading.layers))
    return positions * (8 + 12 * reading.top_k)


def _communication(student: ModelMemory, layout: Layout) -> int:
    gathered = student.itemsize * min(student.parameters, _LIVE_ELEMENTS)
    return {
        0: 0,
        1: 4 * min(student.trained, layout.bucket),
        2: student.itemsize * layout.bucket,
        3: 4 * layout.bucket + gathered,
    }[layout.student_stage]


def _place(offload: Offload) -> Place:
    return {"none": "device", "cpu": "host", "nvme": "nvme"}[offload]


def _in_gib(size: int | None) -> str:
    return "  unknown" if size is None else f"{size / GIB:9.3f}"


def _elsewhere(line: Line) -> str:
    return {"device": "", "host": "  in host memory", "nvme": "  on NVMe"}[line.place]
