"""A small world in which every objective can be run: two real tokenizers, real windows, and made-up hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from alignment.byte_view import ByteView
from alignment.chat import special_roles_and_turns
from losses.chunks import shift_scores
from losses.output import LossOutput
from losses.predictions import LinearHead, TopKPredictions
from losses.scores import token_scores
from stages.objectives import LossEntry
from stages.training.data.aligner import DocumentAligner
from stages.training.data.batch import Batch, SideBatch, collate
from stages.training.data.windows import Document, Window
from stages.training.models import Reads, Signals
from stages.training.objectives import ModelFacts, Objective, Pair, build_terms

WIDTHS = {"teacher": 6, "student": 5}
LAYERS = 3
TEXTS = (
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on while the fox runs far away.",
    "def add(left, right):\n    return left + right\n\nprint(add(12, 345))\n",
    "Ein Häuschen steht im Wald, naïve façade, 東京 and Москва, 🙂 at 3.14159.",
)


@dataclass(frozen=True)
class World:
    """A pair of models as objectives see it, and windows of text in both tokenizations."""

    pair: Pair
    windows: list[Window]
    weights: dict[str, Tensor]

    def build(self, name: str, **options: object) -> Objective:
        """An objective under its name in a recipe."""
        (term,) = build_terms([LossEntry.model_validate({name: options})], self.pair)
        if term.objective.auxiliary is not None:
            term.objective.auxiliary.to(next(iter(self.weights.values())).dtype)
        return term.objective

    def batch(self, windows: Sequence[Window] | None = None) -> Batch:
        """Windows in one micro-batch; all of them by default."""
        return collate(self.windows if windows is None else windows)


def make_world(
    teacher: Path,
    student: Path,
    *,
    dtype: torch.dtype = torch.float64,
    window_tokens: int = 40,
    width: int | None = None,
) -> World:
    """The world of two tokenizer directories; ``width`` gives both models one width."""
    aligner = DocumentAligner(teacher, student, window_tokens)
    windows = [w for n, text in enumerate(TEXTS) for w in aligner(Document(f"d/{n}", text, 1.0), n, 0)]
    facts, weights = {}, {}
    for side, directory in (("teacher", teacher), ("student", student)):
        view = ByteView.from_tokenizer(directory)
        size = width or WIDTHS[side]
        generator = torch.Generator().manual_seed(len(side) + view.vocab_size)
        # Two rows more than tokens: padding, which no objective may give a probability.
        weights[side] = torch.randn(view.vocab_size + 2, size, generator=generator, dtype=torch.float64).to(dtype)
        roles = special_roles_and_turns(AutoTokenizer.from_pretrained(directory))
        facts[side] = ModelFacts(directory, view, roles, size, LAYERS, weights[side])
    return World(Pair(facts["teacher"], facts["student"], cache=None, seed=7), windows, weights)


def hidden_states(world: World, batch: Batch, side: str, *, seed: int = 0) -> Tensor:
    """Hidden states [B, T, D] that depend on the position's place in the text and not on padding or batch."""
    tokens = getattr(batch, side)
    facts = getattr(world.pair, side)
    table = torch.randn(
        facts.view.vocab_size, facts.width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return (table[tokens.ids] + torch.sin(tokens.positions.double())[..., None]).to(world.weights[side].dtype)


def signals(
    world: World,
    batch: Batch,
    side: str,
    reads: Reads,
    hidden: Tensor,
    *,
    weight: Tensor | None = None,
    top_k: int | None = None,
) -> Signals:
    """What the engine would tell objectives about made-up hidden states [B, T, D]; see ``stages.training.models``."""
    tokens: SideBatch = getattr(batch, side)
    facts = getattr(world.pair, side)
    weight = world.weights[side] if weight is None else weight
    head = LinearHead(hidden.flatten(0, 1), weight, size=facts.view.vocab_size)
    label = boundary = None
    if reads.label or reads.boundary:
        ends = (tokens.chunk >= 0) & (tokens.chunk != nn.functional.pad(tokens.chunk[:, 1:], (0, 1), value=-1))
        scores = token_scores(
            head.hidden,
            weight,
            tokens.labels.flatten(),
            boundary_mask=torch.from_numpy(facts.view.boundary_mask()) if reads.boundary else None,
            boundary_rows=ends.flatten() if reads.boundary else None,
            vocab_size=facts.view.vocab_size,
        )
        label = shift_scores(scores.label_logp.view(tokens.ids.shape))
        boundary = None if scores.boundary_logp is None else scores.boundary_logp.view(tokens.ids.shape)
    layers = {layer: hidden if layer in (-1, LAYERS - 1) else hidden * (layer + 2) for layer in reads.layers}
    predictions = head
    if top_k is not None:
        best = head.log_probs(slice(None)).topk(top_k, dim=1)
        predictions = TopKPredictions(best.indices, best.values, head.vocab_size)
    return Signals(label, boundary, hidden, layers, head, predictions)


def evaluate(
    world: World,
    objective: Objective,
    batch: Batch,
    *,
    teacher_hidden: Tensor | None = None,
    student_hidden: Tensor | None = None,
    student_weight: Tensor | None = None,
    statistics: Tensor | None = None,
    top_k: int | None = None,
) -> LossOutput:
    """Run an objective as the engine does: teacher, statistics, student."""
    teacher_hidden = hidden_states(world, batch, "teacher", seed=1) if teacher_hidden is None else teacher_hidden
    student_hidden = hidden_states(world, batch, "student", seed=2) if student_hidden is None else student_hidden
    teacher = signals(world, batch, "teacher", objective.teacher_reads, teacher_hidden.detach(), top_k=top_k)
    student = signals(world, batch, "student", objective.student_reads, student_hidden, weight=student_weight)
    statistics = objective.statistics(batch, teacher) if statistics is None else statistics
    return objective.loss(batch, teacher, student, statistics)


def padded(side: SideBatch, extra: int) -> SideBatch:
    """The side with padding on the right."""
    fill = {"chunk": -1, "labels": -100}
    tensors = {field.name: getattr(side, field.name) for field in fields(side)}
    return replace(
        side,
        **{
            name: nn.functional.pad(each, (0, extra), value=fill.get(name, 0))
            for name, each in tensors.items()
            if isinstance(each, Tensor)
        },
    )


def without_scores(batch: Batch) -> Batch:
    """The batch with nothing to learn from: no token in a chunk."""
    return replace(
        batch,
        **{
            side: replace(
                getattr(batch, side),
                chunk=torch.full_like(getattr(batch, side).chunk, -1),
                scored=torch.zeros_like(getattr(batch, side).scored),
                labels=torch.full_like(getattr(batch, side).labels, -100),
            )
            for side in ("teacher", "student")
        },
    )
