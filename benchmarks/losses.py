"""What losses cost, forward and backward, from hidden states on: ``python benchmarks/losses.py --vocab 32768 131072``.

Every case runs in a process of its own, one step a process, the cases in turn for ``--repeat`` rounds. A time is the
median, of processor time on one CPU thread (so that a busy machine matters less) and else of the clock. Extra memory is
the peak during the step beyond inputs and their gradients: of the resident set on the CPU, of PyTorch's allocator on a
GPU. Prints one Markdown table a vocabulary; ratios are to the case named beside them.

TRL's loss runs if TRL is installed or on PYTHONPATH (``pip install --no-deps trl==1.16.0``), Liger's likewise.
"""

from __future__ import annotations

import os

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

from machine import measured_on  # noqa: E402

from losses.alm import AlignedScores, alm_from_token_scores  # noqa: E402
from losses.chunks import shift_labels, shift_scores  # noqa: E402
from losses.predictions import LinearHead  # noqa: E402
from losses.rowwise import rowwise_loss  # noqa: E402
from losses.same_vocab import jsd, kl  # noqa: E402
from losses.scores import TokenScores, token_scores  # noqa: E402
from losses.sft import cross_entropy_loss  # noqa: E402
from losses.uld import uld_loss  # noqa: E402

WINDOW_TOKENS = 512
BOUNDARY_SHARE = 0.6
CHUNK_TOKENS = 3
"""Tokens of two chunks: a chunk of one token, then one of two, and so on."""
MIB = 2**20


@dataclass(frozen=True)
class Inputs:
    """A batch at the input of the output head, B windows of T tokens, and a frozen teacher of the same shapes."""

    hidden: Tensor
    weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    boundary_mask: Tensor
    ids: Tensor
    chunk: Tensor

    @classmethod
    def make(cls, rows: int, width: int, vocab_size: int, dtype: torch.dtype, device: torch.device) -> Inputs:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=dtype).normal_(generator=generator).to(device)

        windows = max(1, rows // WINDOW_TOKENS)
        ids = torch.randint(vocab_size, (windows, rows // windows), generator=generator)
        place = torch.arange(ids.shape[1])
        chunk = (2 * (place // CHUNK_TOKENS) + (place % CHUNK_TOKENS > 0)).expand_as(ids)
        return cls(
            hidden=normal(ids.numel(), width).requires_grad_(),
            weight=normal(vocab_size, width).mul_(width**-0.5).requires_grad_(),
            teacher_hidden=normal(ids.numel(), width),
            teacher_weight=normal(vocab_size, width).mul_(width**-0.5),
            boundary_mask=(torch.rand(vocab_size, generator=generator) < BOUNDARY_SHARE).to(device),
            ids=ids.to(device),
            chunk=chunk.contiguous().to(device),
        )

    @property
    def scored(self) -> Tensor:
        return torch.ones_like(self.ids, dtype=torch.bool)

    @property
    def labels(self) -> Tensor:
        return shift_labels(self.ids, self.scored).flatten()

    @property
    def ends(self) -> Tensor:
        """Last tokens of chunks: bool [B, T]."""
        return self.chunk != functional.pad(self.chunk[:, 1:], (0, 1), value=-1)

    def scores(self, *, boundary: bool) -> TokenScores:
        """Student scores by the fused head, at the tokens' own places: [B, T] each."""
        found = token_scores(
            self.hidden,
            self.weight,
            self.labels,
            boundary_mask=self.boundary_mask if boundary else None,
            boundary_rows=self.ends.flatten() if boundary else None,
        )
        boundary_logp = found.boundary_logp.view(self.ids.shape) if boundary else None
        return TokenScores(shift_scores(found.label_logp.view(self.ids.shape)), boundary_logp)

    def alm(self, scores: TokenScores) -> Tensor:
        """ALM's total against made-up teacher scores."""
        teacher = AlignedScores(
            torch.full_like(scores.label_logp, -2.0),
            torch.full_like(scores.label_logp, -0.5),
            self.scored,
            self.chunk,
        )
        student = AlignedScores(scores.label_logp, scores.boundary_logp, self.scored, self.chunk)
        return alm_from_token_scores(teacher, student, int(self.chunk.max()) + 1).total

    def heads(self) -> tuple[LinearHead, LinearHead]:
        return LinearHead(self.teacher_hidden, self.teacher_weight), LinearHead(self.hidden, self.weight)

    def dense_logits(self) -> tuple[Tensor, Tensor]:
        """All logits of teacher and student: [R, V] in float32."""
        with torch.no_grad():
            teacher = (self.teacher_hidden @ self.teacher_weight.T).float()
        return teacher, (self.hidden @ self.weight.T).float()


def dense_cross_entropy(inputs: Inputs) -> Tensor:
    logits = (inputs.hidden @ inputs.weight.T).float()
    return functional.cross_entropy(logits, inputs.labels, reduction="sum")


def dense_boundary(inputs: Inputs) -> Tensor:
    logp = (inputs.hidden @ inputs.weight.T).float().log_softmax(-1)
    label = logp.gather(1, inputs.labels.clamp(min=0)[:, None]).sum()
    ends = inputs.ends.flatten()
    return label + logp[ends][:, inputs.boundary_mask].logsumexp(-1).sum()


def fused_cross_entropy(inputs: Inputs) -> Tensor:
    return cross_entropy_loss(inputs.scores(boundary=False).label_logp, inputs.scored).total


def fused_boundary(inputs: Inputs) -> Tensor:
    scores = inputs.scores(boundary=True)
    return scores.label_logp.sum() + scores.boundary_logp.nansum()


def alm(inputs: Inputs) -> Tensor:
    return inputs.alm(inputs.scores(boundary=True))


def alm_and_cross_entropy(inputs: Inputs) -> Tensor:
    scores = inputs.scores(boundary=True)
    return inputs.alm(scores) + cross_entropy_loss(scores.label_logp, inputs.scored).total


def dense_divergence(divergence: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Inputs], Tensor]:
    def step(inputs: Inputs) -> Tensor:
        teacher, student = inputs.dense_logits()
        return divergence(teacher.log_softmax(-1), student.log_softmax(-1)).sum()

    return step


def rowwise_divergence(divergence: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Inputs], Tensor]:
    def step(inputs: Inputs) -> Tensor:
        teacher, student = inputs.heads()
        return rowwise_loss(
            lambda rows, logits, _: (divergence(teacher.log_probs(rows), logits[0].log_softmax(-1)), {}), [student]
        ).total

    return step


def rowwise_uld(inputs: Inputs) -> Tensor:
    return uld_loss(*inputs.heads()).total


def trl_uld(inputs: Inputs) -> Tensor:
    """TRL's ULDLoss with its default of sorting everything, on tokens that are the same on both sides."""
    from trl.experimental.gold.gold_trainer import ULDLoss

    config = SimpleNamespace(
        uld_crossentropy_weight=0.0, uld_distillation_weight=1.0, uld_student_temperature=1.0,
        uld_teacher_temperature=1.0, uld_skip_student_eos=False, uld_skip_teacher_eos=False,
        use_extended_uld=False, uld_token_merge_strategy="bayesian",
    )  # fmt: skip
    teacher, student = (logits.view(*inputs.ids.shape, -1) for logits in inputs.dense_logits())
    return ULDLoss(config)(student, teacher, inputs.ids, inputs.ids, inputs.ids, inputs.ids)


def liger_jsd(inputs: Inputs) -> Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.5)
    return loss(inputs.hidden, inputs.weight, inputs.teacher_hidden, inputs.teacher_weight, inputs.labels)


class Case(NamedTuple):
    """One row of the table: a step, the case that it is compared with, and the package that it needs."""

    step: Callable[[Inputs], Tensor]
    reference: str
    package: str | None = None


CASES = {
    "cross-entropy, dense": Case(dense_cross_entropy, "cross-entropy, dense"),
    "cross-entropy, fused": Case(fused_cross_entropy, "cross-entropy, dense"),
    "label and boundary, dense": Case(dense_boundary, "label and boundary, dense"),
    "label and boundary, fused": Case(fused_boundary, "label and boundary, dense"),
    "ALM": Case(alm, "cross-entropy, fused"),
    "ALM and cross-entropy": Case(alm_and_cross_entropy, "cross-entropy, fused"),
    "KL, dense": Case(dense_divergence(kl), "KL, dense"),
    "KL, rowwise": Case(rowwise_divergence(kl), "KL, dense"),
    "JSD, dense": Case(dense_divergence(jsd), "JSD, dense"),
    "JSD, rowwise": Case(rowwise_divergence(jsd), "JSD, dense"),
    "JSD, Liger": Case(liger_jsd, "JSD, dense", "liger_kernel"),
    "ULD, rowwise": Case(rowwise_uld, "ULD, rowwise"),
    "ULD, TRL": Case(trl_uld, "ULD, rowwise", "trl"),
}


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def measure(name: str, options: argparse.Namespace, vocab_size: int) -> dict[str, float]:
    """Run one step of a case: seconds, and bytes beyond inputs and their gradients."""
    torch.set_num_threads(options.threads)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    step = CASES[name].step
    inputs = Inputs.make(options.rows, options.width, vocab_size, dtype, device)
    on_gpu = device.type == "cuda"
    # On a GPU once as it is, for compilation and the choice of kernels; on the CPU it is enough to have run the code.
    warm_up = inputs if on_gpu else Inputs.make(64, options.width, 512, dtype, device)
    step(warm_up).backward()
    gradients = [x.grad for x in (inputs.hidden, inputs.weight) if x.grad is not None]
    for gradient in gradients:
        gradient.zero_()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
        before = resident("VmRSS")
    clock = time.process_time if not on_gpu and options.threads == 1 else time.perf_counter
    start = clock()
    step(inputs).backward()
    if on_gpu:
        torch.cuda.synchronize()
    seconds = clock() - start
    peak = torch.cuda.max_memory_allocated() if on_gpu else resident("VmHWM")
    made = 0 if gradients else sum(x.nbytes for x in (inputs.hidden, inputs.weight))
    return {"seconds": seconds, "extra_bytes": max(0, peak - before - made)}


def run_all(options: argparse.Namespace, vocab_size: int) -> dict[str, dict[str, float]]:
    """Medians of all cases, which run in turn, each in a fresh process."""
    names = [n for n, case in CASES.items() if case.package is None or importlib.util.find_spec(case.package)]
    names = [name for name in names if not options.only or any(part in name for part in options.only)]
    flags = [f"--{name}={getattr(options, name)}" for name in ("device", "dtype", "threads", "rows", "width")]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(options.repeat):
        for name in names:
            command = [sys.executable, __file__, *flags, f"--vocab={vocab_size}", f"--case={name}"]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[name].append(json.loads(done.stdout))
            print(f"{vocab_size:,} {name}: {done.stdout.strip()}", file=sys.stderr)
    return {name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in found.items()}


def table(medians: dict[str, dict[str, float]]) -> str:
    """The medians as Markdown."""
    lines = ["| loss | seconds | extra memory, MiB | compared with | time | memory |", "|---|---|---|---|---|---|"]
    for name, median in medians.items():
        reference = medians.get(CASES[name].reference, median)
        lines.append(
            f"| {name} | {median['seconds']:.2f} | {median['extra_bytes'] / MIB:,.0f} | {CASES[name].reference} "
            f"| {median['seconds'] / reference['seconds']:.2f} "
            f"| {median['extra_bytes'] / max(reference['extra_bytes'], 1):.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--vocab", type=int, nargs="+", default=[32_768, 131_072, 262_144])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="cases whose name contains one of these")
    parser.add_argument("--case", choices=list(CASES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case is not None:
        print(json.dumps(measure(options.case, options, options.vocab[0])))
        return
    print(measured_on(("torch", "trl", "liger-kernel"), device=options.device, threads=options.threads))
    for vocab_size in options.vocab:
        print(f"\n{options.rows:,} rows, width {options.width}, {vocab_size:,} tokens, {options.dtype}\n")
        print(table(run_all(options, vocab_size)))


if __name__ == "__main__":
    main()
