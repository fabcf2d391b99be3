"""``generate``: the teacher writes the training text, for sequence-level distillation (arXiv 1606.07947)."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from stages.artifacts import DocumentsArtifact, ModelArtifact, write_json
from stages.resume_points import counted
from stages.stage import Input, StageConfig, StageContext, StageError, StageInterrupted, not_keyed

if TYPE_CHECKING:
    from stages.generation.continuation import Continuation, Writer
    from stages.generation.prompts import Prompt

SECONDS_BETWEEN_PROGRESS = 10


class GenerateConfig(StageConfig):
    """Options of ``generate``."""

    prompt_bytes: int = Field(256, ge=4)
    """Longest prompt: the beginning of a document of ``data.train``, cut before white space where possible."""
    new_tokens: int = Field(256, ge=1)
    """The most tokens that the teacher writes after a prompt; an end-of-text token ends it earlier."""
    temperature: float = Field(1.0, ge=0)
    """1 samples the teacher's own distribution, so that cross-entropy on the text is forward KL between sequences, but
    for a constant; 0 takes the most probable token each time."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw from the fewest tokens that together have this probability at least."""
    max_documents: int | None = Field(None, ge=1)
    """Continue only so many documents of every domain, from the start."""
    seed: int = Field(0, ge=0)
    """Seeds the sampling; default: the recipe's seed."""
    batch_documents: int = not_keyed(8, ge=1)
    """Documents that are continued at the same time."""


class Generate:
    """Let the teacher continue the beginnings of the training documents."""

    VERSION = 1
    Config = GenerateConfig
    inputs = {
        "teacher": Input(ModelArtifact, source="teacher"),
        "documents": Input(DocumentsArtifact, source="train"),
    }
    output = DocumentsArtifact

    @staticmethod
    def resume_point(work: Path) -> str | None:
        """The documents that were written to their ends."""
        drafts = work / "documents.jsonl"
        return counted(drafts.read_bytes().count(b"\n") if drafts.exists() else 0, "written document")

    def run(self, ctx: StageContext) -> None:
        """Write prompts and continuations as documents into ``ctx.out``.

        Raises:
            StageError: several processes, a conversation, or a prompt that the teacher cannot continue.
            StageInterrupted: asked to stop; the finished batches are kept.
        """
        from alignment.byte_view import ByteView
        from stages.evaluation.scoring import load_model
        from stages.generation.continuation import Writer
        from stages.generation.prompts import read_prompts

        config: GenerateConfig = ctx.config
        if ctx.world_size > 1:
            raise StageError("generate runs in one process; give it `launcher: local` under resources")
        prompts = read_prompts(ctx.input("documents"), config.prompt_bytes, config.max_documents)
        model, view = load_model(ctx.input("teacher")), ByteView.from_tokenizer(ctx.input("teacher"))
        writer = Writer(model, view, config.new_tokens, config.temperature, config.top_p, config.seed)
        drafts = ctx.work / "documents.jsonl"
        records = _write_all(ctx, writer, prompts, drafts)
        shutil.copyfile(drafts, ctx.out / "documents.jsonl")
        teacher = {
            "architecture": type(model).__name__,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "tokenizer": view.fingerprint,
        }
        manifest = _manifest(records, ctx.out / "documents.jsonl", teacher, config)
        write_json(ctx.out / "manifest.json", manifest)
        write_json(ctx.out / "metrics.json", _metrics(manifest))
        ctx.progress(
            f"{manifest['documents']:,} documents, {manifest['new_tokens']:,} new tokens; "
            + ", ".join(f"{count:,} {ending}" for ending, count in manifest["endings"].items())
        )


def _write_all(ctx: StageContext, writer: Writer, prompts: Sequence[Prompt], drafts: Path) -> list[dict[str, Any]]:
    """A document's record a prompt, appended to ``drafts`` batch by batch; those found there are not written again."""
    size = ctx.config.batch_documents
    records = _finished(drafts, len(prompts), size)
    last = time.monotonic()
    while len(records) < len(prompts):
        if ctx.should_stop():
            raise StageInterrupted("generate: stopped; finished documents are kept")
        batch = prompts[len(records) : len(records) + size]
        written = writer.write(batch, ctx.should_stop)
        new = [_record(prompt, continuation) for prompt, continuation in zip(batch, written, strict=True)]
        with drafts.open("a", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in new)
        records += new
        if time.monotonic() - last >= SECONDS_BETWEEN_PROGRESS:
            ctx.progress(f"{len(records):,} of {len(prompts):,} documents")
            last = time.monotonic()
    return records


def _record(prompt: Prompt, continuation: Continuation) -> dict[str, Any]:
    return {
        "id": prompt.id,
        "domain": prompt.domain,
        "weight": prompt.weight,
        "text": prompt.text + continuation.text,
        "prompt_bytes": len(prompt.text.encode()),
        "new_tokens": continuation.tokens,
        "ending": continuation.ending,
    }


def _finished(path: Path, total: int, batch: int) -> list[dict[str, Any]]:
    """What an earlier attempt wrote, in whole batches, so that the same documents meet in a batch again.

    The file is shortened to that.
    """
    if not path.exists():
        path.touch()
    lines = path.read_bytes().splitlines(keepends=True)
    whole = lines if not lines or lines[-1].endswith(b"\n") else lines[:-1]
    kept = whole if len(whole) == total else whole[: len(whole) - len(whole) % batch]
    with path.open("r+b") as file:
        file.truncate(sum(map(len, kept)))
    return [json.loads(line) for line in kept]


def _manifest(
    records: Sequence[Mapping[str, Any]], documents: Path, teacher: Mapping[str, Any], config: GenerateConfig
) -> dict[str, Any]:
    """What the documents are, counted per domain as for every documents artifact, and where they come from."""
    domains: dict[str, dict[str, float]] = {}
    for record in records:
        domain = domains.setdefault(record["domain"], {"documents": 0, "bytes": 0, "weight": record["weight"]})
        domain["documents"] += 1
        domain["bytes"] += len(record["text"].encode())
    endings = Counter(record["ending"] for record in records)
    with documents.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "documents": len(records),
        "bytes": sum(domain["bytes"] for domain in domains.values()),
        "domains": domains,
        "sha256": digest,
        "teacher": dict(teacher),
        "options": config.model_dump(mode="json", exclude={"batch_documents"}),
        "prompt_bytes": sum(record["prompt_bytes"] for record in records),
        "new_tokens": sum(record["new_tokens"] for record in records),
        "endings": {ending: endings[ending] for ending in ("finished", "cut", "broken")},
    }


def _metrics(manifest: Mapping[str, Any]) -> dict[str, float]:
    shares = {f"{ending}_share": count / manifest["documents"] for ending, count in manifest["endings"].items()}
    return {name: manifest[name] for name in ("documents", "bytes", "new_tokens")} | shares
