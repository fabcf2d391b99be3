"""What a training step costs, and where: ``python benchmarks/training.py --teacher DIR --student DIR``.

Every case trains for a few steps in a process of its own (or two, with ZeRO) and prints medians of what the training
itself measures (``stages/training/monitoring/telemetry.py``). On a CPU times are processor time of one thread, so that
a busy machine matters less; on a GPU they are the device's.

Models are directories (a ModelArtifact, with its tokenizer), or without them random ones (``random_pair.py``). With
``--scale`` these are a teacher of the size of Llama 3.2 1B and a student of the size of Gemma 3 1B, with vocabularies
of 128,256 and 262,144 tokens, for a GPU of 80 GB; ``--layers`` and ``--width`` make them smaller.

``--check`` runs every case that needs one process once, with tiny models, in this process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "benchmarks")]

from machine import machine, versions  # noqa: E402
from random_pair import GEMMA_1B, LLAMA_1B, SMALL_STUDENT, SMALL_TEACHER, write_model  # noqa: E402

from stages.distill import Distill, DistillConfig  # noqa: E402
from stages.score import Score  # noqa: E402
from stages.scoring.config import ScoreConfig  # noqa: E402
from stages.stage import StageContext  # noqa: E402
from stages.training.data.aligner import DocumentAligner  # noqa: E402
from stages.training.data.windows import Document  # noqa: E402
from stages.training.monitoring.timeline import PHASES, Timeline  # noqa: E402

WARM_UP = 2
"""Steps before those that are measured."""
ALM = [{"alm": {"weight": 5.0}}]


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        losses: of the recipe.
        reference: the case whose step it is compared with.
        cached: the teacher's scores come from a ``score`` stage.
        short: documents of very different lengths, as conversations are, instead of long ones.
        options: further options of ``distill``.
        processes, zero: as under ``resources``.
    """

    losses: list[Any]
    reference: str
    cached: bool = False
    short: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    processes: int = 1
    zero: int = 0


CASES = {
    "cross-entropy": Case(["cross_entropy"], "cross-entropy"),
    "ALM": Case(ALM, "cross-entropy"),
    "GOLD": Case(["gold"], "cross-entropy"),
    "ULD": Case(["uld"], "cross-entropy"),
    "ALM, cached teacher": Case(ALM, "cross-entropy", cached=True),
    "ALM, no data worker": Case(ALM, "ALM", options={"data_workers": 0}),
    "ALM, short texts": Case(ALM, "ALM, short texts", short=True),
    "ALM, short texts, packed": Case(ALM, "ALM, short texts", short=True, options={"packing": True}),
    "ALM, 2 processes": Case(ALM, "ALM, 2 processes", processes=2),
    "ALM, 2 processes, ZeRO 2": Case(ALM, "ALM, 2 processes", processes=2, zero=2),
    "ALM, 2 processes, ZeRO 3": Case(ALM, "ALM, 2 processes", processes=2, zero=3),
}


class _Enough(BaseException):
    """Ends a training after its last measured step, before anything is saved."""


def run_job(job: dict[str, Any]) -> None:
    """Run one stage of a job in this process; a training only as far as its last measured step."""
    torch.set_num_threads(job["threads"])
    if job["clock"] == "processor":
        Timeline.clock = staticmethod(time.process_time)
    stage, config_class = {"distill": (Distill, DistillConfig), "score": (Score, ScoreConfig)}[job["stage"]]
    last = f"step {job['measured'] + WARM_UP:,}/"

    def progress(line: str) -> None:
        if line.startswith(last):
            raise _Enough

    context = StageContext(
        config=config_class(**job["config"]),
        inputs={name: {name: Path(path)} for name, path in job["inputs"].items()},
        work=Path(job["root"]) / "work",
        out=Path(job["root"]) / "out",
        progress=progress,
        resources=job["resources"],
        rank=int(os.environ.get("RANK", "0")),
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
    )
    try:
        stage().run(context)
    except _Enough:
        return


def start(job: dict[str, Any], in_this_process: bool) -> None:
    """Run a job, in processes of its own unless told otherwise."""
    root = Path(job["root"])
    for name in ("work", "out"):
        (root / name).mkdir(parents=True, exist_ok=True)
    if in_this_process:
        run_job(job)
        return
    (root / "job.json").write_text(json.dumps(job), encoding="utf-8")
    command = [sys.executable]
    if job["processes"] > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={job['processes']}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(job["threads"])}
    if job["device"] == "cpu":
        environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    with (root / "log.txt").open("w", encoding="utf-8") as log:
        done = subprocess.run(
            [*command, __file__, "--job", str(root / "job.json")], env=environment, stdout=log, stderr=log, check=False
        )
    if done.returncode != 0:
        raise SystemExit(f"{root.name} failed:\n{(root / 'log.txt').read_text(encoding='utf-8')[-4000:]}")


def medians(root: Path) -> dict[str, float]:
    """What a training measured of its steps after the warm-up."""
    lines = (root / "work" / "training.jsonl").read_text(encoding="utf-8").splitlines()
    points = [point for line in lines if (point := json.loads(line))["step"] > WARM_UP]
    found = {name: statistics.median(point[name] for point in points if name in point) for name in points[-1]}
    found["step"] = sum(found[f"seconds.{phase}"] for phase in PHASES)
    tokens = statistics.median(point["student_tokens_per_second"] * point["seconds.step"] for point in points)
    teraflops = statistics.median(point["teraflops_per_second"] * point["seconds.step"] for point in points)
    return found | {"tokens_per_second": tokens / found["step"], "teraflops_per_second": teraflops / found["step"]}


def measure(name: str, world: dict[str, Path], options: argparse.Namespace) -> dict[str, float]:
    """Run one case, and before it the ``score`` stage that it needs."""
    case, root = CASES[name], world["runs"] / name.replace(" ", "-").replace(",", "")
    documents = world["short" if case.short else "documents"]
    teacher = _scores(world, documents, options) if case.cached else world["teacher"]
    config = {
        "losses": case.losses, "steps": WARM_UP + options.steps + 1, "log_every": 1, "batch_windows": options.windows,
        "micro_batch_windows": options.micro_windows // case.processes, "window_tokens": options.window_tokens,
        "dtype": options.dtype, "learning_rate": 1e-5, "checkpoint_every": 10**9, "max_rollbacks": 0,
        "device_tflops": options.device_tflops, **case.options,
    }  # fmt: skip
    inputs = {"teacher": teacher, "student": world["student"], "documents": documents}
    start(
        _job("distill", root, config, inputs, options, case.processes, case.zero), options.check and case.processes == 1
    )
    return medians(root)


def _scores(world: dict[str, Path], documents: Path, options: argparse.Namespace) -> Path:
    root = world["runs"] / "score"
    if not (root / "out").exists():
        # In windows of the training's own length, so that a teacher scores no more than it would there.
        config = {"dtype": options.dtype, "window_tokens": options.window_tokens}
        inputs = {"teacher": world["teacher"], "documents": documents}
        start(_job("score", root, config, inputs, options), options.check)
    return root / "out"


def _job(
    stage: str,
    root: Path,
    config: dict[str, Any],
    inputs: dict[str, Path],
    options: argparse.Namespace,
    processes: int = 1,
    zero: int = 0,
) -> dict[str, Any]:
    return {
        "stage": stage,
        "root": str(root),
        "config": config,
        "inputs": {name: str(path) for name, path in inputs.items()},
        "resources": {"zero": {"student": zero}},
        "processes": processes,
        "threads": options.threads,
        "measured": options.steps,
        "device": options.device,
        "clock": "processor" if options.device == "cpu" and options.threads == 1 else "wall",
    }


def make_world(options: argparse.Namespace, directory: Path) -> dict[str, Path]:
    """Documents of two kinds, and the models where none are given."""
    lines = [line for path in options.text for line in path.read_text(encoding="utf-8").splitlines()]
    texts = [json.loads(line)["text"] for line in lines]
    if options.check:
        texts = [text[:3000] for text in texts[:4]]
    pieces, lengths = [], (60, 900, 150, 400, 90, 250)
    for text in texts:
        start_at = 0
        while start_at < len(text):
            length = lengths[len(pieces) % len(lengths)]
            pieces.append(text[start_at : start_at + length])
            start_at += length
    world = {"runs": directory / "runs"}
    for name, documents in (("documents", texts), ("short", pieces)):
        world[name] = directory / name
        world[name].mkdir(parents=True)
        records = [{"id": f"{name}/{n}", "domain": name, "weight": 1.0, "text": t} for n, t in enumerate(documents)]
        (world[name] / "documents.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        (world[name] / "manifest.json").write_text("{}")
    shapes = (LLAMA_1B, GEMMA_1B) if options.scale else (SMALL_TEACHER, SMALL_STUDENT)
    if options.check:
        shapes = tuple(replace(shape, vocab_size=shape.vocab_size // 100) for shape in shapes)
    for seed, (side, shape) in enumerate(zip(("teacher", "student"), shapes, strict=True)):
        given = getattr(options, side)
        shape = shape.scaled(options.layers, options.width)
        world[side] = given or write_model(shape, texts, options.window_tokens, directory / side, seed)
    return world


def cutting_rate(world: dict[str, Path], window_tokens: int) -> float:
    """Student tokens that one process tokenises on both sides, aligns and cuts into windows in a second of its own."""
    aligner = DocumentAligner(world["teacher"], world["student"], window_tokens)
    records = [json.loads(line) for line in (world["documents"] / "documents.jsonl").read_text().splitlines()]
    documents = [Document(record["id"], record["text"], 1.0) for record in records]
    aligner(documents[0], 0, 0)  # loads the tokenizers
    start = time.process_time()
    windows = [window for number, document in enumerate(documents) for window in aligner(document, number, 0)]
    return sum(len(window.student.ids) for window in windows) / (time.process_time() - start)


def table(found: dict[str, dict[str, float]]) -> str:
    """The medians as Markdown."""
    titles = ["case", "s a step", "compared with", "ratio", *PHASES, "waits for data", "tok/s", "TFLOP/s", "MFU", "GiB"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, values in found.items():
        reference = CASES[name].reference
        ratio = f"{values['step'] / found[reference]['step']:.2f}" if reference in found else ""
        cells = [name, f"{values['step']:.3f}", reference, ratio]
        cells += [f"{values[f'seconds.{phase}']:.3f}" for phase in PHASES]
        cells += [f"{values['data_wait_share']:.1%}", f"{values['tokens_per_second']:,.0f}"]
        cells += [f"{values['teraflops_per_second']:.4g}", f"{values['mfu']:.1%}" if "mfu" in values else ""]
        lines.append(f"| {' | '.join([*cells, format(values['peak_memory_mib'] / 1024, '.2f')])} |")
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--teacher", type=Path, help="model directory; default: random weights")
    parser.add_argument("--student", type=Path, help="model directory; default: random weights")
    parser.add_argument("--scale", action="store_true", help="random models of 1B parameters with large vocabularies")
    parser.add_argument("--layers", type=int, help="of the random models")
    parser.add_argument("--width", type=int, help="of the random models")
    default_text = sorted((REPOSITORY / "recipes" / "data").glob("train-*.jsonl"))
    parser.add_argument("--text", type=Path, nargs="+", default=default_text, help="JSON lines with a text each")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), metavar="CASE", help=f"of: {'; '.join(CASES)}")
    parser.add_argument("--steps", type=int, default=10, help="measured, after the warm-up")
    parser.add_argument("--windows", type=int, default=8, help="in a step")
    parser.add_argument("--micro-windows", type=int, default=4, help="in a forward pass, over all processes")
    parser.add_argument("--window-tokens", type=int, default=256)
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--device-tflops", type=float, help="of a device whose name is not known")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="write everything that was measured here, as JSON")
    parser.add_argument("--check", action="store_true", help="tiny models, one step, nothing worth reporting")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.check:
        options.layers, options.width, options.steps, options.window_tokens = 1, 64, 1, 64
    one_process = [name for name, case in CASES.items() if case.processes == 1]
    options.cases = options.cases or (one_process if options.check or options.device == "cuda" else list(CASES))
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.job is not None:
        run_job(json.loads(options.job.read_text(encoding="utf-8")))
        return
    with tempfile.TemporaryDirectory() as directory:
        world = make_world(options, Path(directory))
        rate = cutting_rate(world, options.window_tokens)
        found: dict[str, dict[str, float]] = {}
        for name in options.cases:
            found[name] = measure(name, world, options)
            print(f"{name}: {found[name]['step']:.3f} s", file=sys.stderr)
    about = {
        "machine": machine(options.device),
        "python": platform.python_version(),
        **versions(("torch", "transformers", "deepspeed")),
        "threads": options.threads,
        "step": f"{options.windows} windows of at most {options.window_tokens} tokens, {options.dtype}",
        "tokens a second that one process aligns": f"{rate:,.0f}",
    }
    if options.output is not None:
        options.output.write_text(json.dumps({"about": about, "cases": found}, indent=1), encoding="utf-8")
    print("; ".join(f"{name} {value}" for name, value in about.items()), end="\n\n")
    print(table(found))


if __name__ == "__main__":
    main()
