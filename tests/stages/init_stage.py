"""The init stage set up on directories of tiny models, for the tests that run it whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_architectures import config
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.align import Align
from stages.init import Init
from stages.stage import StageContext

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def run_align(student: Path, tokenizer: Path, out: Path) -> Path:
    out.mkdir()
    inputs = {"student": {"sources/student": student}, "tokenizer": {"sources/tokenizer": tokenizer}}
    Align().run(StageContext(config=Align.Config(), inputs=inputs, work=out, out=out))
    return out


def init_context(
    student: Path, tokenizer: Path, out: Path, alignment: Path | None = None, donor: Path | None = None, **options: Any
) -> StageContext:
    """A context of the stage; what it says is appended to ``said.txt`` in its work directory."""
    out.mkdir()
    work = out.with_name(f"{out.name}-work")
    work.mkdir()
    inputs = {
        "student": {"sources/student": student},
        "tokenizer": {"sources/tokenizer": tokenizer},
        "alignment": {"align": alignment or run_align(student, tokenizer, out.with_name(f"{out.name}-align"))},
    }
    if donor is not None:
        inputs["donor"] = {"sources/donor": donor}

    def say(line: str) -> None:
        with (work / "said.txt").open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    return StageContext(config=Init.Config(**options), inputs=inputs, work=work, out=out, progress=say)


def manifest_of(ctx: StageContext) -> dict[str, Any]:
    return json.loads((ctx.out / "init.json").read_text(encoding="utf-8"))


def tiny_gemma3n(tokenizer_dir: Path, directory: Path) -> Path:
    """A model with embeddings that every layer reads, for all but the last five tokens."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    shape = config("gemma3n", rows=len(tokenizer), per_layer_rows=len(tokenizer) - 5)
    AutoModelForCausalLM.from_config(shape).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
