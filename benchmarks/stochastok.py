"""What splitting tokens at random costs, and whether it teaches a model the letters of its tokens.

    python benchmarks/stochastok.py cost TOKENIZER... --texts recipes/data/train-*.jsonl
    python benchmarks/stochastok.py experiment --seeds 1 2 3 --runs runs

``cost`` prints, for each tokenizer, how long its split table takes, beside an estimate for the table made by looking
every half up in a list; how fast text is split; and how much it grows. ``experiment`` runs ``recipes/stochastok.yaml``
once for each seed with a small model of random weights, trained from nothing, in place of the recipe's, and prints
what the arms have learned: mean and 95 % interval over the seeds, differences to the control paired by seed.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from random_pair import Shape, write_model
from scipy.stats import t as students_t
from split_speed import split_speed

sys.path.insert(0, str(Path(__file__).parents[1]))

from alignment.byte_view import ByteView
from alignment.splits import SplitTable
from stages.training.random import generator

REPOSITORY = Path(__file__).parents[1]
RECIPE = REPOSITORY / "recipes" / "stochastok.yaml"
DATA = REPOSITORY / "recipes" / "data"
PROPORTIONS = (0.01, 0.02, 0.05, 0.1, 1.0)
LENGTHS = (25_000, 50_000, 100_000, 200_000)
LOOKED_UP = 20
"""Tokens whose halves are looked up in a list, to estimate what all would take."""

MODEL = Shape(4_000, layers=3, width=64, feed_forward=192, heads=2, key_value_heads=2, head_width=32)
BASE_STEPS = 150
ARMS = ("deterministic", "stochastok", "bpe_dropout")
CONTROL = "deterministic"
DROPOUT = {"proportion": 0.1, "method": "bpe_dropout"}
"""The usual probability: at 0.1 text grows by a quarter already."""


def naive_table_seconds(view: ByteView, seed: int = 0) -> float:
    """Estimated seconds for the table as the paper's code makes it: every half sought in a list of all tokens."""
    tokens = [found for token in range(view.vocab_size) if (found := view.token_bytes(token))]
    sample = random.Random(seed).sample(tokens, LOOKED_UP)
    started = time.process_time()
    for token in sample:
        for cut in range(1, len(token)):
            _ = token[:cut] in tokens and token[cut:] in tokens
    return (time.process_time() - started) * len(tokens) / len(sample)


def cost(tokenizers: Sequence[Path], texts: Sequence[str]) -> None:
    """Print the tables of cost."""
    print(
        "| tokenizer | tokens | splits | table, s | by a list, s | " + " | ".join(f"p = {p}" for p in PROPORTIONS), "|"
    )
    print("|---" * (5 + len(PROPORTIONS)) + "|")
    speeds = []
    for directory in tokenizers:
        view = ByteView.from_tokenizer(directory)
        started = time.process_time()
        table = SplitTable.from_view(view)
        seconds = time.process_time() - started
        documents = [encoding.ids for encoding in view.encode_batch(texts, exact=False)]
        growth = []
        for proportion in PROPORTIONS:
            rngs = [generator(0, 0, number) for number in range(len(documents))]
            after = sum(len(each.ids) for each in table.expand_batch(documents, proportion, rngs=rngs))
            growth.append(after / sum(map(len, documents)))
        cells = (directory.name, f"{view.vocab_size:,}", f"{len(table.left):,}", f"{seconds:.2f}")
        naive = f"{naive_table_seconds(view):,.0f}"
        print(f"| {' | '.join((*cells, naive, *(f'{factor:.4f}' for factor in growth)))} |", flush=True)
        ids = np.resize(np.concatenate(documents), max(LENGTHS))
        rows = [split_speed(table, ids[:length], length, 0.1, "steps") for length in LENGTHS]
        speeds.append((directory.name, [row.million_a_second for row in rows]))
    print("\nMillion tokens a second, p = 0.1, one document of so many tokens\n")
    print(
        "| tokenizer | " + " | ".join(f"{length:,}" for length in LENGTHS) + " |\n" + "|---" * (1 + len(LENGTHS)) + "|"
    )
    for name, speed in speeds:
        print(f"| {name} | " + " | ".join(f"{each:.1f}" for each in speed) + " |")


def run_seed(seed: int, runs: Path, arm_steps: int, tuned_steps: int, proportion: float) -> dict:
    """Run the recipe on a small model and return the evaluation's report."""
    texts = [
        json.loads(line)["text"]
        for domain in ("speeches", "novel")
        for line in (DATA / f"train-{domain}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    model = runs / f"stochastok-model-{seed}"
    if not (model / "tokenizer.json").exists():
        write_model(MODEL, texts, 512, model, seed)
    name = f"stochastok-seed-{seed}-{arm_steps}-{tuned_steps}-{round(1000 * proportion)}"
    settings: dict[str, object] = {
        "name": name,
        "seed": seed,
        "models.teacher.model": model.resolve(),
        "stages.evaluate.max_documents": 100,
        "stages.base": json.dumps(_training(["init"], BASE_STEPS) | {"schedule": "constant"}),
    }
    splits = {CONTROL: {}, "stochastok": {"proportion": proportion}, "bpe_dropout": DROPOUT}
    for arm in ARMS:
        settings[f"stages.{arm}"] = json.dumps(_training(["base"], arm_steps) | splits[arm])
        settings[f"stages.spelling_{arm}"] = json.dumps(
            _training([arm, "spelling"], tuned_steps) | {"batch_windows": 32}
        )
    command = [sys.executable, "-m", "pipeline", "run", str(RECIPE), "--runs", str(runs)]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    subprocess.run(command, check=True, stdout=sys.stderr, cwd=REPOSITORY)
    return json.loads((runs / name / "stages" / "evaluate" / "out" / "report.json").read_text(encoding="utf-8"))


def _training(needs: Sequence[str], steps: int) -> dict[str, object]:
    return {
        "uses": "stochastok", "needs": list(needs), "proportion": 0, "steps": steps, "batch_windows": 16,
        "window_tokens": 128, "learning_rate": 2e-3, "warmup_steps": 10, "dtype": "fp32", "log_every": 20,
    }  # fmt: skip


def measures(report: dict, arm: str) -> dict[str, float]:
    """What one arm reached: bits per byte before it learned to spell, and the answers of the model that did."""
    sections = {section["name"]: section for section in report["sections"]}
    domains = sections["retention"]["data"]["models"][arm]["domains"]
    tables = {table["title"].rpartition(": ")[2]: table["rows"] for table in sections["cute"]["tables"]}
    tuned = f"spelling_{arm}"
    by_material = tables["accuracy per byte by material"][tuned]
    everything = next(rows for title, rows in tables.items() if title.startswith("all "))[tuned]
    found = {f"bits per byte, {name}": domain["bits_per_byte"] for name, domain in domains.items()}
    found |= {f"{material} %": cell["value"] for material, cell in by_material.items()}
    return found | {"right answer, bits/byte": everything["right answer"]["value"]}


def interval(values: Sequence[float]) -> str:
    """Mean and half width of its 95 % interval (Student's t)."""
    mean = f"{statistics.mean(values):.3f}"
    if len(values) < 2:
        return mean
    half = students_t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean} ± {half:.3f}"


def table(reports: Sequence[dict]) -> str:
    """The arms by measures, and what each differs by from the control of the same seed."""
    found = {arm: [measures(report, arm) for report in reports] for arm in ARMS}
    names = list(found[CONTROL][0])
    lines = ["| arm | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    for arm, rows in found.items():
        lines.append(f"| {arm} | " + " | ".join(interval([row[name] for row in rows]) for name in names) + " |")
        if arm != CONTROL:
            pairs = list(zip(rows, found[CONTROL], strict=True))
            cells = [interval([own[name] - other[name] for own, other in pairs]) for name in names]
            lines.append("| − control | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    asked = commands.add_parser("cost")
    asked.add_argument("tokenizers", type=Path, nargs="+")
    asked.add_argument("--texts", type=Path, nargs="+", required=True, help="JSONL files with a field text")
    trial = commands.add_parser("experiment")
    trial.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    trial.add_argument("--runs", type=Path, default=Path("runs"))
    trial.add_argument("--arm-steps", type=int, default=300, help="of the continued training, 2,048 tokens each")
    trial.add_argument("--spelling-steps", type=int, default=200, help="of 32 words each")
    trial.add_argument("--proportion", type=float, default=0.5)
    options = parser.parse_args()
    if options.command == "cost":
        texts = [json.loads(line)["text"] for path in options.texts for line in path.read_text().splitlines()]
        cost(options.tokenizers, texts)
        return
    budget = options.arm_steps, options.spelling_steps, options.proportion
    print(table([run_seed(seed, options.runs, *budget) for seed in options.seeds]))


if __name__ == "__main__":
    main()
