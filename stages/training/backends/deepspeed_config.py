"""DeepSpeed's configuration: ours, merged with what the recipe gives under ``resources.<stage>.deepspeed``.

Pure: from options to a dict, without DeepSpeed. What the recipe decides may stand in the given configuration too, with
the same value or as ``"auto"``; another value is an error, because one of the two would silently lose.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stages.stage import StageError
from stages.training.config import TrainingConfig

Settings = dict[str, Any]
AUTO = "auto"

BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's own ``reduce_bucket_size`` and ``allgather_bucket_size``; ZeRO-2 and 3 allocate the former whole."""

_NEVER = 10**9
"""Steps between DeepSpeed's own lines of progress."""

_DECIDED = {
    "train_batch_size": "batch_windows sets it",
    "train_micro_batch_size_per_gpu": "micro_batch_windows sets it",
    "gradient_accumulation_steps": "batch_windows and micro_batch_windows set it",
    "gradient_clipping": "clip_norm sets it",
    "bf16.enabled": "dtype sets it",
    "data_types.grad_accum_dtype": "gradients are added up in float32, however a batch is split",
    "communication_data_type": "gradients are added up in float32, over any number of processes",
    "zero_optimization.stage": "resources.<stage>.zero.student sets it",
    "zero_optimization.offload_optimizer.device": "resources.<stage>.zero.offload_optimizer sets it",
    "zero_optimization.offload_optimizer.nvme_path": "resources.<stage>.zero.nvme_path sets it",
    "zero_optimization.offload_param.device": "resources.<stage>.zero.offload_parameters sets it",
    "zero_optimization.offload_param.nvme_path": "resources.<stage>.zero.nvme_path sets it",
    "zero_allow_untested_optimizer": "the optimiser is torch's AdamW",
    "zero_force_ds_cpu_optimizer": "torch's AdamW runs on the CPU too",
    "optimizer.type": "the optimiser is AdamW",
    "optimizer.params.lr": "learning_rate sets it",
    "optimizer.params.betas": "betas sets it",
    "optimizer.params.weight_decay": "weight_decay sets it",
    "optimizer.params.eps": "it is AdamW's usual one",
}
"""What the recipe decides, dotted -> by which option, or why there is none."""

_REFUSED = {
    "fp16": "students train in bf16 or fp32 (dtype)",
    "amp": "students train in bf16 or fp32 (dtype)",
    "torch_autocast": "students train in bf16 or fp32 (dtype)",
    "elasticity": "the batch is batch_windows, whatever the number of processes",
    "autotuning": "it starts trainings of its own",
    "tensor_parallel": "models are split by ZeRO alone",
    "pipeline": "models are split by ZeRO alone",
    "expert_parallel": "models are split by ZeRO alone",
    "compression_training": "it would train another model",
    "quantize_training": "it would train another model",
    "sparse_attention": "it would train another model",
    "progressive_layer_drop": "it would train another model",
    "hybrid_engine": "it would train another model",
    "curriculum_learning": "the order of the data is the recipe's",
    "data_efficiency": "the order of the data is the recipe's",
    "eigenvalue": "it serves quantize_training",
}
"""Sections that would change what is computed -> why there is no place for them."""

_WITHOUT_EFFECT = {
    "activation_checkpointing": "Hugging Face models do not ask DeepSpeed for it; use activation_checkpointing: true",
    "checkpoint": "checkpoints are tokenferry's own, and resume with any number of processes",
    "nebula": "checkpoints are tokenferry's own",
    "dataloader_drop_last": "batches are tokenferry's own",
}

_PASSED_ON = frozenset(
    {
        *("scheduler", "aio", "comms_logger"),
        *("prescale_gradients", "gradient_predivide_factor", "disable_allgather"),
        *("steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "flops_profiler"),
        *("tensorboard", "wandb", "csv_monitor", "comet", "compile", "disable_python_gc", "log_level"),
        *("use_data_before_expert_parallelism", "seq_parallel_communication_data_type"),
    }
)

KNOWN = frozenset({path.split(".")[0] for path in _DECIDED} | set(_REFUSED) | set(_WITHOUT_EFFECT) | _PASSED_ON)
"""Every key that DeepSpeed reads at the top; it ignores others without a word."""


def read_given(given: str | Mapping[str, Any] | None) -> Settings:
    """The configuration that a recipe gives, from a file or inline; empty for None.

    Raises:
        StageError: the file cannot be read, or holds no JSON object.
    """
    if given is None or isinstance(given, Mapping):
        return dict(given or {})
    try:
        values = json.loads(Path(given).read_text(encoding="utf-8"))
    except OSError as error:
        raise StageError(f"the DeepSpeed configuration {given} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise StageError(f"the DeepSpeed configuration {given} is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise StageError(f"the DeepSpeed configuration {given} must be a JSON object")
    return values


def student_settings(
    zero: Mapping[str, Any],
    config: TrainingConfig,
    *,
    micro_batch: int,
    accumulation: int,
    processes: int,
    width: int,
    trained: int,
    given: Mapping[str, Any],
) -> Settings:
    """DeepSpeed's configuration for the student, without ``"auto"``.

    Args:
        zero: ``resources.<stage>.zero``.
        config: optimisation options.
        micro_batch: windows in one forward pass of one process.
        accumulation: forward passes of one process in one step.
        processes: of the stage.
        width: of the student's hidden states, from which sizes that are ``"auto"`` follow.
        trained: number of the model's parameters that train; buckets are no larger, unless ``given`` says so.
        given: the recipe's own configuration.

    Raises:
        StageError: it contradicts the recipe, or asks for what there is no place for.
    """
    ours: Settings = {
        "train_batch_size": micro_batch * accumulation * processes,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.clip_norm,
        "bf16": {"enabled": config.dtype == "bf16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": _zero_section(
            zero["student"], zero.get("offload_optimizer"), zero.get("offload_parameters"), zero.get("nvme_path")
        ),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    optimizer = {
        "type": "AdamW",
        "params": {
            "lr": config.learning_rate,
            "betas": list(config.betas),
            "eps": 1e-8,
            "weight_decay": config.weight_decay,
        },
    }
    _check_sections(given)
    _check_values(given, ours | {"optimizer": optimizer})
    left_out = ("optimizer", "scheduler", *_REFUSED, *_WITHOUT_EFFECT)
    taken = {"steps_per_print": _NEVER} | {name: value for name, value in given.items() if name not in left_out}
    return _merged_and_resolved(_merged(_buckets(zero["student"], trained), taken), ours, width)


def teacher_settings(zero: Mapping[str, Any], dtype: str, *, width: int, given: Mapping[str, Any]) -> Settings:
    """DeepSpeed's configuration for a frozen teacher that ZeRO-3 splits (``zero.teacher: 3``).

    Args:
        zero: ``resources.<stage>.zero``.
        dtype: the teacher's, ``bf16`` or ``fp32``.
        width: of the student's hidden states.
        given: the recipe's own configuration, of which the teacher takes what ``zero_optimization`` leaves open.

    Raises:
        StageError: a value is ``"auto"`` that cannot be resolved.
    """
    ours: Settings = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": dtype == "bf16"},
        "zero_optimization": _zero_section(3, None, zero.get("offload_teacher"), None),
        "steps_per_print": _NEVER,
    }
    section = {"zero_optimization": given.get("zero_optimization", {})}
    return _merged_and_resolved(section, ours, width)


def _buckets(stage: int, trained: int) -> Settings:
    """Sizes, in elements, of what is communicated at once.

    Not of what ZeRO-3 gathers ahead (``stage3_prefetch_bucket_size``): that is of all parameters, whether they train or
    not, and nothing is allocated for it.
    """
    largest = min(BUCKET_ELEMENTS, trained + trained % 2)  # DeepSpeed wants an even number
    names = ("reduce_bucket_size",) if stage == 3 else ("reduce_bucket_size", "allgather_bucket_size")
    return {"zero_optimization": dict.fromkeys(names, largest)}


def _zero_section(stage: int, optimiser: str | None, parameters: str | None, nvme_path: str | None) -> Settings:
    section: Settings = {"stage": stage}
    for name, device in (("offload_optimizer", optimiser), ("offload_param", parameters)):
        section[name] = {"device": device or "none"}
        if device == "nvme":
            section[name]["nvme_path"] = nvme_path
    return section


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of everything that is no section."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Settings:
    """Both, section by section; ``above`` wins."""
    result = dict(below)
    for key, value in above.items():
        if isinstance(value, Mapping):
            old = result.get(key)
            value = _merged(old if isinstance(old, Mapping) else {}, value)
        result[key] = value
    return result


def _merged_and_resolved(given: Mapping[str, Any], ours: Settings, width: int) -> Settings:
    """Both, without ``"auto"``: what Hugging Face's Trainer resolves from the width of a model is resolved likewise."""
    sizes = {
        "reduce_bucket_size": width * width,
        "stage3_prefetch_bucket_size": int(0.9 * width * width),
        "stage3_param_persistence_threshold": 10 * width,
    }
    section = given.get("zero_optimization", {})
    resolved = {name: size for name, size in sizes.items() if section.get(name) == AUTO}
    settings = _merged(_merged(given, {"zero_optimization": resolved}), ours)
    unresolved = [path for path, value in _leaves(settings) if value == AUTO]
    if unresolved:
        raise StageError(
            f"DeepSpeed: nothing here can resolve {', '.join(unresolved)}: auto; give a value, or remove it"
        )
    return settings


def _check_sections(given: Mapping[str, Any]) -> None:
    for name, why in _REFUSED.items():
        section = given.get(name, False)
        switched_off = section.get("enabled", True) in (False, AUTO) if isinstance(section, Mapping) else not section
        if not switched_off:
            raise StageError(f"DeepSpeed's {name!r} cannot be used here: {why}. Remove it from the configuration")
    scheduler = given.get("scheduler") or {}
    if any(value != AUTO for _, value in _leaves(scheduler.get("params", {}))):
        raise StageError(
            "DeepSpeed's 'scheduler' cannot be used here: the learning rate follows schedule and warmup_steps. Remove "
            "it from the configuration"
        )


def _check_values(given: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    expected = dict(_leaves(ours))
    conflicts = [
        f"{path} is {json.dumps(value)} there and {json.dumps(expected.get(path))} here ({_DECIDED[path]})"
        for path, value in _leaves(given)
        if path in _DECIDED and value not in (AUTO, expected.get(path))
    ]
    if conflicts:
        raise StageError(
            f"the DeepSpeed configuration contradicts the recipe: {'; '.join(conflicts)}. Remove these keys from it, "
            'or write "auto"'
        )


def notes(given: Mapping[str, Any]) -> Iterator[str]:
    """What the user should know of the recipe's own configuration: what of it has no effect."""
    for name in given:
        if name in _WITHOUT_EFFECT:
            yield f"DeepSpeed's {name!r} has no effect: {_WITHOUT_EFFECT[name]}"
        elif name not in KNOWN:
            near = difflib.get_close_matches(name, KNOWN, n=2)
            yield f"DeepSpeed reads no key {name!r}" + (f"; did you mean {' or '.join(near)}?" if near else "")
    if given.get("scheduler"):
        yield "DeepSpeed's 'scheduler' is left out: the learning rate follows schedule and warmup_steps"
