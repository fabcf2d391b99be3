"""Small teachers, documents and what ``score`` makes of them; shared by the tests of scores and of what reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from stages.artifacts import ModelArtifact, ScoresArtifact
from stages.distill import Distill, DistillConfig
from stages.score import Score, ScoreConfig
from stages.stage import StageContext

TEXTS = (
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on while the fox runs far away.",
    "Tokens are byte strings; two tokenizations of one text meet where their boundaries coincide.",
    "def add(left, right):\n    return left + right\n\nprint(add(12, 345))\n",
    "Ein Häuschen steht im Wald, naïve façade, 東京 and Москва, 🙂 at 3.14159.",
    "a",
    "The dog sleeps on, and two byte strings meet where the fox jumps over the boundaries.",
)
CONVERSATION = [
    {"role": "user", "content": "Where does the quick fox sleep?"},
    {"role": "assistant", "content": "Far away, where the lazy dog jumps over 東京."},
]


def write_documents(directory: Path, contents: Sequence[str | list[dict[str, str]]] = TEXTS) -> Path:
    """A DocumentsArtifact of texts, and of conversations where messages are given."""
    directory.mkdir(parents=True)
    with (directory / "documents.jsonl").open("w", encoding="utf-8") as file:
        for number, content in enumerate(contents):
            field = "text" if isinstance(content, str) else "messages"
            file.write(json.dumps({"id": f"d/{number}", "domain": "d", "weight": 1.0, field: content}) + "\n")
    (directory / "manifest.json").write_text(json.dumps({"documents": len(contents)}))
    return directory


def with_prefix(tokenizer_directory: Path, directory: Path) -> Path:
    """The tokenizer, so changed that it puts its end-of-text token before every text."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{tokenizer.bos_token} $A", special_tokens=[(tokenizer.bos_token, tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(directory)
    return directory


def context(root: Path, config: Any, inputs: Mapping[str, Path], **options: Any) -> StageContext:
    """A stage's context with its ``work`` and an empty ``out`` below ``root``."""
    for name in ("work", "out"):
        (root / name).mkdir(parents=True, exist_ok=True)
    named = {name: {name: path} for name, path in inputs.items()}
    return StageContext(config=config, inputs=named, work=root / "work", out=root / "out", **options)


def score(teacher: Path, documents: Path, root: Path, *, ctx: Mapping[str, Any] | None = None, **options: Any) -> Path:
    """The ScoresArtifact of a teacher, computed in float32."""
    config = ScoreConfig(**{"dtype": "fp32", "window_tokens": 256} | options)
    Score().run(context(root, config, {"teacher": teacher, "documents": documents}, **(ctx or {})))
    ScoresArtifact.verify(root / "out")
    return root / "out"


def distill(root: Path, inputs: Mapping[str, Path], **options: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The loss of every step, and the trained weights."""
    defaults = {"steps": 4, "batch_windows": 4, "window_tokens": 128, "learning_rate": 3e-3, "log_every": 1}
    defaults |= {"data_workers": 0, "dtype": "fp32"}
    ctx = context(root, DistillConfig(**defaults | options), inputs)
    Distill().run(ctx)
    ModelArtifact.verify(ctx.out)
    lines = (ctx.out / "training.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines], load_file(ctx.out / "model.safetensors")
