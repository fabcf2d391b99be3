"""What will be done to each vocabulary tensor, settled and checked before anything expensive is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
from torch import Tensor

from stages.initialisation.chain import copied_ids, named_tokens
from stages.initialisation.donor import Donor
from stages.initialisation.methods import build_method
from stages.initialisation.task import Method, RowTask, Transplant
from stages.initialisation.tasks import AnchorFacts, make_task
from stages.initialisation.tensors import VocabularyTensor, read_rows
from stages.initializers import InitializerOptions, MeanOptions
from stages.stage import StageError

_GIB = 1 << 30
_TIE_CHOICE = "Remove `output`, or say `tie: untie` to give the model an output matrix of its own."


@dataclass
class TensorPlan:
    """One tensor with rows of its own.

    Attributes:
        tensor: which.
        task: what its methods know.
        chain: the options of its methods, in order, ``mean`` last.
        methods: the methods themselves, by name, not yet fitted.
        anchors: what became of the shared tokens.
        followers: one-column tensors (an output bias) that get their values by the same weights: name -> [V_source, 1].
    """

    tensor: VocabularyTensor
    task: RowTask
    chain: tuple[InitializerOptions, ...]
    methods: dict[str, Method]
    anchors: AnchorFacts
    followers: dict[str, Tensor] = field(default_factory=dict)


def tied(tensors: Sequence[VocabularyTensor]) -> bool:
    """Whether the output matrix is the input matrix."""
    return named(tensors, "output").tied_to is not None


def named(tensors: Sequence[VocabularyTensor], role: str) -> VocabularyTensor:
    """The one tensor of a role that every model has once: ``input`` or ``output``."""
    return next(tensor for tensor in tensors if tensor.role == role)


def plan_tensors(config: Any, transplant: Transplant, tensors: Sequence[VocabularyTensor]) -> dict[str, TensorPlan]:
    """A plan for every tensor that has rows of its own, by name.

    Raises:
        StageError: ``output`` or ``tie`` does not fit the student, its rows are broken, or a method cannot work.
    """
    _check_tie(config, tied(tensors))
    if not transplant.alignment.copied.any():
        transplant.progress(
            "warning: student and target share no token: every row is a guess, and there are no copies to hold it "
            "against"
        )
    donor = None
    if transplant.donor is not None:
        donor = Donor(transplant.donor, transplant.target, transplant.tokenizer)
        transplant.progress(f"the donor has {donor.share:.1%} of the target's tokens")
    source = named(tensors, "input")
    plans: dict[str, TensorPlan] = {}
    for tensor in tensors:
        if tensor.role == "bias" or (tensor.stored_name is None and tensor.role != "output"):
            continue
        if tensor.tied_to is not None and not (tensor.role == "output" and config.tie == "untie"):
            continue
        rows = read_rows(source if tensor.tied_to is not None else tensor)
        task, anchors = make_task(transplant, tensor, rows, donor, config.anchors)
        chain = _chain(config, tensor)
        methods = {options.method: build_method(options, task) for options in chain}
        plans[tensor.name] = TensorPlan(tensor, task, chain, methods, anchors)
    _attach_biases(config, tensors, plans)
    for plan in plans.values():
        _announce(transplant, plan, config.copy_exact)
    return plans


def _check_tie(config: Any, is_tied: bool) -> None:
    if is_tied and config.tie == "keep" and config.output is not None:
        raise StageError(
            f"the student uses its input embedding as its output matrix: `output` has nothing to make. {_TIE_CHOICE}"
        )
    if not is_tied and config.tie == "untie":
        raise StageError("the student has an output matrix of its own already: remove `tie: untie`")


def _chain(config: Any, tensor: VocabularyTensor) -> tuple[InitializerOptions, ...]:
    chains: Mapping[str, tuple[InitializerOptions, ...]] = {
        "input": config.input,
        "output": config.output or config.input,
    }
    chain = chains.get(tensor.role, config.other)
    # Whatever is left must have some row: that of an average token harms least (embedding_init.md §1.1).
    return chain if any(options.method == "mean" for options in chain) else (*chain, MeanOptions(method="mean"))


def _attach_biases(config: Any, tensors: Sequence[VocabularyTensor], plans: Mapping[str, TensorPlan]) -> None:
    leader = plans.get(named(tensors, "output").name) or plans[named(tensors, "input").name]
    for tensor in tensors:
        if tensor.role == "bias" and tensor.tied_to is None and tensor.stored_name is not None:
            leader.followers[tensor.name] = read_rows(tensor)[: len(leader.task.rows)]


def _announce(transplant: Transplant, plan: TensorPlan, copy_exact: bool) -> None:
    """Say what will be made, by what, and at what cost."""
    new_rows = transplant.alignment.target_size - len(copied_ids(plan.task, copy_exact))
    costs = []
    for name, method in plan.methods.items():
        estimate = method.estimate(new_rows)
        costs.append(f"{name} ({estimate.memory_bytes / _GIB:.1f} GiB, {estimate.operations / 1e9:,.1f} GFLOP)")
        if estimate.memory_bytes > psutil.virtual_memory().available:
            transplant.progress(
                f"warning: {name} may need {estimate.memory_bytes / _GIB:.1f} GiB of memory, "
                f"{psutil.virtual_memory().available / _GIB:.1f} are free"
            )
    anchors = plan.anchors
    if anchors.broken:
        transplant.progress(
            f"warning: {len(anchors.broken):,} rows that the donor has for {plan.tensor.name} are not finite and will "
            f"not be used: {named_tokens(transplant.target, anchors.broken)}"
        )
    dropped = f" ({anchors.dropped:,} more look untrained)" if anchors.dropped else ""
    transplant.progress(
        f"{plan.tensor.name}: {new_rows:,} new rows by {', then '.join(costs)}; "
        f"{len(plan.task.anchor_source):,} anchors{dropped}"
    )
