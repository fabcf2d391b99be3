"""What a recipe can chain: one module a stage, found by name and imported only when it is used."""

from __future__ import annotations

import difflib
import importlib

STAGES: dict[str, str] = {
    "model": "stages.sources:ModelSource",
    "source-model": "stages.sources:ModelSource",
    "source-model-config": "stages.sources:ModelConfigSource",
    "source-tokenizer": "stages.sources:TokenizerSource",
    "source-documents": "stages.document_source:DocumentsSource",
    "audit": "stages.audit:AuditStage",
    "tokenizer": "stages.tokenizer:TokenizerStage",
    "align": "stages.align:Align",
    "hypernet": "stages.hypernet:Hypernet",
    "init": "stages.init:Init",
    "generate": "stages.generate:Generate",
    "score": "stages.score:Score",
    "import-scores": "stages.import_scores:ImportScores",
    "distill": "stages.distill:Distill",
    "stochastok": "stages.stochastok:StochasTok",
    "suite-documents": "stages.suite_documents:SuiteDocuments",
    "evaluate": "stages.evaluate:Evaluate",
}


class UnknownStage(LookupError):
    """A recipe's ``uses:`` names no stage; the message lists the names and the nearest one."""


def load_stage(name: str) -> type:
    """The stage class registered as ``name``; importing it stays light (no torch).

    Raises:
        UnknownStage: no stage has that name.
    """
    if name not in STAGES:
        near = difflib.get_close_matches(name, STAGES, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UnknownStage(f"unknown stage {name!r}{hint}; known stages: {', '.join(STAGES)}")
    module, _, attribute = STAGES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
