"""DeepSpeed's configuration: what the recipe decides wins or the two agree; "auto" is resolved; nothing is silent."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from stages.distill import DistillConfig
from stages.stage import StageError
from stages.training.backends.deepspeed_config import KNOWN, notes, read_given, student_settings, teacher_settings

# What the examples of Hugging Face's and DeepSpeed's documentation look like.
HUGGING_FACE_ZERO3 = {
    "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16},
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto"}},
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": True,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": 1000000000,
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 2000,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": False,
}


def _resolve(given, *, student: int = 2, dtype: str = "bf16", trained: int = 10**6, **zero) -> dict:
    config = DistillConfig(losses=["cross_entropy"], steps=10, learning_rate=2e-4, clip_norm=0.5, dtype=dtype)
    sizes = {"micro_batch": 2, "accumulation": 3, "processes": 4, "width": 64, "trained": trained}
    return student_settings({"student": student, **zero}, config, given=given, **sizes)


def _leaves(settings, prefix=""):
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_without_a_given_configuration_it_says_what_the_recipe_says():
    settings = _resolve({}, student=3, offload_optimizer="cpu", offload_parameters="nvme", nvme_path="/fast")
    assert settings["train_batch_size"] == 2 * 3 * 4
    assert settings["gradient_clipping"] == 0.5
    assert settings["bf16"] == {"enabled": True}
    assert settings["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    assert settings["zero_optimization"]["offload_param"] == {"device": "nvme", "nvme_path": "/fast"}


@pytest.mark.parametrize(
    ("trained", "stage", "expected"),
    [
        (123_457, 1, {"reduce_bucket_size": 123_458, "allgather_bucket_size": 123_458}),
        (123_456, 2, {"reduce_bucket_size": 123_456, "allgather_bucket_size": 123_456}),
        (123_456, 3, {"reduce_bucket_size": 123_456}),
        (7_000_000_000, 2, {"reduce_bucket_size": 500_000_000, "allgather_bucket_size": 500_000_000}),
    ],
)
def test_buckets_are_no_larger_than_what_trains(trained, stage, expected):
    section = _resolve({}, student=stage, trained=trained)["zero_optimization"]
    assert {name: size for name, size in section.items() if "bucket" in name} == expected


def test_buckets_that_the_recipe_gives_stay():
    given = {"reduce_bucket_size": 10**9, "allgather_bucket_size": 4, "stage3_prefetch_bucket_size": 6}
    section = _resolve({"zero_optimization": given}, student=2)["zero_optimization"]
    assert {name: section[name] for name in given} == given


def test_a_configuration_made_for_hugging_face_is_taken_and_nothing_in_it_stays_auto():
    settings = _resolve(HUGGING_FACE_ZERO3, student=3)
    leaves = dict(_leaves(settings))
    assert "auto" not in leaves.values()
    assert leaves["zero_optimization.reduce_bucket_size"] == 64 * 64
    assert leaves["zero_optimization.stage3_prefetch_bucket_size"] == 3686  # 0.9 * 64 * 64, rounded down
    assert leaves["zero_optimization.stage3_param_persistence_threshold"] == 640
    assert leaves["zero_optimization.overlap_comm"] is True
    assert leaves["steps_per_print"] == 2000
    assert leaves["train_batch_size"] == 24
    # The optimiser and the schedule are ours, and DeepSpeed would build its own from these sections.
    assert not {"optimizer", "scheduler"} & settings.keys()
    assert any("'scheduler' is left out" in note for note in notes(HUGGING_FACE_ZERO3))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"zero_optimization": {"stage": 3}}, ["zero_optimization.stage is 3 there and 2 here", "zero.student"]),
        ({"gradient_clipping": 1.0}, ["gradient_clipping is 1.0 there and 0.5 here", "clip_norm"]),
        ({"train_micro_batch_size_per_gpu": 8}, ["is 8 there and 2 here", "micro_batch_windows"]),
        ({"train_batch_size": 16}, ["train_batch_size is 16 there and 24 here"]),
        ({"bf16": {"enabled": False}}, ["bf16.enabled is false there and true here", "dtype"]),
        ({"optimizer": {"type": "Lamb"}}, ['optimizer.type is "Lamb" there and "AdamW" here']),
        ({"optimizer": {"params": {"lr": 1e-5}}}, ["optimizer.params.lr is 1e-05 there and 0.0002 here"]),
        ({"communication_data_type": "bf16"}, ["gradients are added up in float32"]),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, ["gradients are added up in float32"]),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
            ['offload_optimizer.device is "cpu" there and "none" here', "zero.offload_optimizer"],
        ),
        ({"fp16": {"enabled": True}}, ["'fp16' cannot be used here", "dtype"]),
        ({"scheduler": {"params": {"warmup_num_steps": 5}}}, ["'scheduler' cannot be used", "warmup_steps"]),
        ({"curriculum_learning": {"enabled": True}}, ["the order of the data is the recipe's"]),
        ({"tensor_parallel": {"autotp_size": 2}}, ["split by ZeRO alone"]),
        ({"zero_optimization": {"sub_group_size": "auto"}}, ["sub_group_size: auto; give a value"]),
    ],
)
def test_what_contradicts_the_recipe_is_refused_by_name(given, said):
    with pytest.raises(StageError) as refused:
        _resolve(given)
    for words in said:
        assert words in str(refused.value)


def test_all_contradictions_are_named_at_once():
    with pytest.raises(StageError, match=r"(?s)gradient_clipping.*zero_optimization\.stage"):
        _resolve({"gradient_clipping": 2.0, "zero_optimization": {"stage": 1}})


def test_keys_that_deepspeed_would_overlook_are_named_with_the_nearest_it_reads():
    said = list(notes({"zero_optimisation": {"stage": 2}, "activation_checkpointing": {}, "steps_per_print": 1}))
    assert len(said) == 2
    assert "no key 'zero_optimisation'; did you mean zero_optimization" in said[0]
    assert "use activation_checkpointing: true" in said[1]


def test_every_known_key_is_read_by_deepspeed():
    import deepspeed

    package = Path(deepspeed.__file__).parent
    quoted: set[str] = set()
    for path in [*package.rglob("*constants.py"), *package.rglob("*config*.py")]:
        quoted |= set(re.findall(r"""["'](\w+)["']""", path.read_text(encoding="utf-8")))
    # The monitors' sections are named by the fields of a class.
    assert KNOWN - quoted <= {"tensorboard", "wandb", "csv_monitor", "comet", "compile"}


def test_the_file_of_a_recipe_is_read_or_refused_with_the_reason(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"steps_per_print": 7}))
    assert read_given(str(path)) == {"steps_per_print": 7}
    path.write_text("{'steps': 1}")
    with pytest.raises(StageError, match=r"ds\.json is no JSON"):
        read_given(str(path))
    with pytest.raises(StageError, match="cannot be read: No such file"):
        read_given(str(tmp_path / "absent.json"))
    path.write_text("[1]")
    with pytest.raises(StageError, match="must be a JSON object"):
        read_given(str(path))


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_deepspeed_itself_accepts_what_is_resolved(dtype):
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    settings = _resolve(HUGGING_FACE_ZERO3, student=3, dtype=dtype, offload_optimizer="cpu")
    section = DeepSpeedZeroConfig(strict=True, **settings["zero_optimization"])
    assert section.stage == 3
    assert section.offload_optimizer.device == "cpu"
    zero = {"teacher": 3, "offload_teacher": "cpu"}
    teacher = teacher_settings(zero, dtype, width=64, given={"zero_optimization": {"stage": 2, "sub_group_size": 7}})
    assert teacher["zero_optimization"]["stage"] == 3
    assert teacher["zero_optimization"]["sub_group_size"] == 7
    assert DeepSpeedZeroConfig(strict=True, **teacher["zero_optimization"]).offload_param.device == "cpu"
    assert DeepSpeedConfig(teacher).bfloat16_config.enabled == (dtype == "bf16")
