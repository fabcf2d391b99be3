"""``keep_best``: the checkpoint that predicts held-out text best is published, whatever interrupts the training."""

from __future__ import annotations

import json
import math
from pathlib import Path

import process_world
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.distill import Distill, DistillConfig
from stages.stage import StageContext, StageError, StageInterrupted

TRAINED = ["The quick brown fox jumps over the lazy dog, and the dog sleeps on while the fox runs far away."] * 8
HELD_OUT = ["The quick brown dog sleeps.", "def far(away):\n    return away\n", "Ein Häuschen, 東京."]
# So steep that the held-out text soon gets worse.
OPTIONS = {
    "losses": ["cross_entropy"], "steps": 12, "batch_windows": 2, "window_tokens": 24, "learning_rate": 2e-2,
    "schedule": "constant", "dtype": "fp32", "keep_checkpoints": 1, "checkpoint_every": 5,
}  # fmt: skip


def _documents(directory: Path, texts: list[str], **fields) -> Path:
    records = [{"id": f"d/{n}", "domain": "d", "weight": 1.0, "text": text} | fields for n, text in enumerate(texts)]
    (directory / "documents.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (directory / "manifest.json").write_text("{}")
    return directory


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer_dirs, tiny_model_dir) -> dict[str, Path]:
    student = tiny_model_dir(tiny_tokenizer_dirs[1], seed=2)
    return {
        "student": student,
        "teacher": student,
        "documents": _documents(tmp_path_factory.mktemp("documents"), TRAINED),
        "held_out": _documents(tmp_path_factory.mktemp("held-out"), HELD_OUT),
    }


def _distill(world, root: Path, *, stop=None, progress=print, **options) -> dict[str, torch.Tensor]:
    for name in ("work", "out"):
        (root / name).mkdir(parents=True, exist_ok=True)
    ctx = StageContext(
        config=DistillConfig(**OPTIONS | options),
        inputs={name: {name: path} for name, path in world.items()},
        work=root / "work",
        out=root / "out",
        should_stop=stop or (lambda: False),
        progress=progress,
    )
    Distill().run(ctx)
    return load_file(root / "out" / "model.safetensors")


def _measured(root: Path) -> dict[int, float]:
    points = [json.loads(line) for line in (root / "out" / "training.jsonl").read_text().splitlines()]
    return {point["step"]: point["eval.bits_per_byte"] for point in points if "eval.bits_per_byte" in point}


@pytest.fixture(scope="module")
def kept(world, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("kept")
    _distill(world, root, keep_best={"every": 2})
    return root


def test_the_best_of_all_measured_steps_is_published(world, kept, tmp_path):
    measured = _measured(kept)
    assert list(measured) == [2, 4, 6, 8, 10, 12]
    best = min(measured, key=measured.get)
    assert best < 12, "this data must get worse to show anything"
    facts = json.loads((kept / "out" / "training_data.json").read_text())
    assert facts["best"] == {"step": best, "bits_per_byte": measured[best]}
    # With a constant learning rate the first steps of a run are a run.
    shorter = _distill(world, tmp_path, steps=best)
    published = load_file(kept / "out" / "model.safetensors")
    assert all(torch.equal(published[name], shorter[name]) for name in shorter)


def test_bits_per_byte_are_those_of_the_published_model(world, kept):
    model = AutoModelForCausalLM.from_pretrained(kept / "out")
    tokenizer = AutoTokenizer.from_pretrained(kept / "out")
    window, nats, size = OPTIONS["window_tokens"], 0.0, 0
    for text in HELD_OUT:
        ids = tokenizer(text, return_tensors="pt").input_ids
        for start in range(0, ids.shape[1] - 1, window - 1):
            piece = ids[:, start : start + window]
            with torch.no_grad():
                logp = model(piece).logits[0, :-1].log_softmax(-1)
            nats -= float(logp.gather(1, piece[0, 1:, None]).sum())
        size += len(text.encode()) - len(tokenizer.decode(ids[0, :1]).encode())
    assert min(_measured(kept).values()) == pytest.approx(nats / math.log(2) / size, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 2, 3])
def test_two_processes_measure_and_publish_what_one_does(world, kept, tmp_path, zero):
    # Three documents make more windows than one, and an odd number of them.
    config = DistillConfig(**OPTIONS | {"keep_best": {"every": 2}})
    job = process_world.write_job(tmp_path, world, config, {"zero": {"student": zero}, "processes": 2})
    done = process_world.run(job, 2)
    assert done.codes == (0, 0), done.text
    # The losses of a run this steep drift apart by rounding; its first measurements do not.
    one, two = _measured(kept), _measured(tmp_path)
    assert [two[step] for step in (2, 4)] == pytest.approx([one[step] for step in (2, 4)], rel=1e-4)
    best = min(two, key=two.get)
    assert json.loads((tmp_path / "out" / "training_data.json").read_text())["best"]["step"] == best


@pytest.mark.parametrize("stop_after", [5, *(pytest.param(steps, marks=pytest.mark.slow) for steps in (1, 9))])
def test_an_interrupted_run_publishes_the_same(world, kept, tmp_path, stop_after):
    polls = iter([False] * stop_after + [True])
    with pytest.raises(StageInterrupted):
        _distill(world, tmp_path, stop=lambda: next(polls), keep_best={"every": 2})
    resumed = _distill(world, tmp_path, keep_best={"every": 2})
    published = load_file(kept / "out" / "model.safetensors")
    assert all(torch.equal(published[name], resumed[name]) for name in published)
    assert _measured(tmp_path) == _measured(kept)


def test_only_the_newest_and_the_best_checkpoint_stay(kept):
    measured = _measured(kept)
    steps = {int(path.name.removeprefix("step-")) for path in (kept / "work" / "ckpt").iterdir()}
    assert steps == {12, min(measured, key=measured.get)}


def test_a_step_that_breaks_the_weights_is_taken_back_and_not_measured(world, tmp_path):
    # The update overflows, though its gradient and its loss are finite.
    with pytest.raises(StageError, match="step 1: the step left weights that are not finite"):
        _distill(world, tmp_path, learning_rate=1e39, keep_best={"every": 1}, max_rollbacks=0)


def test_measuring_changes_nothing_of_the_training(world, kept, tmp_path):
    _distill(world, tmp_path)
    losses = [
        [json.loads(line).get("loss") for line in (root / "out" / "training.jsonl").read_text().splitlines()]
        for root in (tmp_path, kept)
    ]
    assert losses[0] == [loss for loss in losses[1] if loss is not None]


def test_an_objective_that_scores_no_labels_is_measured_all_the_same(world, kept, tmp_path):
    # Of a teacher that is the student, nothing is learned, so both measure the same.
    losses = [{"hidden_states": {}}], ["cross_entropy"]
    roots = tmp_path / "hidden", tmp_path / "labels"
    for root, each in zip(roots, losses, strict=True):
        _distill(world, root, losses=each, steps=1, learning_rate=1e-30, keep_best={"every": 1})
    assert _measured(roots[0])[1] == pytest.approx(_measured(roots[1])[1], rel=1e-6)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"messages": [{"role": "user", "content": "Hello"}]}, "document d/0 of data.eval is a conversation"),
        ({"text": "T"}, "data.eval has no text of two tokens or more"),
    ],
)
def test_text_that_cannot_be_measured_is_refused_before_a_model_is_loaded(world, tmp_path, fields, said):
    (tmp_path / "held-out").mkdir()
    unfit = world | {"held_out": _documents(tmp_path / "held-out", HELD_OUT[:1], **fields)}
    lines: list[str] = []
    with pytest.raises(StageError, match=said):
        _distill(unfit, tmp_path, keep_best={"every": 2}, progress=lines.append)
    assert not [line for line in lines if line.startswith("loading")]


def test_the_held_out_text_is_an_input_only_where_it_is_wanted():
    assert "held_out" in DistillConfig(losses=["cross_entropy"], steps=1, keep_best={"every": 1}).wanted_inputs
    assert "held_out" not in DistillConfig(losses=["cross_entropy"], steps=1).wanted_inputs
