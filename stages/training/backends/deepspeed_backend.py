"""The same steps under DeepSpeed ZeRO 1 to 3: optimiser states, gradients and parameters split over processes.

ZeRO 0 is ``PlainBackend``: DeepSpeed without ZeRO clips gradients without telling their norm, and adds up those of a
bf16 model in bf16.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from stages.sharded import whole
from stages.stage import StageError
from stages.training.backends import process_group
from stages.training.backends.backend import adamw, shapes_of, trained_parameters
from stages.training.backends.zero_state import ZeroState
from stages.training.config import TrainingConfig
from stages.training.data.batch import SideBatch
from stages.training.models import Losses, Pass, ScoringModel
from stages.training.optimiser import set_learning_rate
from stages.training.saving import state_files
from stages.training.saving.shard_writer import ShardWriter


def prepare(settings: Sequence[Mapping[str, Any]]) -> None:
    """Make DeepSpeed ready in this process; before anything of it is used, and after ``process_group.join``.

    Raises:
        StageError: the settings ask for NVMe, which cannot be reached from here.
    """
    import deepspeed

    if not torch.cuda.is_available():
        # Compiling DeepSpeed's shared-memory collectives takes a minute and a C++ compiler; gloo needs neither.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    sections = [each["zero_optimization"][name] for each in settings for name in ("offload_optimizer", "offload_param")]
    if any(section["device"] == "nvme" for section in sections) and not _async_io_works():
        raise StageError(
            "offloading to NVMe needs DeepSpeed's async_io, which cannot be built here: it wants libaio with its "
            "headers (libaio-dev, or libaio-devel) and a C++ compiler. Install them, or set cpu instead of nvme under "
            "resources.<stage>.zero"
        )
    deepspeed.init_distributed()


def _async_io_works() -> bool:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    return AsyncIOBuilder().is_compatible(verbose=False)


class DeepSpeedBackend:
    """One process's share of a student that ZeRO splits.

    Args:
        student: the scoring module with its trainable parameters selected.
        config: optimisation options.
        settings: DeepSpeed's configuration (``deepspeed_config``).
    """

    def __init__(self, student: ScoringModel, config: TrainingConfig, settings: Mapping[str, Any]) -> None:
        import deepspeed

        self._config = config
        self._engine, self._optimiser, _, _ = deepspeed.initialize(
            model=student, optimizer=adamw(student, config), config=dict(settings)
        )
        self._split = self._engine.zero_optimization_stage() == 3
        if self._split:
            # What is evaluated at the head multiplies by matrices that belong to other modules.
            output = student.model.get_output_embeddings()
            for parameter in (*output.parameters(), *student.auxiliary.parameters()):
                deepspeed.zero.register_external_parameter(student.head, parameter)
            if config.adapter is not None:
                from stages.training.adapters.adapters import foreign_parameters  # PEFT takes a second to import

                for module, parameter in foreign_parameters(student.model):
                    deepspeed.zero.register_external_parameter(module, parameter)
            student.check()
        self._state = ZeroState(student, self._optimiser)

    def forward(self, batch: SideBatch, losses: Losses, measure: bool) -> Pass:
        return self._engine(batch, losses, measure)

    def backward(self, loss: Tensor, last: bool) -> None:
        # DeepSpeed averages over processes; our losses are shares of a global sum.
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * process_group.size(), scale_wrt_gas=False)
        if not last:
            self._engine.step()

    def step(self, number: int) -> Tensor:
        set_learning_rate(self._optimiser, number, self._config)
        self._engine.step()
        norm = torch.as_tensor(self._engine.get_global_grad_norm())
        return torch.where(norm < 0, torch.inf, norm)  # DeepSpeed's -1 is a norm that is not finite

    def sum(self, values: Tensor) -> Tensor:
        return process_group.summed(values)

    def masters(self) -> Iterator[tuple[str, Tensor]]:
        from deepspeed.utils import safe_get_full_fp32_param

        for name, parameter in trained_parameters(self._engine.module).items():
            yield name, safe_get_full_fp32_param(parameter)

    def shapes(self) -> state_files.Shapes:
        return shapes_of(self._engine.module)

    def saved_bytes(self) -> int:
        return state_files.size_of(self.shapes(), process_group.size())

    def save(self, directory: Path) -> None:
        # Not DeepSpeed's own checkpoint: that resumes with the same number of processes and stage only, and its
        # "latest" file is written before every process is done.
        fragments = self._state.fragments()
        state_files.write(directory, process_group.rank(), self._state.step, self.shapes(), fragments)
        process_group.barrier()

    def load(self, directory: Path) -> None:
        saved = state_files.StateReader(directory)
        saved.check(self.shapes())
        self._state.load(saved)

    def weights(self, scratch: Path) -> Mapping[str, Tensor] | None:
        model = self._engine.module.model
        if not self._split:
            return model.state_dict() if process_group.rank() == 0 else None
        return _gathered_weights(model, scratch)


def _gathered_weights(model: torch.nn.Module, scratch: Path) -> Mapping[str, Tensor] | None:
    """The state dict of a split model, gathered a tensor at a time and read back from ``scratch``. Collective."""
    writer = ShardWriter(lambda number: scratch / f"weights-{number:05d}.safetensors")
    first_names: dict[int, str] = {}
    files: dict[str, Path] = {}
    tensors = model.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        if first_names.setdefault(id(tensor), name) != name:
            continue  # tied to one that is there already
        with whole([tensor]):
            if process_group.rank() == 0:
                files[name] = scratch / writer.add(name, tensor.detach().to("cpu", copy=True))
    if process_group.rank() != 0:
        return None
    writer.flush()
    # Mapped, not read: what is too large for one process's memory stays on disk until it is written again.
    mapped = {name: safe_open(file, framework="pt").get_tensor(name) for name, file in files.items()}
    return {name: mapped[first_names[id(tensor)]] for name, tensor in tensors.items()}
