"""Orthogonal matching pursuit against mergekit's: ``python benchmarks/omp.py --model SmolLM2-135M --anchors 20000``.

Anchors and targets are rows of a model's input embeddings (``--model``, a directory), or drawn (``--width``): a quarter
as many latent numbers in random directions, and noise. Each implementation runs in a process of its own. Time is that
of the processor, to which a busy machine matters less, and wall-clock time; extra memory is the peak of the resident
set beyond what it was before, on Linux. Picks are compared with a plain float64 search for the first ``--reference``
targets.

mergekit is used if it is installed or on PYTHONPATH: pip install --no-deps mergekit==0.1.5
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

from machine import measured_on  # noqa: E402

from alignment.initializers.omp import GIB, OrthogonalMatchingPursuit  # noqa: E402

MIB = 2**20
IMPLEMENTATIONS = ("tokenferry", "mergekit")


class Picks(NamedTuple):
    """Atoms [M, k] in the order of the picks, and coefficients [M, k]."""

    indices: Tensor
    weights: Tensor


def matrices(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Anchors [N, D] and targets [M, D], float32."""
    count = options.anchors + options.targets
    if options.model:
        (name, path), *_ = (
            (name, path)
            for path in sorted(options.model.glob("*.safetensors"))
            for name in safe_open(path, "pt").keys()  # noqa: SIM118
            if name.endswith("embed_tokens.weight")
        )
        rows = safe_open(path, "pt").get_tensor(name)[:count].float()
    else:
        generator = torch.Generator().manual_seed(0)
        latent = options.width // 4
        directions = torch.randn(latent, options.width, generator=generator) / latent**0.5
        rows = torch.randn(count, latent, generator=generator) @ directions
        rows += 0.5 * torch.randn(count, options.width, generator=generator)
    return rows[: options.anchors].clone(), rows[options.anchors :].clone()


def mergekit_omp() -> Callable[..., tuple[Tensor, Tensor]] | None:
    """mergekit's function, or None if it is not there. Only its module is loaded, not what mergekit depends on."""
    found = importlib.util.find_spec("mergekit")
    if found is None or not found.submodule_search_locations:
        return None
    (root,) = found.submodule_search_locations
    for name, path in (("mergekit", root), ("mergekit.tokensurgeon", f"{root}/tokensurgeon")):
        package = types.ModuleType(name)
        package.__path__ = [path]
        sys.modules[name] = package
    return importlib.import_module("mergekit.tokensurgeon.omp").batch_omp


def by_tokenferry(anchors: Tensor, options: argparse.Namespace) -> Callable[[Tensor], Picks]:
    solver = OrthogonalMatchingPursuit(anchors, options.k, memory_budget=int(options.memory_gib * GIB))

    def solve(targets: Tensor) -> Picks:
        rows = solver.solve(targets).rows
        return Picks(rows.indices, rows.weights)

    return solve


def by_mergekit(anchors: Tensor, options: argparse.Namespace) -> Callable[[Tensor], Picks]:
    batch_omp = mergekit_omp()

    def solve(targets: Tensor) -> Picks:
        # tokensurgeon's batches.
        found = [batch_omp(part, anchors, options.k) for part in targets.split(512)]
        return Picks(*(torch.cat(tensors) for tensors in zip(*found, strict=True)))

    return solve


def measure(name: str, options: argparse.Namespace) -> None:
    """Run one implementation; leave its figures and picks in ``options.results``."""
    torch.set_num_threads(options.threads)
    anchors, targets = matrices(options)
    if name == "mergekit":
        targets = targets[: options.mergekit_targets]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    processor, wall = time.process_time(), time.perf_counter()
    solve = (by_tokenferry if name == "tokenferry" else by_mergekit)(anchors, options)
    picks = solve(targets)
    figures = {
        "targets": len(targets),
        "processor": time.process_time() - processor,
        "wall": time.perf_counter() - wall,
        "memory": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / MIB,
    }
    (options.results / f"{name}.json").write_text(json.dumps(figures))
    torch.save(tuple(picks), options.results / f"{name}.pt")


def reference(anchors: Tensor, targets: Tensor, k: int) -> Tensor:
    """The picks [M, k] of a plain greedy search in float64, scores rounded to float32, ties to the lowest index."""
    anchors, targets = anchors.double(), targets.double()
    picks = torch.empty(len(targets), 0, dtype=torch.int64)
    residuals = targets
    for _ in range(k):
        scores = (residuals @ anchors.T).abs_().float().scatter_(1, picks, -1.0)
        picks = torch.cat([picks, scores.argmax(dim=1, keepdim=True)], dim=1)
        basis = torch.linalg.qr(anchors[picks].mT).Q
        residuals = targets - (basis @ (basis.mT @ targets[..., None])).squeeze(2)
    return picks


def shared_rows(first: Tensor, second: Tensor) -> str:
    """The share of targets with the same picks in the same order, of those that both have."""
    both = min(len(first), len(second))
    return f"{(first[:both] == second[:both]).all(dim=1).float().mean():.2%} of {both:,}"


def table(options: argparse.Namespace) -> str:
    """Markdown, from what the processes left."""
    anchors, targets = matrices(options)
    exact = reference(anchors, targets[: options.reference], options.k)
    lines = [
        "| | targets | processor time, s | wall, s | processor ms a target | extra memory, MiB | relative residual "
        "| picks as in float64 | picks as tokenferry |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    first = torch.load(options.results / "tokenferry.pt")[0]
    for name in IMPLEMENTATIONS:
        if not (options.results / f"{name}.json").exists():
            continue
        figures = json.loads((options.results / f"{name}.json").read_text())
        indices, weights = torch.load(options.results / f"{name}.pt")
        checked = targets[: min(len(indices), 512)]
        made = torch.einsum("mk,mkd->md", weights[: len(checked)].float(), anchors[indices[: len(checked)]])
        residual = ((checked - made).norm(dim=1) / checked.norm(dim=1)).mean()
        lines.append(
            f"| {name} | {figures['targets']:,} | {figures['processor']:.1f} | {figures['wall']:.1f} "
            f"| {1000 * figures['processor'] / figures['targets']:.2f} | {figures['memory']:,.0f} | {residual:.4f} "
            f"| {shared_rows(indices, exact)} | {shared_rows(indices, first)} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", type=Path, help="directory of a model in safetensors")
    source.add_argument("--width", type=int, help="draw vectors of this width instead")
    parser.add_argument("--anchors", type=int, default=20_000)
    parser.add_argument("--targets", type=int, default=8_192)
    parser.add_argument("--mergekit-targets", type=int, default=1_024, help="mergekit gets the first of these only")
    parser.add_argument("--reference", type=int, default=128, help="targets compared with float64")
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--memory-gib", type=float, default=4.0, help="tokenferry's budget")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=IMPLEMENTATIONS, help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        measure(options.only, options)
        return
    with tempfile.TemporaryDirectory() as results:
        options.results = Path(results)
        for name in IMPLEMENTATIONS:
            if name == "mergekit" and mergekit_omp() is None:
                print("mergekit is not installed: pip install --no-deps mergekit==0.1.5", file=sys.stderr)
                continue
            command = [sys.executable, __file__, *sys.argv[1:], "--only", name, "--results", results]
            subprocess.run(command, check=True)
        rows = table(options)
    what = options.model.name if options.model else f"drawn, width {options.width}"
    asked = f"{options.anchors:,} anchors ({what}), k = {options.k}, budget {options.memory_gib:g} GiB"
    print(f"{asked}; {measured_on(('torch',), threads=options.threads)}\n\n{rows}")


if __name__ == "__main__":
    main()
