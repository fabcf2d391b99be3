"""``hypernet``: train a network that predicts embedding rows for any tokenizer (Zero-Shot Tokenizer Transfer)."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from stages.artifacts import DocumentsArtifact, HypernetArtifact, ModelArtifact, write_json
from stages.hypernetwork.config import HypernetConfig
from stages.model_loading import refuse_expanded
from stages.stage import Input, StageContext, StageError

if TYPE_CHECKING:
    from stages.hypernetwork.network import Shape
    from stages.hypernetwork.table import TableLayout
    from stages.hypernetwork.training import HypernetTrainer


class Hypernet:
    """The student and text -> a network for the ``hypernet`` method of ``init``. The student itself is not changed."""

    VERSION = 1
    Config = HypernetConfig
    inputs = {
        "student": Input(ModelArtifact, source="student"),
        "documents": Input(DocumentsArtifact, source="train", replaceable=True),
    }
    output = HypernetArtifact

    def run(self, ctx: StageContext) -> None:
        """Write ``hypernet.json``, the network's weights, the training curve and metrics.

        Raises:
            StageError: several processes, a student or documents that this cannot be done with, or heads that do not
                divide the network's width.
            StageInterrupted: asked to stop; a checkpoint is saved.
        """
        from stages.hypernetwork import network
        from stages.training.monitoring import curve

        if ctx.world_size > 1:
            raise StageError("hypernet runs in one process; give it `launcher: local` under resources")
        trainer, facts = _prepare(ctx)
        trainer.run()
        metrics = trainer.held_out_losses()
        manifest = {"student": facts, "options": ctx.config.model_dump(mode="json"), "metrics": metrics}
        network.save(trainer.network, ctx.out, manifest)
        write_json(ctx.out / "metrics.json", metrics)
        shutil.copy2(ctx.work / curve.NAME, ctx.out / curve.NAME)
        before, after = metrics.values()
        ctx.progress(
            f"hypernet: with tokenizers not seen before, loss {after:.4f} nats a token; piece_mean {before:.4f}"
        )


def _prepare(ctx: StageContext) -> tuple[HypernetTrainer, dict[str, object]]:
    """The trainer, and what the network may be used for."""
    import torch
    from transformers import AutoTokenizer

    from alignment.byte_models import byte_model
    from alignment.byte_view import ByteView
    from alignment.segmentation import ByteSegmenter
    from alignment.token_codecs import UnsupportedTokenizer
    from alignment.token_index import TokenIndex
    from stages.hypernetwork.losses import FrozenModel
    from stages.hypernetwork.network import Hypernetwork
    from stages.hypernetwork.samples import Sampler
    from stages.hypernetwork.table import StudentTable
    from stages.hypernetwork.training import HypernetTrainer
    from stages.output_head import OutputHead
    from stages.training.data.documents import TrainingDocuments
    from stages.training.models import DTYPES, load_model, pick_device

    config, student = ctx.config, ctx.input("student")
    refuse_expanded(student)
    tokenizer = AutoTokenizer.from_pretrained(student)
    try:
        view = ByteView.from_tokenizer(tokenizer)
    except UnsupportedTokenizer as error:
        raise StageError(str(error)) from None
    segmenter = ByteSegmenter(TokenIndex(view), byte_model(tokenizer, view))
    sampler = Sampler(TrainingDocuments(ctx.input("documents"), ctx.cache, ctx.progress), view, segmenter, config)
    table = StudentTable.of(student, view.vocab_size)
    shape = _shape(config, table.layout)
    rows = table.rows()
    network = Hypernetwork.for_table(shape, rows, config.seed)
    device = pick_device(ctx.local_rank)
    model = load_model(student, DTYPES[config.dtype], device)
    head = OutputHead.of(model, view.vocab_size)
    head.check(model, torch.tensor([[*view.prefix_ids, *range(min(view.vocab_size, 8))]], device=device))
    trainer = HypernetTrainer(
        ctx=ctx,
        config=config,
        network=network.to(device),
        table=rows.to(device),
        layout=table.layout,
        prefix_ids=view.prefix_ids,
        model=FrozenModel(model, head),
        sampler=sampler,
        device=device,
    )
    return trainer, table.layout.facts(view.fingerprint)


def _shape(config: HypernetConfig, layout: TableLayout) -> Shape:
    from stages.hypernetwork.network import Shape

    hidden = config.hidden_size or layout.width
    if hidden % config.heads:
        raise StageError(
            f"the network's width ({hidden}) is not divisible by heads ({config.heads}); set heads or hidden_size"
        )
    return Shape(
        layout.columns, hidden, config.layers, config.heads, config.expansion, config.max_pieces, config.priors
    )
