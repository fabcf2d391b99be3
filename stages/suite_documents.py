"""``suite-documents``: training items of the evaluation's suites, as documents with prompts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TextIO

from pydantic import Field, field_validator

from stages.artifacts import DocumentsArtifact, write_json
from stages.evaluation.suites.options import SuitesOptions
from stages.stage import Input, StageConfig, StageContext, StageInterrupted

if TYPE_CHECKING:
    from stages.evaluation.suites.questions import Suite


class SuiteDocumentsConfig(StageConfig):
    """Options of ``suite-documents``."""

    suites: SuitesOptions
    """Which suites, with the options of ``evaluate``; ``items`` is how many documents each gives. They share no
    question with the tests of the same options."""
    weight: float = Field(1.0, gt=0)
    """How often a document is read in an epoch, on average."""

    @field_validator("suites")
    @classmethod
    def _enough_items(cls, value: SuitesOptions) -> SuitesOptions:
        from stages.evaluation.suites.registry import check_items

        check_items(value, "train")
        return value


class SuiteDocuments:
    """Training items of the evaluation's suites, as documents with prompts.

    A training stage that names this stage under ``needs`` reads them in place of ``data.train``.
    """

    VERSION = 1
    Config = SuiteDocumentsConfig
    inputs: Mapping[str, Input] = {}
    output = DocumentsArtifact

    def run(self, ctx: StageContext) -> None:
        """Write a document an item into ``ctx.out``: the prompt, which is not learned, and then the answer.

        Raises:
            StageError: a suite is asked for fewer items than it has kinds of them.
            StageInterrupted: asked to stop.
        """
        from stages.evaluation.suites.registry import make_suite

        config: SuiteDocumentsConfig = ctx.config
        domains, suites = {}, {}
        with (ctx.out / "documents.jsonl").open("w", encoding="utf-8", newline="\n") as file:
            for name, options in config.suites.chosen().items():
                if ctx.should_stop():
                    raise StageInterrupted
                suite = make_suite(name, options, "train")
                size = _write(file, suite, config.weight)
                domains[name] = {"documents": len(suite.questions), "bytes": size, "weight": config.weight}
                suites[name] = {
                    "version": suite.version,
                    "settings": dict(suite.settings),
                    "settings_sha256": suite.settings_digest,
                    "questions_sha256": suite.questions_digest,
                }
                ctx.progress(f"{name}: {len(suite.questions):,} documents, {size:,} bytes")
        with (ctx.out / "documents.jsonl").open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        totals = {field: sum(domain[field] for domain in domains.values()) for field in ("documents", "bytes")}
        manifest = {**totals, "domains": domains, "sha256": digest, "suites": suites}
        write_json(ctx.out / "manifest.json", manifest)


def _write(file: TextIO, suite: Suite, weight: float) -> int:
    """Write a suite's items as JSON lines; returns the bytes of their texts."""
    size = 0
    for record in _records(suite, weight):
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
        size += len(record["text"].encode())
    return size


def _records(suite: Suite, weight: float) -> Iterator[dict[str, Any]]:
    for question in suite.questions:
        yield {
            "id": f"{suite.name}/{question.id}",
            "domain": suite.name,
            "weight": weight,
            "text": question.prompt + question.answer + suite.ending,
            "context_bytes": len(question.prompt.encode()),
        }
