"""Two CPU processes under DeepSpeed ZeRO take the same steps as one plain process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stages.distill import DistillConfig
from stages.objectives.capabilities import CAPABILITIES
from stages.worker import EXIT_INTERRUPTED

STEPS = 4
LOSSES = [
    {"alm": {"weight": 5.0, "gamma": 0.0, "temperature": 20.0}},
    {"cross_entropy": {}},
    {"hidden_states": {}},
]
TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on while the fox runs far away.",
    "Tokens are byte strings; two tokenizations of one text meet where their boundaries coincide.",
    "def add(left, right):\n    return left + right\n\nprint(add(12, 345))\n",
    "Ein Häuschen steht im Wald, naïve façade, 東京 and Москва, 🙂 at 3.14159.",
] * 4


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer_dirs, tiny_model_dir) -> dict[str, Path]:
    documents = tmp_path_factory.mktemp("documents")
    records = [{"id": f"d/{n}", "domain": "d", "weight": 1.0, "text": text} for n, text in enumerate(TEXTS)]
    (documents / "documents.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (documents / "manifest.json").write_text("{}")
    return {
        "teacher": tiny_model_dir(tiny_tokenizer_dirs[0], seed=1),
        "student": tiny_model_dir(tiny_tokenizer_dirs[1], seed=2),
        "documents": documents,
    }


def _launch(
    world, root: Path, *, processes: int, zero: int, steps: int = STEPS, dtype: str = "fp32",
    worker: tuple[str, ...] = ("-m", "stages.worker"), **options,
) -> subprocess.CompletedProcess:  # fmt: skip
    for name in ("work", "out", "attempt"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "attempt" / "outcome.json").unlink(missing_ok=True)
    config = DistillConfig(
        losses=options.pop("losses", LOSSES), steps=steps, batch_windows=8, micro_batch_windows=2, window_tokens=48,
        learning_rate=options.pop("learning_rate", 1e-3), dtype=dtype, log_every=1, **options,
    )  # fmt: skip
    job = {
        "schema_version": 2,
        "cache": str(root / "cache"),
        "stage": "distill",
        "uses": "distill",
        "module": "stages.distill:Distill",
        "config": config.model_dump(mode="json", exclude_unset=True),
        "inputs": {name: {name: str(path)} for name, path in world.items()},
        "work": str(root / "work"),
        "out": str(root / "out"),
        "attempt": str(root / "attempt"),
        "resources": {"zero": {"student": zero}},
    }
    (root / "job.json").write_text(json.dumps(job))
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    return subprocess.run(
        [*command, *worker, str(root / "job.json")],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def _curve(root: Path, name: str) -> list[float]:
    return [json.loads(line)[name] for line in (root / "out" / "training.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def plain(world, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("plain")
    done = _launch(world, root, processes=1, zero=0)
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_two_processes_give_the_losses_and_weights_of_one(world, plain, tmp_path, zero):
    done = _launch(world, tmp_path, processes=2, zero=zero)
    assert done.returncode == 0, done.stderr
    for name in ("loss", "alm", "cross_entropy", "hidden_states", "alm.gradient_norm", "gradient_norm"):
        assert _curve(tmp_path, name) == pytest.approx(_curve(plain, name), rel=1e-5, abs=1e-7), name
    expected, sharded = (load_file(root / "out" / "model.safetensors") for root in (plain, tmp_path))
    assert expected.keys() == sharded.keys()
    for name in expected:
        torch.testing.assert_close(sharded[name], expected[name], atol=5e-5, rtol=1e-3)


def test_balancing_by_gradients_is_the_same_on_two_processes(world, tmp_path):
    # Every objective's gradient is taken on its own, which DeepSpeed's hooks must not take for the step's gradient.
    options = {"losses": [{"alm": {"gamma": 0.0, "temperature": 20.0}}, {"strict": {}}], "combine": "gradmag"}
    for name, processes, zero in (("plain", 1, 0), ("sharded", 2, 3)):
        done = _launch(world, tmp_path / name, processes=processes, zero=zero, **options)
        assert done.returncode == 0, done.stderr
    for name in ("loss", "strict", "alm.weight", "strict.gradient_norm"):
        curves = [_curve(tmp_path / root, name) for root in ("plain", "sharded")]
        assert curves[1] == pytest.approx(curves[0], rel=1e-4), name


def test_every_objective_is_the_same_on_two_processes(world, tmp_path):
    # With all parameters sharded, every matrix that an objective multiplies by must be gathered around it.
    one_vocabulary = {each.objective for each in CAPABILITIES if each.vocabularies in ("identical", "subset")}
    names = [each.objective for each in CAPABILITIES if each.objective not in one_vocabulary]
    for root, processes, zero in (("plain", 1, 0), ("sharded", 2, 3)):
        done = _launch(world, tmp_path / root, processes=processes, zero=zero, steps=2, losses=names)
        assert done.returncode == 0, done.stderr
    for name in names:
        for measure in (name, f"{name}.gradient_norm"):
            curves = [_curve(tmp_path / root, measure) for root in ("plain", "sharded")]
            assert curves[1] == pytest.approx(curves[0], rel=1e-3, abs=1e-6), measure


def test_bf16_with_sharded_master_weights_follows_the_plain_run(world, plain, tmp_path):
    done = _launch(world, tmp_path, processes=2, zero=2, dtype="bf16")
    assert done.returncode == 0, done.stderr
    # The bf16 forward pass rounds to three digits; a wrong scale of loss or gradient would show in the first.
    assert _curve(tmp_path, "loss") == pytest.approx(_curve(plain, "loss"), rel=2e-2)
    assert load_file(tmp_path / "out" / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("zero", [0, 2])
def test_a_gradient_that_is_not_finite_ends_the_run(world, tmp_path, zero):
    done = _launch(world, tmp_path, processes=2, zero=zero, losses=["cross_entropy"], learning_rate=1e30)
    assert done.returncode not in (0, EXIT_INTERRUPTED)
    assert "the gradient is not finite; lower learning_rate" in done.stdout + done.stderr
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_an_interrupted_sharded_run_goes_on_where_it_was(world, plain, tmp_path):
    # A shorter schedule would change the learning rates, so the first half is cut out by a stop request instead.
    marker = tmp_path / "work" / "ckpt" / "step-2" / "COMPLETE.json"
    first = _launch(world, tmp_path, processes=2, zero=2, checkpoint_every=2)
    assert first.returncode == 0, first.stderr
    assert marker.exists()
    for path in (tmp_path / "work" / "ckpt").glob("step-4"):
        (path / "COMPLETE.json").unlink()
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    second = _launch(world, tmp_path, processes=2, zero=2, checkpoint_every=2)
    assert second.returncode == 0, second.stderr
    assert "resuming after step 2/4" in second.stdout
    assert _curve(tmp_path, "loss") == pytest.approx(_curve(plain, "loss"), rel=1e-5)


def test_another_number_of_processes_is_refused_with_the_ways_out(world, tmp_path):
    assert _launch(world, tmp_path, processes=1, zero=0, steps=1).returncode == 0
    refused = _launch(world, tmp_path, processes=2, zero=1, steps=1)
    assert refused.returncode not in (0, EXIT_INTERRUPTED)
    assert "was saved by 1 processes with ZeRO 0, but this attempt has 2 with ZeRO 1" in refused.stdout + refused.stderr


def test_every_process_leaves_the_group_before_it_ends(world, tmp_path):
    # A group that the interpreter's exit takes apart aborts the process about once in ten times.
    script = tmp_path / "worker_then_look.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nimport torch\nfrom stages.worker import run_job\n"
        "assert run_job(Path(sys.argv[1])) == 0\nprint('in a group:', torch.distributed.is_initialized())\n"
    )
    done = _launch(world, tmp_path, processes=2, zero=1, steps=1, worker=(str(script),))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("in a group: False") == 2
