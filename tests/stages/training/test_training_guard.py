"""A bad step is taken back: training returns to a checkpoint and goes on as if its batch had never been there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import process_world
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from stages.distill import Distill, DistillConfig
from stages.stage import StageContext, StageError, StageInterrupted
from stages.training import loop
from stages.training.data.batches import BatchSource
from stages.training.monitoring.guard import FEWEST, Guard

POISON = "\x01"
TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on while the fox runs far away.",
    "Tokens are byte strings; two tokenizations of one text meet where their boundaries coincide.",
    "def add(left, right):\n    return left + right\n\nprint(add(12, 345))\n",
] * 4
LOSSES = [{"alm": {"gamma": 0.0, "temperature": 20.0}}, "cross_entropy"]
OPTIONS = {"steps": 5, "batch_windows": 3, "window_tokens": 48, "learning_rate": 3e-3, "dtype": "fp32", "seed": 3}


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer_dirs, tiny_model_dir) -> dict[str, Path]:
    """A teacher that gives NaN from one token on, its sound copy, a student, and one text with the token."""
    documents = tmp_path_factory.mktemp("documents")
    texts = [*TEXTS, f"A text with {POISON} in it, and more after that, for both to read."]
    records = [{"id": f"d/{n}", "domain": "d", "weight": 1.0, "text": text} for n, text in enumerate(texts)]
    (documents / "documents.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (documents / "manifest.json").write_text("{}")
    sound = tiny_model_dir(tiny_tokenizer_dirs[0], seed=1, tied=False)
    poisoned = tiny_model_dir(tiny_tokenizer_dirs[0], seed=1, tied=False)
    weights = load_file(poisoned / "model.safetensors")
    weights["model.embed_tokens.weight"][_poison_id(poisoned)] = torch.nan
    save_file(weights, poisoned / "model.safetensors", metadata={"format": "pt"})
    student = tiny_model_dir(tiny_tokenizer_dirs[1], seed=2)
    return {"sound": sound, "poisoned": poisoned, "student": student, "documents": documents}


def _poison_id(directory: Path) -> int:
    (token,) = AutoTokenizer.from_pretrained(directory)(POISON).input_ids
    return token


def _distill(world, root: Path, teacher: str = "poisoned", *, lines: list[str] | None = None, stop=None, **options):
    for name in ("work", "out"):
        (root / name).mkdir(parents=True, exist_ok=True)
    inputs = {"teacher": world[teacher], "student": world["student"], "documents": world["documents"]}
    ctx = StageContext(
        config=DistillConfig(**{"losses": LOSSES, **OPTIONS, **options}),
        inputs={name: {name: path} for name, path in inputs.items()},
        work=root / "work",
        out=root / "out",
        progress=(lines if lines is not None else []).append,
        should_stop=stop or (lambda: False),
    )
    Distill().run(ctx)
    return load_file(root / "out" / "model.safetensors")


def _facts(root: Path) -> dict:
    return json.loads((root / "out" / "training_data.json").read_text())


def _assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture
def without_the_text(world, monkeypatch) -> Callable[[], None]:
    """Makes training pass over every batch that has the token, by what is in it and not by what became of it."""
    token, take = _poison_id(world["sound"]), BatchSource.take

    def sound_ones(self):
        batches = take(self)
        while any((batch.teacher.ids == token).any() for batch in batches):
            batches = take(self)
        return batches

    return lambda: monkeypatch.setattr(BatchSource, "take", sound_ones)


def _slow(*values: object) -> list:
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.mark.parametrize("combine", ["sum", "gradnorm", *_slow("gradmag", "pcgrad")])
def test_a_poisoned_batch_is_left_out_as_if_it_had_never_been_there(world, tmp_path, without_the_text, combine):
    lines: list[str] = []
    options = {"combine": combine, "checkpoint_every": 2, "log_every": 1}
    guarded = _distill(world, tmp_path / "guarded", lines=lines, **options)
    without_the_text()
    expected = _distill(world, tmp_path / "expected", "sound", **options)
    _assert_same(guarded, expected)
    (skipped,) = _facts(tmp_path / "guarded")["skipped_batches"]
    assert "is not finite" in skipped["reason"]
    (note,) = (line for line in lines if "is not finite" in line)
    assert f"step {skipped['step']}:" in note
    curves = [(tmp_path / name / "out" / "training.jsonl").read_text().splitlines() for name in ("guarded", "expected")]
    points = [[json.loads(line) for line in curve] for curve in curves]
    assert [point["loss"] for point in points[0]] == [point["loss"] for point in points[1]]
    assert [points[0][-1].get("skipped_batches"), points[1][-1].get("skipped_batches")] == [1, None]


def test_steps_that_are_looked_at_later_are_taken_back_all_the_same(world, tmp_path, monkeypatch):
    # As on an accelerator, where the next step has been submitted when a bad one is found.
    expected = _distill(world, tmp_path / "at once", checkpoint_every=3)
    monkeypatch.setitem(loop.LAG, "cpu", 1)
    _assert_same(_distill(world, tmp_path / "later", checkpoint_every=3), expected)
    assert _facts(tmp_path / "later") == _facts(tmp_path / "at once")


@pytest.mark.parametrize("stop_after", [1, 4, *_slow(0, 2, 3)])
def test_a_run_that_was_stopped_skips_the_same_batch(world, tmp_path, stop_after):
    expected = _distill(world, tmp_path / "straight", checkpoint_every=2)
    polls = iter([False] * (stop_after + 1) + [True] * 99)
    with pytest.raises(StageInterrupted):
        _distill(world, tmp_path / "resumed", stop=lambda: next(polls), checkpoint_every=2)
    _assert_same(_distill(world, tmp_path / "resumed", checkpoint_every=2), expected)
    assert _facts(tmp_path / "resumed") == _facts(tmp_path / "straight")


def test_more_bad_batches_than_allowed_end_the_run_and_leave_no_bad_checkpoint(world, tmp_path):
    everywhere = world | {"documents": tmp_path / "documents"}
    everywhere["documents"].mkdir()
    record = {"id": "d/0", "domain": "d", "weight": 1.0, "text": f"Every window {POISON} has it, " * 12}
    (everywhere["documents"] / "documents.jsonl").write_text(json.dumps(record) + "\n")
    (everywhere["documents"] / "manifest.json").write_text("{}")
    with pytest.raises(StageError, match=r"step 1: .* is not finite.*batches of steps 1, 1 were left out before"):
        _distill(everywhere, tmp_path, max_rollbacks=2, batch_windows=1)
    _assert_all_finite(tmp_path)


def test_without_rollbacks_the_first_bad_batch_ends_the_run(world, tmp_path):
    with pytest.raises(StageError, match=r"the gradient is not finite.*; lower learning_rate or check the data$"):
        _distill(world, tmp_path, max_rollbacks=0, batch_windows=13)
    assert not list((tmp_path / "work" / "ckpt").glob("step-*"))


def test_weights_that_are_not_finite_are_never_saved(world, tmp_path):
    # The update overflows, though its gradient and its loss are finite.
    with pytest.raises(StageError, match="step 1: the step left weights that are not finite"):
        _distill(world, tmp_path, "sound", learning_rate=1e39, checkpoint_every=1, max_rollbacks=1)
    _assert_all_finite(tmp_path)


def _assert_all_finite(root: Path) -> None:
    saved = list((root / "work" / "ckpt").rglob("*.safetensors"))
    assert saved
    assert all(tensor.isfinite().all() for path in saved for tensor in load_file(path).values())


def test_a_student_that_is_broken_before_the_first_step_is_refused(
    world, tmp_path, tiny_tokenizer_dirs, tiny_model_dir
):
    broken = tiny_model_dir(tiny_tokenizer_dirs[1], tied=False)
    weights = load_file(broken / "model.safetensors")
    weights["model.embed_tokens.weight"][_poison_id(broken)] = torch.inf
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StageError, match="the student has weights that are not finite before the first step"):
        _distill(world | {"student": broken}, tmp_path)


@pytest.mark.parametrize("zero", [2, *_slow(0, 1, 3)])
def test_two_processes_take_the_same_steps_back(world, tmp_path, zero):
    # Under ZeRO a bad gradient has been applied when its norm is known; every process has to go back.
    options = OPTIONS | {"losses": LOSSES, "checkpoint_every": 2, "log_every": 1, "batch_windows": 4}
    inputs = {"teacher": world["poisoned"], "student": world["student"], "documents": world["documents"]}
    for name, processes, stage in (("one", 1, 0), ("two", 2, zero)):
        job = process_world.write_job(
            tmp_path / name, inputs, DistillConfig(**options), {"zero": {"student": stage}, "processes": processes}
        )
        done = process_world.run(job, processes)
        assert done.codes == (0,) * processes, done.text
    assert _facts(tmp_path / "one")["skipped_batches"] == _facts(tmp_path / "two")["skipped_batches"] != []
    curves = [(tmp_path / name / "out" / "training.jsonl").read_text().splitlines() for name in ("one", "two")]
    one, two = ([json.loads(line)["loss"] for line in curve] for curve in curves)
    assert two == pytest.approx(one, rel=1e-5)


def _values(norm: float, loss: float = 1.0) -> dict[str, float]:
    return {"gradient_norm": norm, "loss": loss, "alm": loss}


def test_a_spike_is_measured_by_the_median_of_what_was_normal():
    guard = Guard(max_rollbacks=3, spike_factor=5.0)
    assert guard.judge(_values(100.0), ["alm"]) is None  # nothing to compare it with yet
    for _ in range(FEWEST):
        assert guard.judge(_values(2.0, loss=0.5), ["alm"]) is None
    assert guard.judge(_values(9.9), ["alm"]) is None
    assert guard.judge(_values(10.1), ["alm"]) == "gradient_norm is 10.1, 5.05 times its running median"
    assert guard.judge(_values(2.0, loss=2.6), ["alm"]) == "loss is 2.6, 5.2 times its running median"
    assert guard.judge(_values(9.9), ["alm"]) is None  # what was rejected did not move the median


def test_without_a_factor_nothing_finite_is_a_spike():
    guard = Guard(max_rollbacks=3, spike_factor=None)
    assert all(guard.judge(_values(norm), ["alm"]) is None for norm in [1.0] * 30 + [1e30])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (_values(float("nan")), "the gradient is not finite"),
        (_values(float("inf"), float("nan")), "the gradient is not finite, nor is alm"),
        (_values(1.0, float("inf")), "alm is not finite"),
        ({"gradient_norm": 1.0, "loss": float("nan")}, "the loss is not finite"),
    ],
)
def test_what_is_not_finite_is_named(values, said):
    assert Guard(max_rollbacks=3, spike_factor=None).judge(values, ["alm"]) == said


def test_a_guard_goes_on_from_what_a_checkpoint_holds():
    guard = Guard(max_rollbacks=3, spike_factor=5.0)
    for _ in range(FEWEST):
        guard.judge(_values(2.0), [])
    guard.skip(7, 8, "the gradient is not finite")
    other = Guard(max_rollbacks=3, spike_factor=5.0)
    other.restore(json.loads(json.dumps(guard.state())))
    assert other.judge(_values(11.0), []) == guard.judge(_values(11.0), [])
    assert other.skips(7)
    assert not other.skips(8)
