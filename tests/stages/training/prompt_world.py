"""Texts and conversations as prompts that a student continues."""

from __future__ import annotations

import numpy as np

from stages.training.data.aligner import DocumentAligner
from stages.training.data.order import ReadingOrder, Streamed
from stages.training.data.windows import Document
from stages.training.on_policy.prompts import Prompt, PromptStream

TEXTS = (
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on while the fox runs far away.",
    "def add(left, right):\n    return left + right\n\nprint(add(12, 345))\n",
    "Ein Häuschen steht im Wald, naïve façade, 東京 and Москва, 🙂 at 3.14159.",
)
QUESTION = {"role": "user", "content": "Which user asked?"}
ANSWER = {"role": "assistant", "content": "The assistant knows."}


def stream(aligner: DocumentAligner, documents: list[Document], **options) -> PromptStream:
    options = {"lengths": (3, 9), "room": 48, "reference_tokens": 16, "seed": 5} | options
    weights = np.array([document.weight for document in documents])
    held = options.pop("held", len(documents))
    streamed = [Streamed(held, len(documents) - held, 1.0)] if held < len(documents) else []
    order = ReadingOrder(weights[:held], streamed, options["seed"], options.pop("block_documents", 100))
    return PromptStream(documents, held, order, aligner, **options)


def first_prompt(aligner: DocumentAligner, text: str = "") -> Prompt:
    return stream(aligner, [Document("d/0", text or TEXTS[0], 1.0)]).take(1)[0]


def texts(weights: tuple[float, ...] = (1, 1, 1)) -> list[Document]:
    return [Document(f"d/{n}", text, weight) for n, (text, weight) in enumerate(zip(TEXTS, weights, strict=True))]
