"""How much of the quickstart's table is luck: ``python benchmarks/quickstart_seeds.py --seeds 17 18 19``.

Runs the quickstart once for each seed (whatever is already in ``--runs`` is not run again; models, alignment and
initialisation are shared) and prints mean and standard deviation of each row over the seeds, as Markdown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from machine import measured_on

RECIPE = Path(__file__).parents[1] / "recipes" / "quickstart.yaml"
MEASURES = {
    "bits_per_byte": "bits per byte",
    "agreement_nats": "nats a chunk to the teacher",
    "top1": "top-1 agreement",
}


def run_seed(seed: int, runs: Path) -> dict[str, dict]:
    """Run one seed and return what its report has of the models' retention."""
    name = f"quickstart-seed-{seed}"
    command = [sys.executable, "-m", "pipeline", "run", str(RECIPE), "--runs", str(runs)]
    subprocess.run([*command, "--set", f"seed={seed}", "--set", f"name={name}"], check=True, stdout=sys.stderr)
    report = runs / name / "stages" / "evaluate" / "out" / "report.json"
    sections = json.loads(report.read_text(encoding="utf-8"))["sections"]
    return next(section["data"]["models"] for section in sections if section["name"] == "retention")


def table(reports: list[dict[str, dict]], measure: str) -> str:
    """One Markdown table: models by domains, mean ± standard deviation over the seeds."""
    domains = list(reports[0]["teacher"]["domains"])
    lines = ["| model | " + " | ".join(domains) + " |", "|---" * (len(domains) + 1) + "|"]
    for model in reports[0]:
        cells = []
        for domain in domains:
            values = [report[model]["domains"][domain][measure] for report in reports]
            spread = f" ± {statistics.stdev(values):.3f}" if len(set(values)) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    reports = [run_seed(seed, arguments.runs) for seed in arguments.seeds]
    print(f"{len(reports)} seeds; {measured_on(('torch', 'transformers'))}")
    for measure, title in MEASURES.items():
        print(f"\n{title}\n\n{table(reports, measure)}")


if __name__ == "__main__":
    main()
