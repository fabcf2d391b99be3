"""Import what a server returned about the documents as their scores."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.artifacts import read_json, write_json
from stages.documents import DocumentProblem, read_records
from stages.references import ReferenceProblem, parse
from stages.scoring.config import ImportScoresConfig
from stages.scoring.manifest import Teacher
from stages.scoring.responses import LocatedTokens, ResponseProblem, locate, read_response
from stages.scoring.store import ShardWriter, publish, text_digest
from stages.stage import StageContext, StageError, StageInterrupted
from stages.training.data.documents import TrainingDocuments
from stages.training.data.windows import Document

SHARD_ENTRIES = 1 << 20


@dataclass(frozen=True)
class Imported:
    """The scores of one document."""

    digest: int
    bytes: int
    tokens: LocatedTokens


def import_scores(ctx: StageContext) -> None:
    """Write the scores of ``ctx.input("documents")`` that the file of the options holds into ``ctx.out``.

    Raises:
        StageError: a record cannot be understood or is about another text, or a document has none.
        StageInterrupted: asked to stop.
    """
    config: ImportScoresConfig = ctx.config
    root = ctx.work / "shards"
    shutil.rmtree(root, ignore_errors=True)
    names: list[str] = []
    unseen_mass = unseen_tokens = 0.0
    for shard in _shards(_imported(ctx)):
        names.append(f"{len(names):06d}")
        _write_shard(root, names[-1], shard, with_boundary=config.boundary == "top_k")
        unseen_mass += sum(sum(each.tokens.unseen_mass) for each in shard)
        unseen_tokens += sum(len(each.tokens.unseen_mass) for each in shard)
    manifest = publish(root, ctx.out, names, _manifest(ctx))
    metrics = {
        "documents": sum(shard.documents for shard in manifest.shards),
        "tokens": sum(shard.entries for shard in manifest.shards),
    }
    line = "{documents:,} documents, {tokens:,} tokens".format(**metrics)
    if unseen_tokens:
        metrics["unseen_mass"] = unseen_mass / unseen_tokens
        line += f"; tokens that were not returned have {metrics['unseen_mass']:.2%} of the probability"
    write_json(ctx.out / "metrics.json", metrics)
    ctx.progress(line)


def _imported(ctx: StageContext) -> Iterator[Imported]:
    """The scores of every document, in the order of the records.

    Raises:
        StageError: as for ``import_scores``.
    """
    documents = TrainingDocuments(ctx.input("documents"), ctx.cache)
    digest_of: dict[str, int] = {}
    number_of: dict[int, int] = {}
    for number, document in enumerate(documents):
        digest_of[document.id] = digest = text_digest(document.text)
        number_of.setdefault(digest, number)
    place_of: dict[int, str] = {}
    try:
        path = parse(ctx.config.path, Path.cwd()).locate()
        for place, record in read_records(path):
            if ctx.should_stop():
                raise StageInterrupted("import-scores: stopped")
            digest = _digest_of(place, record, digest_of, number_of)
            document = documents[number_of[digest]]
            if digest in place_of:
                raise StageError(
                    f"{place}: the text of document {document.id} has scores already, from {place_of[digest]}; keep one"
                )
            place_of[digest] = place
            yield _located(place, record, document, ctx.config)
    except (DocumentProblem, ReferenceProblem) as error:
        raise StageError(str(error)) from None
    if missing := [number for digest, number in number_of.items() if digest not in place_of]:
        raise StageError(
            f"{path}: {len(missing):,} of {len(number_of):,} texts have no record, first that of document "
            f"{documents[missing[0]].id}; score them too, or leave them out of data.train"
        )


def _digest_of(place: str, record: Mapping[str, Any], digest_of: Mapping[str, int], texts: Mapping[int, int]) -> int:
    """The digest of the text that a record is about, given those of all documents' texts."""
    name, text = record.get("document"), record.get("text")
    if isinstance(name, str):
        if name not in digest_of:
            raise StageError(f"{place}: no document is called {name!r}; ids are as {next(iter(digest_of))!r}")
        return digest_of[name]
    if isinstance(text, str):
        if (digest := text_digest(text)) not in texts:
            raise StageError(f"{place}: its text is that of no document; it begins {text[:40]!r}")
        return digest
    raise StageError(
        f"{place}: add the document's id as `document`, or its text as `text`, to what the server returned"
    )


def _located(place: str, record: Mapping[str, Any], document: Document, config: ImportScoresConfig) -> Imported:
    if document.messages is not None:
        raise StageError(
            f"{place}: document {document.id} is a conversation; a server does not tell how its template renders one, "
            "so only the scores of texts can be imported"
        )
    try:
        tokens = locate(read_response(record), document.text, config.special_tokens)
    except ResponseProblem as error:
        raise StageError(f"{place}: document {document.id}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StageError(
            f"{place}: document {document.id}: not what a server returns: {type(error).__name__} {error}"
        ) from None
    if config.boundary == "top_k" and all(map(math.isnan, tokens.boundary_logp)):
        raise StageError(
            f"{place}: document {document.id}: boundary: top_k needs the most probable tokens of every position, but "
            "the record has none; ask the server for them (logprobs: 20, or top_logprobs: 20), or use boundary: none"
        )
    return Imported(text_digest(document.text), len(document.text.encode()), tokens)


def _shards(imported: Iterator[Imported]) -> Iterator[list[Imported]]:
    shard: list[Imported] = []
    size = 0
    for each in imported:
        shard.append(each)
        size += len(each.tokens.lengths)
        if size >= SHARD_ENTRIES:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def _write_shard(root: Path, name: str, shard: Sequence[Imported], *, with_boundary: bool) -> None:
    writer = ShardWriter(
        root,
        name,
        [each.digest for each in shard],
        [np.array(each.tokens.lengths, dtype=np.int64) for each in shard],
        sum(each.bytes for each in shard),
    )
    label = np.concatenate([each.tokens.logp for each in shard]).astype(np.float32)
    if with_boundary:
        boundary = np.concatenate([each.tokens.boundary_logp for each in shard]).astype(np.float32)
        # What comes after a text is not known: its last token is scored only where the server went on generating.
        label[np.isnan(boundary)] = np.nan
        writer.column("boundary_logp", (), "float32")[:] = boundary
    writer.column("label_logp", (), "float32")[:] = label
    writer.finish()


def _manifest(ctx: StageContext) -> dict[str, Any]:
    config: ImportScoresConfig = ctx.config
    return {
        "source": "import-scores",
        "teacher": Teacher(model=config.model),
        "tokenizer": None,
        "chat_template": None,
        "vocab_size": None,
        "prefix_tokens": 0,
        "number_format": "float32",
        "window_tokens": None,
        "context_tokens": None,
        "boundary": config.boundary == "top_k",
        "top_k": None,
        "hidden_layers": (),
        "documents_sha256": read_json(ctx.input("documents") / "manifest.json").get("sha256"),
    }
