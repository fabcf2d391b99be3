"""How gradients are kept, reduced and applied: by plain replicas of the student, or by DeepSpeed ZeRO.

All backends take losses that are already divided by the global count of their units, so one step's gradient is the
sum over all micro-batches and processes. Nothing else in the engine knows which backend runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch import distributed as dist

from stages.sharded import whole_shape
from stages.training.backends import process_group
from stages.training.config import TrainingConfig
from stages.training.data.batch import SideBatch
from stages.training.models import Losses, Pass, ScoringModel
from stages.training.optimiser import parameter_groups, set_learning_rate
from stages.training.saving import state_files

_BUCKET_ELEMENTS = 2**24
"""Gradient elements that one collective call adds up."""


class Backend(Protocol):
    """What the training loop needs; the seam behind which processes and sharding hide."""

    def forward(self, batch: SideBatch, losses: Losses, measure: bool) -> Pass:
        """``ScoringModel.forward`` of the student, with gradients."""

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add one micro-batch's gradient; ``last`` marks the final one of the step."""

    def step(self, number: int) -> Tensor:
        """Clip and apply the optimiser for step ``number`` (from 0), finite or not.

        Returns:
            The gradient norm before clipping, a scalar on the device that nobody has waited for.
        """

    def sum(self, values: Tensor) -> Tensor:
        """Sum of ``values`` over all processes."""

    def masters(self) -> Iterator[tuple[str, Tensor]]:
        """Name and whole float32 value of every parameter that trains, as the optimiser keeps it: not rounded to bf16.

        Collective: every process must go through all of them. A value is to be read before the next one.
        """

    def shapes(self) -> state_files.Shapes:
        """Names and shapes of all parameters that train."""

    def saved_bytes(self) -> int:
        """What ``save`` takes on disk, all processes together; never too few."""

    def save(self, directory: Path) -> None:
        """Write this process's part of a checkpoint; returns after every process has written."""

    def load(self, directory: Path) -> None:
        """Restore what was saved, by any backend with any number of processes.

        Raises:
            StageError: it is the state of another model.
        """

    def weights(self, scratch: Path) -> Mapping[str, Tensor] | None:
        """The student's full state dict in the compute type, on rank 0; None elsewhere. Collective.

        Args:
            scratch: a directory for weights that are too large to be held together; the tensors read from it.
        """


def trained_parameters(student: ScoringModel) -> dict[str, nn.Parameter]:
    """The parameters that train, by name, each once."""
    return {name: parameter for name, parameter in student.named_parameters() if parameter.requires_grad}


def shapes_of(student: ScoringModel) -> state_files.Shapes:
    """Names and whole shapes of the parameters that train."""
    return {name: tuple(whole_shape(parameter)) for name, parameter in trained_parameters(student).items()}


def adamw(student: ScoringModel, config: TrainingConfig) -> torch.optim.AdamW:
    """The optimiser of everything that trains."""
    groups = parameter_groups(student.model, student.auxiliary, config)
    return torch.optim.AdamW(groups, betas=config.betas, fused=True)


class PlainBackend:
    """The whole student in every process, on CPU or one GPU each; gradients are added up over the processes.

    A bf16 student keeps float32 master weights and float32 gradient sums beside its bf16 parameters, so neither small
    updates nor the split into micro-batches are lost in rounding.
    """

    def __init__(self, student: ScoringModel, config: TrainingConfig) -> None:
        self._student = student
        self._config = config
        self._trained = trained_parameters(student)
        self._optimiser = adamw(student, config)
        self._masters = self._trained
        if config.dtype == "bf16":
            self._masters = {name: nn.Parameter(p.detach().float()) for name, p in self._trained.items()}
            master_of = {id(p): self._masters[name] for name, p in self._trained.items()}
            for group in self._optimiser.param_groups:
                group["params"] = [master_of[id(p)] for p in group["params"]]

    def forward(self, batch: SideBatch, losses: Losses, measure: bool) -> Pass:
        return self._student(batch, losses, measure)

    def backward(self, loss: Tensor, last: bool) -> None:
        loss.backward()
        if self._masters is self._trained:
            return
        for name, parameter in self._trained.items():
            if parameter.grad is None:
                continue
            master = self._masters[name]
            if master.grad is None:
                master.grad = parameter.grad.float()
            else:
                master.grad.add_(parameter.grad)
            parameter.grad = None

    def step(self, number: int) -> Tensor:
        set_learning_rate(self._optimiser, number, self._config)
        masters = list(self._masters.values())
        for master in masters:
            if master.grad is None:  # as ZeRO, which has one gradient for all: no gradient is a gradient of zero
                master.grad = torch.zeros_like(master)
        _sum_over_processes([master.grad for master in masters])
        norm = nn.utils.clip_grad_norm_(masters, self._config.clip_norm)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        self._publish_masters()
        return norm

    def _publish_masters(self) -> None:
        if self._masters is not self._trained:
            with torch.no_grad():
                torch._foreach_copy_(list(self._trained.values()), list(self._masters.values()))

    def sum(self, values: Tensor) -> Tensor:
        return process_group.summed(values)

    def masters(self) -> Iterator[tuple[str, Tensor]]:
        for name, master in self._masters.items():
            yield name, master.detach()

    def shapes(self) -> state_files.Shapes:
        return shapes_of(self._student)

    def saved_bytes(self) -> int:
        return state_files.size_of(self.shapes())

    def save(self, directory: Path) -> None:
        if process_group.rank() == 0:
            steps = (int(state["step"]) for state in self._optimiser.state.values())
            state_files.write(directory, 0, next(steps, 0), self.shapes(), self._fragments())
        process_group.barrier()

    def _fragments(self) -> Iterator[state_files.Fragment]:
        for name, master in self._masters.items():
            state = self._optimiser.state.get(master, {})
            moments = {kind: state.get(kind, torch.zeros_like(master)) for kind in state_files.MOMENTS}
            values = {"master": master.detach(), **moments}
            yield state_files.Fragment(name, 0, {kind: value.flatten().cpu() for kind, value in values.items()})

    def load(self, directory: Path) -> None:
        saved = state_files.StateReader(directory)
        saved.check(self.shapes())
        for name, master in self._masters.items():
            master.data.copy_(saved.read(name, "master").view_as(master))
            moments = {kind: saved.read(name, kind).view_as(master).to(master.device) for kind in state_files.MOMENTS}
            step = torch.tensor(float(saved.step), device=master.device)
            self._optimiser.state[master] = {"step": step, **moments}
        self._publish_masters()

    def weights(self, scratch: Path) -> Mapping[str, Tensor] | None:
        return self._student.model.state_dict() if process_group.rank() == 0 else None


def _sum_over_processes(gradients: Sequence[Tensor]) -> None:
    """Add up float32 gradients over all processes, in place, many in one collective call."""
    if process_group.size() == 1:
        return
    bucket: list[Tensor] = []
    for number, gradient in enumerate(gradients, start=1):
        bucket.append(gradient)
        if number == len(gradients) or sum(part.numel() for part in bucket) >= _BUCKET_ELEMENTS:
            flat = torch.cat([part.flatten() for part in bucket])
            dist.all_reduce(flat)
            sums = flat.split([part.numel() for part in bucket])
            torch._foreach_copy_(bucket, [part.view_as(gradient) for part, gradient in zip(sums, bucket, strict=True)])
            bucket = []
