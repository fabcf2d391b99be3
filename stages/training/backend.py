"""How gradients are kept, reduced and applied: in this process alone, or by DeepSpeed ZeRO over several.

Both backends take losses that are already divided by the global count of their units, so one step's gradient is the
sum over all micro-batches and processes. Nothing else in the engine knows which backend runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from stages.stage import StageError
from stages.training.batch import SideBatch
from stages.training.config import TrainingConfig
from stages.training.models import Losses, Pass, ScoringModel
from stages.training.optimiser import parameter_groups, set_learning_rate


class Backend(Protocol):
    """What the training loop needs; the seam behind which processes and sharding hide."""

    def forward(self, batch: SideBatch, losses: Losses, measure: bool) -> Pass:
        """``ScoringModel.forward`` of the student, with gradients."""

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add one micro-batch's gradient; ``last`` marks the final one of the step."""

    def step(self, number: int) -> float:
        """Clip and apply the optimiser for step ``number`` (from 0); returns the gradient norm before clipping.

        Raises:
            StageError: the gradient is not finite.
        """

    def sum(self, values: Tensor) -> Tensor:
        """Sum of ``values`` over all processes."""

    def save(self, directory: Path) -> None:
        """Write this process's part of a checkpoint; returns after every process has written."""

    def load(self, directory: Path) -> None:
        """Restore what ``save`` wrote."""

    def weights(self) -> Mapping[str, Tensor] | None:
        """The student's full state dict in the compute type, on rank 0; None elsewhere. Collective."""

    def close(self) -> None:
        """Leave the other processes; nothing else may be called afterwards."""


def _check_finite(norm: float, number: int) -> None:
    if not math.isfinite(norm):
        raise StageError(f"step {number + 1}: the gradient is not finite; lower learning_rate or check the data")


def _adamw(student: ScoringModel, config: TrainingConfig) -> torch.optim.AdamW:
    groups = parameter_groups(student.model, student.auxiliary, config)
    return torch.optim.AdamW(groups, betas=config.betas, fused=True)


class PlainBackend:
    """One process, CPU or one GPU.

    A bf16 student keeps float32 master weights and float32 gradient sums beside its bf16 parameters, so neither small
    updates nor the split into micro-batches are lost in rounding.
    """

    def __init__(self, student: ScoringModel, config: TrainingConfig) -> None:
        self._student = student
        self._config = config
        self._trained = [p for p in student.parameters() if p.requires_grad]
        self._optimiser = _adamw(student, config)
        self._masters = self._trained
        if config.dtype == "bf16":
            masters = {id(p): nn.Parameter(p.detach().float()) for p in self._trained}
            self._masters = list(masters.values())
            for group in self._optimiser.param_groups:
                group["params"] = [masters[id(p)] for p in group["params"]]

    def forward(self, batch: SideBatch, losses: Losses, measure: bool) -> Pass:
        return self._student(batch, losses, measure)

    def backward(self, loss: Tensor, last: bool) -> None:
        loss.backward()
        if self._masters is self._trained:
            return
        for master, parameter in zip(self._masters, self._trained, strict=True):
            if parameter.grad is None:
                continue
            if master.grad is None:
                master.grad = parameter.grad.float()
            else:
                master.grad.add_(parameter.grad)
            parameter.grad = None

    def step(self, number: int) -> float:
        set_learning_rate(self._optimiser, number, self._config)
        norm = float(nn.utils.clip_grad_norm_(self._masters, self._config.clip_norm))
        _check_finite(norm, number)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        self._publish_masters()
        return norm

    def _publish_masters(self) -> None:
        if self._masters is not self._trained:
            with torch.no_grad():
                torch._foreach_copy_(self._trained, self._masters)

    def sum(self, values: Tensor) -> Tensor:
        return values

    def save(self, directory: Path) -> None:
        torch.save(
            {
                "masters": [p.detach() for p in self._masters],
                "optimiser": self._optimiser.state_dict(),
            },
            directory / "training.pt",
        )

    def load(self, directory: Path) -> None:
        # mmap: only one copy of the state is in memory while it is copied into place.
        saved = torch.load(directory / "training.pt", weights_only=True, mmap=True)
        with torch.no_grad():
            for parameter, value in zip(self._masters, saved["masters"], strict=True):
                parameter.copy_(value)
        self._optimiser.load_state_dict(saved["optimiser"])
        self._publish_masters()

    def weights(self) -> Mapping[str, Tensor]:
        return self._student.model.state_dict()

    def close(self) -> None:
        return


class DeepSpeedBackend:
    """The same steps under DeepSpeed ZeRO, one process a device (CPU processes talk over gloo).

    Args:
        student: the scoring module with its trainable parameters selected.
        config: optimisation options.
        zero_stage: what ZeRO shards: 0 nothing, 1 optimiser state, 2 and gradients, 3 and parameters.
        micro_batch: windows in one forward pass of one process.
        accumulation: forward passes of one process in one step.
    """

    def __init__(
        self,
        student: ScoringModel,
        config: TrainingConfig,
        zero_stage: int,
        micro_batch: int,
        accumulation: int,
    ) -> None:
        import deepspeed

        if not torch.cuda.is_available():
            # Compiling DeepSpeed's shared-memory collectives takes a minute and a C++ compiler; gloo needs neither.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed()
        self._config = config
        self._stage = zero_stage
        self._engine, self._optimiser, _, _ = deepspeed.initialize(
            model=student,
            optimizer=_adamw(student, config),
            config={
                "train_micro_batch_size_per_gpu": micro_batch,
                "gradient_accumulation_steps": accumulation,
                "gradient_clipping": config.clip_norm,
                "bf16": {"enabled": config.dtype == "bf16"},
                "zero_optimization": {"stage": zero_stage},
                "zero_allow_untested_optimizer": True,
                "steps_per_print": 10**9,
            },
        )
        if zero_stage == 3:
            # What is evaluated at the head multiplies by matrices that belong to other modules.
            output = student.model.get_output_embeddings()
            for parameter in (*output.parameters(), *student.auxiliary.parameters()):
                deepspeed.zero.register_external_parameter(student.head, parameter)

    def forward(self, batch: SideBatch, losses: Losses, measure: bool) -> Pass:
        return self._engine(batch, losses, measure)

    def backward(self, loss: Tensor, last: bool) -> None:
        # DeepSpeed averages over processes; our losses are shares of a global sum.
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * torch.distributed.get_world_size(), scale_wrt_gas=False)
        if not last:
            self._engine.step()

    def step(self, number: int) -> float:
        set_learning_rate(self._optimiser, number, self._config)
        norm = self._plain_gradient_norm()
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm() if norm is None else norm)
        # Too late for this step, but no checkpoint holds it yet: the next attempt goes on from before.
        _check_finite(norm, number)
        return norm

    def _plain_gradient_norm(self) -> Tensor | None:
        """Norm of whole float32 gradients, which DeepSpeed clips without telling it; None where it tells."""
        if self._stage > 0 or self._config.dtype == "bf16":
            return None
        return nn.utils.get_total_norm([p.grad for p in self._engine.module.parameters() if p.grad is not None])

    def sum(self, values: Tensor) -> Tensor:
        values = values.clone()
        torch.distributed.all_reduce(values)
        return values

    def save(self, directory: Path) -> None:
        # By explicit tag: DeepSpeed's own "latest" file is written before every process is done.
        self._engine.save_checkpoint(str(directory), tag="state", save_latest=False)
        torch.distributed.barrier()

    def load(self, directory: Path) -> None:
        path, _ = self._engine.load_checkpoint(str(directory), tag="state")
        if path is None:
            raise StageError(f"DeepSpeed could not read the checkpoint {directory}")

    def weights(self) -> Mapping[str, Tensor] | None:
        import deepspeed

        model = self._engine.module.model
        if self._stage < 3:
            return model.state_dict() if torch.distributed.get_rank() == 0 else None
        with deepspeed.zero.GatheredParameters(list(model.parameters()), modifier_rank=None):
            if torch.distributed.get_rank() != 0:
                return None
            # One copy for all names of a tied tensor: saving recognises a tie by the shared memory.
            copies: dict[int, Tensor] = {}
            return {
                name: copies.setdefault(tensor.data_ptr(), tensor.detach().cpu().clone())
                for name, tensor in model.state_dict().items()
            }

    def close(self) -> None:
        # Left to the interpreter's exit, gloo's running threads abort the process, now and then.
        torch.distributed.destroy_process_group()
