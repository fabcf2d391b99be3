"""Tiny models that write text, as random ones do not, and documents for them to continue."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment.byte_view import ByteView

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on while the fox runs far away.",
    "Tokens are byte strings; two tokenizations of one text meet where their boundaries coincide.",
    "def add(left, right):\n    return left + right\n\nprint(add(12, 345))\n",
    "Ein Häuschen steht im Wald, naïve façade, 東京 and Москва, 🙂 at 3.14159.",
] * 3


def write_documents(directory: Path, records: list[dict]) -> Path:
    lines = [{"id": f"d/{n}", "domain": "d", "weight": 1.0, **record} for n, record in enumerate(records)]
    (directory / "documents.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (directory / "manifest.json").write_text("{}")
    return directory


def writer(source: Path, directory: Path, *, seed: int, favour: dict[str, float] | None = None) -> Path:
    """A model that writes ASCII and ends a text now and then, as random ones do not; ``favour`` adds to logits."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    view = ByteView.from_tokenizer(source)
    model = AutoModelForCausalLM.from_pretrained(source)
    logits = torch.full((view.vocab_size,), -30.0)
    for token in range(view.vocab_size):
        if (view.token_bytes(token) or b"\xff").isascii():
            logits[token] = 0.0
    logits[tokenizer.eos_token_id] = 2.0
    for text, more in (favour or {}).items():
        logits[tokenizer(text).input_ids[0]] = more
    with torch.no_grad():
        # The first dimension of every state is about the square root of the width, and says how likely a token is.
        model.get_input_embeddings().weight[:, 0] = 1.0
        head = model.get_output_embeddings().weight
        head.normal_(std=0.5, generator=torch.Generator().manual_seed(seed))
        head[:, 0] = logits / model.config.hidden_size**0.5
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def make_world(
    factory: pytest.TempPathFactory, tokenizers: tuple[Path, Path], tiny_model_dir: Callable[..., Path]
) -> dict[str, Path]:
    """A teacher, a student with another tokenizer, and documents."""
    models = {
        name: writer(tiny_model_dir(tokenizer, seed=seed, tied=False), factory.mktemp(name), seed=seed)
        for name, tokenizer, seed in zip(("teacher", "student"), tokenizers, (1, 2), strict=True)
    }
    return models | {"documents": write_documents(factory.mktemp("documents"), [{"text": text} for text in TEXTS])}
