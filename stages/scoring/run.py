"""Score all documents with a teacher, shard by shard, all processes sharing the work."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

from alignment.byte_view import ByteView
from stages.artifacts import read_json, write_json
from stages.digests import content_digest
from stages.scoring.columns import Layout, open_columns, score_passes
from stages.scoring.config import ScoreConfig
from stages.scoring.manifest import TOKENIZER, Manifest, Teacher
from stages.scoring.store import ShardWriter, finished, publish
from stages.scoring.teacher_text import TeacherReader, TeacherText, batches, passes_of
from stages.stage import StageContext, StageError, StageInterrupted
from stages.training.data.documents import TrainingDocuments
from stages.training.data.windows import Document
from stages.training.models import Reads, ScoringModel, pick_device
from stages.training.teachers.teacher_loading import check_teacher_dtype, load_teacher

SECONDS_BETWEEN_PROGRESS = 10.0
SECONDS_BETWEEN_LOOKS = 0.5
"""How often the first process looks whether the others have finished their shards."""


@dataclass(frozen=True)
class Work:
    """One shard to be scored: documents ``first`` to ``stop``, and the bytes of their texts."""

    name: str
    first: int
    stop: int
    bytes: int


def score_documents(ctx: StageContext) -> None:
    """Write the scores of ``ctx.input("documents")`` by ``ctx.input("teacher")`` into ``ctx.out``.

    Raises:
        StageError: the teacher cannot be scored with, a document cannot be read, or the disk is too small.
        StageInterrupted: asked to stop; finished shards are kept.
    """
    config: ScoreConfig = ctx.config
    check_teacher_dtype(config.dtype)
    documents = TrainingDocuments(ctx.input("documents"), ctx.cache, ctx.progress)
    work = plan_shards(documents, config.shard_bytes)
    root = _shard_directory(ctx, work)
    mine = work[ctx.rank :: ctx.world_size]
    todo = [each for each in mine if finished(root, each.name) is None]
    if len(todo) < len(mine):
        ctx.progress(f"{len(mine) - len(todo):,} of this process's {len(mine):,} shards were finished before")
    reader = _reader(ctx)
    model, layout = _load_teacher(ctx, reader.view)
    progress = _Progress(ctx, sum(each.bytes for each in todo))
    for number, each in enumerate(todo):
        texts = [reader.read(documents[document]) for document in range(each.first, each.stop)]
        if number == 0:
            left = sum(shard.bytes for shard in work if finished(root, shard.name) is None)
            _check_disk(ctx, layout, texts, left, each.bytes)
        _score_shard(ctx, model, layout, root, each, texts)
        progress.add(each.bytes, sum(len(text.ids) for text in texts))
    if ctx.rank == 0:
        _wait_for_all(ctx, root, work)
        manifest = _publish(ctx, root, work, reader, model, layout)
        entries = sum(shard.entries for shard in manifest.shards)
        ctx.progress(f"{len(documents):,} documents, {entries:,} tokens")


def plan_shards(documents: Sequence[Document], shard_bytes: int) -> list[Work]:
    """Consecutive documents in shards of at least ``shard_bytes`` of text, but for the last."""
    work, first, size = [], 0, 0
    for number, document in enumerate(documents):
        size += _text_bytes(document)
        if size >= shard_bytes or number == len(documents) - 1:
            work.append(Work(f"{len(work):06d}", first, number + 1, size))
            first, size = number + 1, 0
    return work


def _text_bytes(document: Document) -> int:
    contents = [message.get("content") or "" for message in document.messages or ()]
    return sum(len(text.encode()) for text in (document.text, *contents))


def _shard_directory(ctx: StageContext, work: Sequence[Work]) -> Path:
    """Where shards are made; those of an earlier attempt that cut the documents otherwise are removed."""
    plan = hashlib.sha256(repr(work).encode()).hexdigest()
    root = ctx.work / "shards" / plan[:16]
    if ctx.rank == 0:
        for other in (ctx.work / "shards").glob("*"):
            if other != root:
                ctx.progress("shard_bytes changed, so finished shards do not fit: they are made anew")
                shutil.rmtree(other)
    return root


def _reader(ctx: StageContext) -> TeacherReader:
    tokenizer = AutoTokenizer.from_pretrained(ctx.input("teacher"))
    tokenizer.name_or_path = "the teacher"  # what messages call it: a path into the store tells a user nothing
    view = ByteView.from_tokenizer(tokenizer)
    config: ScoreConfig = ctx.config
    fewest = len(view.prefix_ids) + config.context + 1
    if fewest > config.window_tokens:
        raise StageError(
            f"window_tokens ({config.window_tokens}) leaves no room for a new token beside context_tokens "
            f"({config.context}) and the teacher's {len(view.prefix_ids)} special tokens before every text; raise it "
            "or lower context_tokens"
        )
    return TeacherReader(view, tokenizer, config.window_tokens)


def _load_teacher(ctx: StageContext, view: ByteView) -> tuple[ScoringModel, Layout]:
    config: ScoreConfig = ctx.config
    device = pick_device(ctx.local_rank)
    if config.dtype == "bf16" and device.type == "cpu":
        torch.set_float32_matmul_precision("medium")  # as in training: twice the speed for what is bf16 anyway
    model = load_teacher(ctx.input("teacher"), config.dtype, device)
    model.name_or_path = "the teacher"
    text_config = model.config.get_text_config()
    positions = getattr(text_config, "max_position_embeddings", None)
    if positions is not None and config.window_tokens > positions:
        raise StageError(
            f"window_tokens is {config.window_tokens:,}, but the teacher reads at most {positions:,} tokens; lower it"
        )
    if config.top_k is not None and config.top_k > view.vocab_size:
        raise StageError(f"top_k is {config.top_k:,}, but the teacher has {view.vocab_size:,} tokens; lower it")
    last = text_config.num_hidden_layers
    if wrong := [layer for layer in config.hidden_states if layer > last]:
        raise StageError(f"hidden_states: the teacher has hidden states 0 to {last}, not {wrong[0]}")
    layers = tuple(dict.fromkeys(layer % (last + 1) for layer in config.hidden_states))
    mask = torch.from_numpy(view.boundary_mask())
    reads = Reads(label=True, boundary=True, layers=layers)
    scoring = ScoringModel(model, view.vocab_size, reads, mask).to(model.device).eval().requires_grad_(False)
    scoring.check()
    return scoring, Layout.of(config, layers, text_config.hidden_size)


def _score_shard(
    ctx: StageContext, model: ScoringModel, layout: Layout, root: Path, work: Work, texts: Sequence[TeacherText]
) -> None:
    config: ScoreConfig = ctx.config
    writer = ShardWriter(
        root, work.name, [text.digest for text in texts], [text.byte_lengths for text in texts], work.bytes
    )
    columns = open_columns(writer, layout)
    firsts = np.cumsum([0, *(len(text.ids) for text in texts)]).tolist()
    passes = [
        each
        for text, first in zip(texts, firsts, strict=False)
        for each in passes_of(text, first, config.window_tokens, config.context)
    ]
    for batch in batches(passes, config.batch_tokens):
        if ctx.should_stop():
            raise StageInterrupted("score: stopped; finished shards are kept")
        score_passes(model, batch, layout, columns)
    writer.finish()


def _check_disk(ctx: StageContext, layout: Layout, texts: Sequence[TeacherText], total: int, sample: int) -> None:
    """Refuse to start what the disk cannot hold, judged by the first shard's tokens a byte.

    Args:
        texts: of the first shard that this process scores.
        total: bytes of all shards, of all processes, that are not finished.
        sample: bytes of ``texts``.

    Raises:
        StageError: names both sizes.
    """
    tokens = sum(len(text.ids) for text in texts) * total / max(sample, 1)
    needed, free = int(tokens * layout.entry_bytes), shutil.disk_usage(ctx.work).free
    if ctx.rank == 0:
        ctx.progress(f"about {tokens:,.0f} tokens, {layout.entry_bytes} bytes each: {needed / 1e9:.2f} GB")
    if needed > free:
        raise StageError(
            f"the scores take about {needed / 1e9:.1f} GB, but the disk of {ctx.work} has {free / 1e9:.1f} GB left: "
            "lower top_k or hidden_states, use number_format: float16, or score less text"
        )


def _wait_for_all(ctx: StageContext, root: Path, work: Sequence[Work]) -> None:
    """Return once the other processes have finished their shards too."""
    waiting = iter([each.name for each in work])
    name = next(waiting, None)
    while name is not None:
        if finished(root, name) is not None:
            name = next(waiting, None)
            continue
        if ctx.should_stop():
            raise StageInterrupted("score: stopped; finished shards are kept")
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _publish(
    ctx: StageContext,
    root: Path,
    work: Sequence[Work],
    reader: TeacherReader,
    model: ScoringModel,
    layout: Layout,
) -> Manifest:
    config: ScoreConfig = ctx.config
    reader.tokenizer.save_pretrained(ctx.out / TOKENIZER)
    template = reader.tokenizer.chat_template
    documents = read_json(ctx.input("documents") / "manifest.json")
    manifest = publish(
        root,
        ctx.out,
        [each.name for each in work],
        {
            "source": "score",
            "teacher": Teacher(
                model=content_digest(ctx.input("teacher"), patterns=("config.json", "*.safetensors")),
                width=layout.width,
                layers=model.model.config.get_text_config().num_hidden_layers + 1,
                dtype=config.dtype,
            ),
            "tokenizer": reader.view.fingerprint,
            "chat_template": template and hashlib.sha256(repr(template).encode()).hexdigest(),
            "vocab_size": reader.view.vocab_size,
            "prefix_tokens": len(reader.view.prefix_ids),
            "number_format": config.number_format,
            "window_tokens": config.window_tokens,
            "context_tokens": config.context,
            "boundary": True,
            "top_k": config.top_k,
            "hidden_layers": layout.layers,
            "documents_sha256": documents.get("sha256"),
        },
    )
    write_json(ctx.out / "metrics.json", _metrics(manifest))
    return manifest


def _metrics(manifest: Manifest) -> dict[str, float]:
    size = sum(facts.size for facts in manifest.files().values())
    entries = sum(shard.entries for shard in manifest.shards)
    return {
        "documents": sum(shard.documents for shard in manifest.shards),
        "text_bytes": sum(shard.bytes for shard in manifest.shards),
        "tokens": entries,
        "bytes_per_token": size / entries if entries else 0.0,
    }


class _Progress:
    """Says now and then how far this process is."""

    def __init__(self, ctx: StageContext, total: int) -> None:
        self._ctx, self._total = ctx, total
        self._done = self._tokens = 0
        self._started = self._last = time.monotonic()

    def add(self, text_bytes: int, tokens: int) -> None:
        self._done, self._tokens = self._done + text_bytes, self._tokens + tokens
        now = time.monotonic()
        if now - self._last < SECONDS_BETWEEN_PROGRESS:
            return
        self._last, seconds = now, now - self._started
        remaining = seconds / self._done * (self._total - self._done)
        self._ctx.progress(
            f"score: {self._done / self._total:.0%} of this process's text, {self._tokens / seconds:,.0f} tok/s, "
            f"about {remaining:,.0f} s left"
        )
