"""The optimisation state that DeepSpeed ZeRO holds in this process, by parameter name and element.

ZeRO keeps float32 master weights and moments in flat tensors: at stages 1 and 2 this process's share of a whole
parameter group, at stage 3 the shares of each parameter, one after the other. DeepSpeed's own accessors give a whole
parameter to every process (``safe_get_full_fp32_param``); what is here is what this process holds of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stages.training.backends import process_group
from stages.training.saving import state_files


class _Slot(NamedTuple):
    """Where in a flat tensor elements ``start`` to ``start + size`` of a flattened parameter lie."""

    name: str
    start: int
    offset: int
    size: int


class ZeroState:
    """Master weights and moments of what trains.

    Args:
        student: the module that DeepSpeed was given.
        optimiser: DeepSpeed's ZeRO optimiser.
    """

    def __init__(self, student: nn.Module, optimiser: Any) -> None:
        self._optimiser = optimiser
        self._trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
        self._split = any(hasattr(parameter, "ds_id") for parameter in self._trained.values())
        if self._split:
            self._flat: list[Tensor] = list(optimiser.fp32_partitioned_groups_flat)
        else:
            self._flat = [group["params"][0] for group in optimiser.optimizer.param_groups]
        self._slots: dict[int, list[_Slot]] = defaultdict(list)
        for name, parameter in self._trained.items():
            number, slot = self._slot_when_split(name, parameter) if self._split else self._slot(name, parameter)
            if slot is not None:
                self._slots[number].append(slot)

    def _slot(self, name: str, parameter: nn.Parameter) -> tuple[int, _Slot | None]:
        """Flat tensor and slot of what stages 1 and 2 keep of a parameter here, which may be nothing."""
        mapping = parameter._hp_mapping
        if mapping is None:
            return 0, None
        there, here = mapping.lp_fragment_address, mapping.hp_fragment_address
        return mapping.param_group_index, _Slot(name, there.start, here.start, here.numel)

    def _slot_when_split(self, name: str, parameter: nn.Parameter) -> tuple[int, _Slot | None]:
        """The same at stage 3, where every process has an equal share, the last ones padded."""
        number, offset, share = self._optimiser.grad_position[self._optimiser.get_param_id(parameter)]
        start = share * process_group.rank()
        size = min(share, parameter.ds_numel - start)
        return number, _Slot(name, start, offset, size) if size > 0 else None

    @property
    def step(self) -> int:
        """How many steps the optimiser has taken."""
        return max((int(state["step"]) for state in self._optimiser.optimizer.state.values()), default=0)

    def fragments(self) -> Iterator[state_files.Fragment]:
        """What this process holds, on the CPU."""
        for number, slots in self._slots.items():
            lent = self._waits_on_nvme(number)  # memory that the next flat tensor takes over
            with self._resident(number) as values:
                for slot in slots:
                    parts = {kind: value.narrow(0, slot.offset, slot.size) for kind, value in values.items()}
                    on_cpu = {kind: part.detach().to("cpu", copy=lent) for kind, part in parts.items()}
                    yield state_files.Fragment(slot.name, slot.start, on_cpu)

    @torch.no_grad()
    def load(self, saved: state_files.StateReader) -> None:
        """Take over a saved state, and the weights in the compute type with it. Collective."""
        for number, flat in enumerate(self._flat):
            with self._resident(number) as values:
                for slot in self._slots[number]:
                    for kind, value in values.items():
                        part = saved.read(slot.name, kind, slot.start, slot.size)
                        value.narrow(0, slot.offset, slot.size).copy_(part)
                self._optimiser.optimizer.state[flat]["step"].fill_(saved.step)
        if not self._split:
            self._optimiser.update_lp_params()
            return
        import deepspeed

        for name, parameter in self._trained.items():
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                if process_group.rank() == 0:
                    parameter.copy_(saved.read(name, "master").view_as(parameter))

    def _waits_on_nvme(self, number: int) -> bool:
        return self._split and self._optimiser._swappable_optimizer_subgroup(number)

    @contextmanager
    def _resident(self, number: int) -> Iterator[dict[str, Tensor]]:
        """The values of flat tensor ``number`` by kind, in memory for a while where they wait on NVMe."""
        swapped = self._waits_on_nvme(number)
        if swapped:
            self._optimiser._optimizer_states_and_gradient_swap_in(number)
        flat = self._flat[number]
        state = self._optimiser.optimizer.state[flat]
        if not state:  # before the first step
            state["step"] = torch.zeros((), dtype=torch.float32, device=flat.device)
            state |= {kind: torch.zeros_like(flat) for kind in state_files.MOMENTS}
        yield {"master": flat.data, **{kind: state[kind] for kind in state_files.MOMENTS}}
        if swapped:
            self._optimiser._optimizer_states_and_gradient_swap_out(number)
