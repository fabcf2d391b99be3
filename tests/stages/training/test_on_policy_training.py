"""On-policy distillation through the engine: what it trains on, resuming, the averaged teacher, and collapse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from on_policy_world import make_world, write_documents, writer
from safetensors.torch import load_file

from stages.artifacts import ModelArtifact
from stages.distill import Distill, DistillConfig
from stages.stage import StageContext, StageError, StageInterrupted
from stages.training import loop
from stages.training.monitoring.guard import Guard
from stages.training.on_policy.rollouts import Author

ALM = {"alm": {"gamma": 0.0, "temperature": 20.0}}
ROLLOUTS = {"prompt_tokens": [3, 8], "max_new_tokens": 16}
# Random models write noise of which much cannot be scored.
NO_GUARDS = {"guards": {"on_breach": "warn"}}


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer_dirs, tiny_model_dir) -> dict[str, Path]:
    return make_world(tmp_path_factory, tiny_tokenizer_dirs, tiny_model_dir)


class StopAfter:
    """Asks the stage to stop once it was polled ``polls`` times."""

    def __init__(self, polls: int) -> None:
        self.left = polls

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def distill(world, root: Path, *, context=None, on_policy=None, **options) -> dict[str, torch.Tensor]:
    options = {
        "losses": [ALM],
        "steps": 4,
        "batch_windows": 4,
        "window_tokens": 48,
        "learning_rate": 3e-3,
        "dtype": "fp32",
        "log_every": 1,
    } | options
    if on_policy is not None:
        options["on_policy"] = ROLLOUTS | NO_GUARDS | on_policy
    for name in ("work", "out"):
        (root / name).mkdir(parents=True, exist_ok=True)
    inputs = {name: {name: path} for name, path in world.items()}
    config = DistillConfig(**options)
    ctx = StageContext(config=config, inputs=inputs, work=root / "work", out=root / "out", **(context or {}))
    Distill().run(ctx)
    ModelArtifact.verify(ctx.out)
    return load_file(ctx.out / "model.safetensors")


def curve(root: Path, name: str) -> list[float]:
    return [json.loads(line)[name] for line in (root / "out" / "training.jsonl").read_text().splitlines()]


def assert_bitwise_equal(left, right) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def test_a_fraction_of_nothing_is_the_plain_run_bitwise(world, tmp_path):
    plain = distill(world, tmp_path / "plain")
    assert_bitwise_equal(distill(world, tmp_path / "none", on_policy={"fraction": 0}), plain)


def test_a_student_that_is_the_teacher_has_no_loss_on_what_it_writes(world, tmp_path):
    same = world | {"student": world["teacher"]}
    losses = ["same_vocabulary", {"alm": {"gamma": 0.0}}, "bpm", "policy_gradient"]
    distill(same, tmp_path, on_policy={}, losses=losses, steps=2, learning_rate=1e-7)
    for name in ("same_vocabulary", "alm", "bpm", "policy_gradient"):
        assert max(map(abs, curve(tmp_path, name))) < 1e-5
        assert min(curve(tmp_path, f"{name}.units")) > 10


def test_an_interrupted_run_ends_bitwise_like_an_uninterrupted_one(world, tmp_path):
    """Asked between two steps, and twice while the student writes, of which one is before the first step."""
    options = {"on_policy": {"fraction": 0.5}, "steps": 5, "checkpoint_every": 2}
    never = StopAfter(1_000)
    expected = distill(world, tmp_path / "straight", context={"should_stop": never}, **options)
    polled = 1_000 - never.left
    assert polled > 20, "it is asked before every step and with every token"
    for polls, step in ((5, 0), (polled // 2, "[1-4]"), (polled // 3, "[1-4]")):
        with pytest.raises(StageInterrupted, match=f"stopped after step {step} of 5"):
            distill(world, tmp_path / "resumed", context={"should_stop": StopAfter(polls)}, **options)
    resumed = distill(world, tmp_path / "resumed", **options)
    assert_bitwise_equal(resumed, expected)
    for name in ("loss", "rollouts.length_median", "rollouts.white_space"):
        assert curve(tmp_path / "resumed", name) == curve(tmp_path / "straight", name)
    records = [(tmp_path / run / "out" / "rollouts.jsonl").read_text() for run in ("straight", "resumed")]
    assert records[0] == records[1]
    steps = [json.loads(line)["step"] for line in records[0].split("\n")[:-1]]
    assert steps == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_a_student_writes_only_after_its_last_step_was_looked_at(world, tmp_path, monkeypatch):
    # As on an accelerator: a step that has broken the weights must be taken back before anything is sampled from them.
    monkeypatch.setitem(loop.LAG, "cpu", 1)
    events: list[str] = []
    for owner, name in ((Author, "write"), (Guard, "judge")):
        original = getattr(owner, name)

        def noted(*args, original=original, name=name):
            events.append(name)
            return original(*args)

        monkeypatch.setattr(owner, name, noted)
    distill(world, tmp_path, on_policy={})
    assert events == ["write", "judge"] * 4


def test_rollouts_follow_the_students_weights(world, tmp_path):
    """The same prompts and draws give another text once the student has moved."""
    for rate in (1e-5, 3e-2):
        distill(world, tmp_path / str(rate), on_policy={}, learning_rate=rate)
    lines = [
        [json.loads(line) for line in (tmp_path / rate / "out" / "rollouts.jsonl").read_text().split("\n")[:-1]]
        for rate in ("1e-05", "0.03")
    ]
    assert [line["prompt"] for line in lines[0]] == [line["prompt"] for line in lines[1]]
    assert lines[0][:2] == lines[1][:2]
    assert lines[0][2:] != lines[1][2:]


def test_the_layout_of_a_step_changes_nothing(world, tmp_path):
    options = {"on_policy": {"fraction": 0.5}, "losses": [ALM, {"cross_entropy": {}}]}
    distill(world, tmp_path / "whole", **options)
    for name, layout in (("split", {"micro_batch_windows": 1}), ("packed", {"packing": True})):
        distill(world, tmp_path / name, **layout, **options)
        assert curve(tmp_path / name, "loss") == pytest.approx(curve(tmp_path / "whole", "loss"), rel=1e-5)


@pytest.mark.slow
def test_the_policy_gradient_brings_the_student_closer_to_the_teacher(world, tmp_path):
    options = {"steps": 40, "batch_windows": 16, "learning_rate": 1e-2, "losses": [{"policy_gradient": {}}]}
    distill(world, tmp_path, on_policy={}, **options)
    estimates = curve(tmp_path, "policy_gradient")
    assert sum(estimates[-8:]) < 0.6 * sum(estimates[:8])


def test_conversations_are_answered(world, tmp_path, tiny_chat_dirs, tiny_model_dir):
    turns = [
        [{"role": "user", "content": f"Which user, number {n}?"}, {"role": "assistant", "content": f"Number {n}."}]
        for n in range(6)
    ]
    chat = {
        "teacher": tiny_model_dir(tiny_chat_dirs[0], seed=3),
        "student": tiny_model_dir(tiny_chat_dirs[1], seed=4),
        "documents": write_documents(tmp_path, [{"messages": messages} for messages in turns]),
    }
    # Only the questions: prompts need no answers.
    asked = chat | {"documents": write_documents(tmp_path, [{"messages": messages[:1]} for messages in turns])}
    distill(asked, tmp_path / "asked", on_policy={}, window_tokens=96, steps=2)
    assert min(curve(tmp_path / "asked", "alm.units")) > 0
    lines = (tmp_path / "asked" / "out" / "rollouts.jsonl").read_text().split("\n")[:-1]
    assert all("Which user, number" in json.loads(line)["prompt"] for line in lines)


def test_an_averaged_teacher_follows_the_student_and_survives_a_resume(world, tmp_path):
    """Its loss begins at nothing, grows as the student moves away, and a slower average grows more."""
    options = {"teacher": "ema", "losses": ["cross_entropy", {"alm": {"gamma": 0.0}}], "steps": 6}
    text = {name: path for name, path in world.items() if name != "teacher"}
    ends = {}
    for decay in (0.5, 0.99):
        distill(text, tmp_path / str(decay), ema_decay=decay, on_policy={"fraction": 0.5}, **options)
        distances = curve(tmp_path / str(decay), "alm")
        assert distances[0] < 1e-6
        ends[decay] = distances[-1]
    assert 0 < ends[0.5] < ends[0.99]
    resumed = {"ema_decay": 0.5, "on_policy": {"fraction": 0.5}, **options}
    with pytest.raises(StageInterrupted):
        distill(text, tmp_path / "resumed", context={"should_stop": StopAfter(3)}, **resumed)
    distill(text, tmp_path / "resumed", **resumed)
    assert curve(tmp_path / "resumed", "alm") == curve(tmp_path / "0.5", "alm")


@pytest.fixture(scope="module")
def collapse(world, tmp_path_factory) -> dict[str, Path]:
    """A teacher that loves spaces."""
    favour = {" ": 8.0, "<|endoftext|>": -4.0}
    return world | {"teacher": writer(world["teacher"], tmp_path_factory.mktemp("spaces"), seed=1, favour=favour)}


def test_a_student_that_collapses_into_white_space_is_stopped_and_again_after_a_resume(collapse, tmp_path):
    options = {"losses": [{"policy_gradient": {}}], "learning_rate": 1e-2, "steps": 200, "batch_windows": 8}
    others = {"length_growth", "cut_off_rise", "stop_mass", "indentation_loss", "content_share", "repetition_rise"}
    guards = {"reference_steps": 5, "recent_steps": 3, **dict.fromkeys(others)}
    options |= {"on_policy": {"guards": guards}, "checkpoint_every": 5}
    with pytest.raises(StageError, match=r"step \d+: the student collapses: the share of white space") as stopped:
        distill(collapse, tmp_path / "run", **options)
    message = str(stopped.value)
    assert "the limit (white_space_rise) is 0.4" in message
    assert str(tmp_path / "run" / "work" / "rollouts.jsonl") in message
    assert "the last checkpoint is " in message
    last = json.loads((tmp_path / "run" / "work" / "rollouts.jsonl").read_text().split("\n")[-2])
    assert last["text"].count(" ") > len(last["text"]) / 3
    with pytest.raises(StageError) as again:
        distill(collapse, tmp_path / "run", **options)
    assert str(again.value) == message


def test_a_warning_goes_on_and_is_said_once(collapse, tmp_path):
    said: list[str] = []
    guards = {"on_breach": "warn", "reference_steps": 1, "recent_steps": 1, "content_share": 0.99}
    distill(collapse, tmp_path, on_policy={"guards": guards}, context={"progress": said.append})
    assert sum("warning: step 1: the share of written bytes that cannot be scored" in line for line in said) == 1
    assert sum("content_share" in line for line in said) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"losses": ["cross_entropy"]}, "none of the losses asks the teacher"),
        ({"losses": ["alm", "cross_entropy"], "on_policy": {"fraction": 1}}, "teaches nothing on average"),
        ({"on_policy": {"fraction": 0.1}}, "0.1 of batch_windows 4 is 0 windows"),
        ({"on_policy": {"fraction": 0.9}}, "0.9 of batch_windows 4 is 4 windows"),
        ({"batch_tokens": 300}, "must be counted in batch_windows"),
        ({"window_tokens": 24}, r"prompt_tokens \(8\) and max_new_tokens \(16\) must stay below window_tokens \(24\)"),
        ({"losses": ["policy_gradient"], "on_policy": {"fraction": 0.5}}, r"needs on_policy: \{fraction: 1\}"),
        ({"losses": ["policy_gradient"], "on_policy": None}, r"on text of the data use dpca"),
        ({"ema_decay": 0.9}, "no effect without teacher: ema"),
        ({"teacher": "ema", "adapter": {"rank": 2}}, "averages whole models"),
        ({"teacher": "ema", "losses": ["cross_entropy"], "on_policy": None}, "teacher: ema has no effect"),
        ({"teacher": "ema", "teacher_dtype": "fp32"}, "the student teaches itself"),
    ],
)
def test_what_cannot_work_is_refused_with_the_way_out(options, said):
    batch = {} if "batch_tokens" in options else {"batch_windows": 4}
    options = {"losses": ["alm"], "steps": 1, "window_tokens": 48, "on_policy": {}} | batch | options
    if options["on_policy"] is not None:
        options["on_policy"] = ROLLOUTS | options["on_policy"]
    with pytest.raises(ValueError, match=said):
        DistillConfig(**options)


def test_an_average_of_weights_that_no_process_has_whole_is_refused(world, tmp_path):
    text = {name: path for name, path in world.items() if name != "teacher"}
    with pytest.raises(StageError, match="use ZeRO 0 to 2"):
        distill(text, tmp_path, teacher="ema", context={"resources": {"zero": {"student": 3}}})
