"""What training says of its speed: counts that add up, operations as PyTorch counts them, and no waiting for it."""

from __future__ import annotations

import json
import os
import re
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from losses import scores
from stages.distill import Distill, DistillConfig
from stages.stage import StageContext
from stages.training.data.batch import Batch, collate
from stages.training.data.windows import Side, Window
from stages.training.monitoring.contents import contents
from stages.training.monitoring.flops import ModelFlops, known_peak
from stages.training.monitoring.step_record import StepRecord
from stages.training.monitoring.telemetry import WAITED, Telemetry
from stages.training.monitoring.timeline import PHASES, Timeline
from stages.training.optimiser import select_trainable

TOKENS = 12
TEXTS = ["Tokens are byte strings; two tokenizations of one text meet where their boundaries coincide."] * 6
LOSSES = [{"alm": {"gamma": 0.0, "temperature": 20.0}}, {"dskd": {}}, "cross_entropy"]


def _side(chunk: list[int], lengths: list[int]) -> Side:
    import numpy as np

    return Side(*(np.asarray(values, dtype=np.int64) for values in (range(len(chunk)), chunk, lengths)))


def _batch() -> Batch:
    """Two windows of 5 and 3 student tokens, and of 4 and 2 of the teacher's; a special token starts each."""
    first = Window(_side([-1, 0, 0, 1, 2], [0, 2, 1, 4, 3]), _side([-1, 0, 1, 2], [0, 3, 4, 3]), 3)
    second = Window(_side([-1, 0, -1], [0, 2, 5]), _side([-1, 0], [0, 2]), 1)
    return collate([first, second])


def test_contents_are_those_of_the_windows_without_their_padding():
    facts = {name: value.tolist() for name, value in contents(_batch(), num_teachers=1).items()}
    assert facts == {
        "bytes": 17, "chunk_bytes": 12, "chunks": 4,
        "student_tokens": 8, "student_predictions": 5, "student_pairs": 15 + 6, "student_chunk_tokens": 5,
        "teacher_tokens": [6], "teacher_predictions": [4], "teacher_pairs": [10 + 3], "teacher_chunk_tokens": [4],
    }  # fmt: skip


def _model(**options) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, attn_implementation="eager", **options,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("tied", [True, False])
def test_operations_are_those_that_pytorch_counts(tied):
    model = _model(tie_word_embeddings=tied)
    ids = torch.arange(TOKENS)[None]
    flops = ModelFlops.of(model)
    # PyTorch computes all pairs and masks half of them.
    facts = {"tokens": TOKENS, "predictions": TOKENS, "pairs": TOKENS**2}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ids)
    assert flops.forward(**facts) == counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        model(ids).logits.sum().backward()
    assert flops.training(**facts) == counter.get_total_flops()


def test_frozen_matrices_need_no_gradient_of_their_own():
    model = _model(tie_word_embeddings=False)
    select_trainable(model, DistillConfig(losses=["cross_entropy"], steps=1, trainable="embeddings"))
    facts = {"tokens": TOKENS, "predictions": TOKENS, "pairs": TOKENS**2}
    with FlopCounterMode(display=False) as counter:
        model(torch.arange(TOKENS)[None]).logits.sum().backward()
    assert ModelFlops.of(model).training(**facts) == counter.get_total_flops()


def test_a_token_meets_only_the_experts_that_it_is_sent_to():
    config = MixtralConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    attention, router, expert = 4 * 16 * 16, 16 * 4, 3 * 16 * 24
    assert ModelFlops.of(MixtralForCausalLM(config)).body == attention + router + 2 * expert


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A10G", None),
        ("Tesla T4", None),
    ],
)
def test_the_peak_is_that_of_the_data_sheet_or_unknown(name, teraflops):
    assert known_peak(name) == (None if teraflops is None else teraflops * 1e12)


def test_phases_add_up_to_the_time_between_the_marks():
    timeline = Timeline(torch.device("cpu"))
    start = time.perf_counter()
    for phase in ("teacher", "forward", "loss", "forward", "backward"):
        timeline.enter(phase)
        time.sleep(0.01)
    timeline.stop()
    whole, seconds = time.perf_counter() - start, timeline.seconds()
    assert set(seconds) == set(PHASES)
    assert sum(seconds.values()) == pytest.approx(whole, rel=0.05)
    assert seconds["forward"] >= 0.02 > 0 == seconds["optimiser"]


def test_rates_are_of_all_processes_and_shares_of_one_device(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    student = ModelFlops(body=10, head=3, attention=2, trained_body=10, trained_head=0)
    teacher = ModelFlops(body=7, head=5, attention=0, trained_body=0, trained_head=0)
    telemetry = Telemetry(torch.device("cpu"), student, [teacher, None], peak_flops=1e3)
    numbers = {f"contents/{name}": value for name, value in contents(_batch(), num_teachers=2).items()}
    numbers |= {"contents/processes": torch.tensor(2.0), f"contents/{WAITED}": torch.tensor(1.0)}
    for _ in range(3):
        timeline = Timeline(torch.device("cpu"))
        timeline.stop()
        telemetry.add(StepRecord(numbers, lambda numbers: {}, timeline))
    with telemetry.apart():
        clock[0] += 50.0
    clock[0] += 6.0
    values = telemetry.report()
    # 3 steps in 6 seconds, each with what one batch holds.
    assert values["seconds.step"] == telemetry.seconds_per_step == 2.0
    assert values["student_tokens_per_second"] == 8 * 3 / 6
    assert values["teacher_tokens_per_second"] == 6 * 3 / 6
    assert values["bytes_per_second"] == 17 * 3 / 6
    assert values["data_wait_share"] == 0.5 / 2
    assert values["coverage"] == pytest.approx(12 / 17)
    assert values["bytes_per_chunk"] == 12 / 4
    assert (values["student_tokens_per_chunk"], values["teacher_tokens_per_chunk"]) == (5 / 4, 4 / 4)
    forward, activations, weights = 2 * (10 * 8 + 3 * 5) + 4 * 2 * 21, 2 * (10 * 8 + 3 * 5) + 8 * 2 * 21, 2 * 10 * 8
    taught = 2 * (7 * 6 + 5 * 4)
    assert values["mfu"] == pytest.approx((forward + activations + weights + taught) * 3 / 6 / 2 / 1e3)
    assert values["teraflops_per_second"] == pytest.approx(values["mfu"] * 1e-9)


class _Waits(TorchDispatchMode):
    """Collects the lines of ours that read a tensor's value, for which a host would wait for its accelerator."""

    # ALM's check for a missing score is made on the CPU alone.
    ON_CPU_ALONE = "losses/alm.py"

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            frames = [frame for frame in traceback.extract_stack() if "_compile.py" not in frame.filename]
            ours = [f for f in frames[:-1] if any(part in f.filename for part in ("/stages/", "/losses/"))]
            inside_a_model = any("transformers" in frame.filename for frame in frames)
            if not inside_a_model and not ours[-1].filename.endswith(self.ON_CPU_ALONE):
                self.lines.append(f"{ours[-1].filename}:{ours[-1].lineno} {ours[-1].line}")
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer_dirs, tiny_model_dir) -> dict[str, Path]:
    documents = tmp_path_factory.mktemp("documents")
    records = [{"id": f"d/{n}", "domain": "d", "weight": 1.0, "text": text} for n, text in enumerate(TEXTS)]
    (documents / "documents.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (documents / "manifest.json").write_text("{}")
    teacher, student = (tiny_model_dir(directory, seed=seed) for seed, directory in enumerate(tiny_tokenizer_dirs))
    return {"teacher": teacher, "student": student, "documents": documents}


def _train(world, root: Path, lines: list[str] | None = None, **options) -> list[dict[str, float]]:
    for name in ("work", "out"):
        (root / name).mkdir(parents=True)
    config = DistillConfig(**{"losses": LOSSES, "steps": 2, "batch_windows": 2, "window_tokens": 48, **options})
    inputs = {name: {name: path} for name, path in world.items()}
    progress = (lines if lines is not None else []).append
    Distill().run(StageContext(config=config, inputs=inputs, work=root / "work", out=root / "out", progress=progress))
    return [json.loads(line) for line in (root / "out" / "training.jsonl").read_text().splitlines()]


def test_a_training_logs_speeds_lengths_and_rates(world, tmp_path):
    lines: list[str] = []
    (point,) = _train(world, tmp_path, lines, log_every=2, device_tflops=1.0, learning_rate=1e-3, warmup_steps=1)
    # Saving comes after the point, and may have taken more.
    (line,) = (line for line in lines if line.startswith("peak memory"))
    used, planned = (int(size.replace(",", "")) for size in re.findall(r"([\d,]+) MiB", line))
    assert used >= int(point["peak_memory_mib"])
    assert planned > 0
    assert 0 < point["mfu"] < 1
    assert point["mfu"] == pytest.approx(point["teraflops_per_second"])
    assert point["coverage"] == 1
    assert point["student_tokens_per_chunk"] >= 1
    assert point["bytes_per_second"] > point["student_tokens_per_second"] > 0
    assert sum(point[f"seconds.{phase}"] for phase in ("data", *PHASES)) <= point["seconds.step"]
    assert min(point[f"seconds.{phase}"] for phase in PHASES) > 0
    assert 0 <= point["data_wait_share"] < 1
    # One group of each kind, at the second of two steps: (2 - 1) / (2 - 1) of the peak.
    rates = {name: point[f"learning_rate.{name}"] for name in ("vocabulary", "matrices", "vectors", "auxiliary")}
    assert rates == pytest.approx({"vocabulary": 1e-3, "matrices": 1e-3, "vectors": 1e-3, "auxiliary": 2e-3})


def test_an_unlogged_step_does_not_wait_for_the_device(world, tmp_path, monkeypatch):
    from stages.training.step import Stepper

    take, waits = Stepper.take, []

    def watched(self, *args, **kwargs):
        with _Waits() as mode:
            record = take(self, *args, **kwargs)
        waits.append((kwargs["measure"], mode.lines))
        return record

    monkeypatch.setattr(Stepper, "take", watched)
    # Scoring needs to know how many rows it has, and so waits for the batch; its own check is no further wait.
    monkeypatch.setattr(scores, "_check_labels", lambda *args: None)
    _train(world, tmp_path, steps=3, log_every=3, losses=[LOSSES[0], "cross_entropy"])
    assert [logged for logged, _ in waits] == [False, False, True]
    assert waits[1][1] == []


def _peak_and_plan(world: dict[str, Path], root: Path) -> tuple[int, int]:
    """MiB that a training took and was planned to take, in the process that this runs in."""
    lines: list[str] = []
    _train(world, root, lines, checkpoint_every=1)
    (line,) = (line for line in lines if line.startswith("peak memory"))
    used, planned = (int(size.replace(",", "")) for size in re.findall(r"([\d,]+) MiB", line))
    return used, planned


def test_a_process_on_the_cpu_takes_no_more_than_planned(world, tmp_path):
    """In a process of its own: the peak of this one is that of all tests before."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        used, planned = fresh.submit(_peak_and_plan, world, tmp_path).result()
    assert 1 < planned / used < 3


def _own_peak() -> float:
    return Telemetry(torch.device("cpu"), None, (), None).peak_memory_mib


def test_the_peak_of_a_process_does_not_begin_at_that_of_the_one_that_started_it():
    held = bytearray(os.urandom(1)) * (1 << 30)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        assert 50 < fresh.submit(_own_peak).result() < len(held) >> 20
