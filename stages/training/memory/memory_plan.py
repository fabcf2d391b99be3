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
    copies for the teacher of the student: its vocabulary as it was; or its average, 4 Ψ beside the teacher's own where
                           e < 4, and 4 V D for the master weights of one matrix where ZeRO splits them
    communication          DeepSpeed's bucket of b gradients, allocated whole by ZeRO-2 (e b) and 3 (4 b), as needed by
                           ZeRO-1 (4 min(Ψ, b)); and for ZeRO-3 e min(Φ, live parameters) that are gathered

And while the student writes B rollouts of L tokens at a time, between steps, when there are neither activations nor
anything else that a step alone needs:

    rollouts' cache        keys and values, 2 n H d e B L for n layers of H key-value heads of width d
    rollouts at work       one layer over all of B L, that layer's cache once more as it grows, and 64 B V for what is
                           sampled from (``stages.generation.sampling``, in float64)

The total has the larger of the two. An upper estimate: every row is taken to be full. These are tensors alone; on a
CPU, where nothing tells them from the rest of a process, ``MemoryPlan.of_process`` adds the rest. What other processes
of the machine hold, and a GPU's own context and the slack of its allocator, are not in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from losses.scores import ACCELERATOR_TILE_BYTES, ACCELERATOR_TILE_ROWS, CPU_TILE_BYTES, CPU_TILE_ROWS
from stages.training.backends.deepspeed_config import BUCKET_ELEMENTS
from stages.training.memory.memory_facts import ModelMemory
from stages.training.memory.memory_table import GIB, Line, MemoryPlan, Place

_LIVE_ELEMENTS = 1_000_000_000
"""DeepSpeed's ``stage3_max_live_parameters``."""
_TILES = {False: (CPU_TILE_BYTES, CPU_TILE_ROWS), True: (ACCELERATOR_TILE_BYTES, ACCELERATOR_TILE_ROWS)}
"""Bytes of a tile of logits and its most rows, without and with an accelerator."""
_BLOCK_BYTES = {False: 256 * 2**20, True: 2 * GIB}
"""What blocks of logits may take without and with an accelerator (``losses.head_arithmetic``)."""

Offload = Literal["none", "cpu", "nvme"]

_SAMPLING_BYTES = 64
"""A row and token of the vocabulary: of logits, probabilities, their order and their sums, as many as live at once."""


@dataclass(frozen=True)
class Layout:
    """How a step is cut and where things are held.

    Attributes:
        rows, tokens: of a micro-batch.
        passes: forward passes of one process in a step.
        processes: that train together.
        student_stage, teacher_stage: what ZeRO splits; 0 for nothing.
        offload_optimizer, offload_parameters, offload_teacher: where they go instead of the device.
        bucket: gradients that DeepSpeed reduces together (``reduce_bucket_size``).
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
class Rollouts:
    """What the student writes at a time (on-policy distillation).

    Attributes:
        rows: rollouts that one process writes together.
        tokens: longest of them, with its prompt.
        cache: bytes of keys and values of them all; None where it is not known.
    """

    rows: int
    tokens: int
    cache: int | None


def plan_memory(
    student: ModelMemory,
    teacher: ModelMemory | None,
    layout: Layout,
    reading: Reading,
    *,
    copies: int = 0,
    rollouts: Rollouts | None = None,
) -> MemoryPlan:
    """What one process will hold at its fullest.

    Args:
        student: as it trains.
        teacher: None for none, for scores from a file, and for the student itself.
        layout: of the stage.
        reading: of the losses.
        copies: bytes of other copies of the student's weights, for a teacher made of the student.
        rollouts: what the student writes; None for nothing.
    """
    lines = [*_states(student, layout, reading), *_student_at_work(student, layout, reading)]
    if teacher is not None:
        lines += _teacher(teacher, layout)
    lines.append(Line("copies for the teacher", copies))
    lines.append(Line("teacher's signals", _signals(teacher or student, layout, reading), when="in a step"))
    lines.append(Line("communication", _communication(student, layout)))
    if rollouts is not None:
        lines += _writing(student, layout, rollouts)
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
        Line("activations", activations, when="in a step"),
        Line("one layer at work", layer, when="in a step"),
        Line("output head", head, when="in a step"),
        Line("distributions", distributions, when="in a step"),
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
    at_work = None if layer is None else layer + 8 * layout.positions * teacher.width
    return [
        Line("teacher parameters", round(layout.share(teacher.parameter_bytes, split)), _place(layout.offload_teacher)),
        Line("teacher's output matrix", matrix if split else 0),
        Line("teacher at work", at_work, when="in a step"),
    ]


def _writing(student: ModelMemory, layout: Layout, rollouts: Rollouts) -> list[Line]:
    """What the student needs to write, beside its weights."""
    at_work = None
    if rollouts.cache is not None and student.activations is not None:
        layer = student.activations / student.layers * rollouts.rows * rollouts.tokens / layout.positions
        sampling = _SAMPLING_BYTES * rollouts.rows * student.output_rows
        at_work = round(layer + rollouts.cache / student.layers) + sampling
    return [
        Line("rollouts' cache", rollouts.cache, when="while the student writes"),
        Line("rollouts at work", at_work, when="while the student writes"),
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
