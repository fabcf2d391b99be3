"""What a stranger's process sees of a model directory: ``python -m stages.reload_check DIRECTORY`` prints JSON.

Loads with plain transformers (but see ``stages.model_loading``), so that nothing of the process that wrote the
directory can hide a fault in it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROBE = "The café at 12:30, 東京:\n    return x\n"
GENERATED_TOKENS = 8
_NAMED = 5
_UNSPELLED_SHARE = 0.01


def inspect(directory: Path, *, new_rows: Path | None = None, documents: Path | None = None) -> dict[str, Any]:
    """Load model and tokenizer, run them on a few short texts, and say what was found.

    Args:
        new_rows: a ``.npy`` file of a bool for each token id, True where the row is no exact copy; without it copied
            and new rows are not told apart.
        documents: a ``documents.jsonl`` to be scored instead of our own passages.

    Returns:
        What ``inspect_tokenizer`` finds; ``logits_finite``, ``matrix_rows``, ``dtype`` and ``tied``; and, None where
        logits are not finite, ``generated`` (a greedy continuation), ``probe`` (``probe.report``) and
        ``outliers``: ``logits``, ``input_norms`` and ``output_norms``, which need ``new_rows`` and copied ones to
        compare with.
    """
    import torch
    from transformers import AutoTokenizer

    from stages.model_loading import load_causal_lm

    model = load_causal_lm(directory, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenized = inspect_tokenizer(tokenizer)
    prompt = torch.tensor([tokenized["ids"]])
    with torch.inference_mode():
        logits = model(prompt).logits
    finite = bool(logits.isfinite().all())
    return {
        **tokenized,
        "logits_finite": finite,
        "matrix_rows": logits.shape[-1],
        "dtype": str(model.dtype).removeprefix("torch."),
        "tied": model.get_input_embeddings().weight is model.get_output_embeddings().weight,
        "generated": tokenizer.decode(_generate(model, prompt)) if finite else None,
        **(_probe(model, tokenizer, new_rows, documents) if finite else {"probe": None, "outliers": None}),
    }


def inspect_tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a tokenizer makes of a short text."""
    ids = tokenizer(PROBE, add_special_tokens=False).input_ids
    return {
        "tokenizer_size": max(tokenizer.get_vocab().values()) + 1,
        "ids": ids,
        "decoded": tokenizer.decode(ids),
    }


def inspect_in_fresh_process(
    directory: Path, *, new_rows: Path | None = None, documents: Path | None = None, beside: Path | None = None
) -> dict[str, Any]:
    """``inspect`` in an interpreter of its own.

    Args:
        beside: a second model directory, to be compared with; what is found there is under ``beside``.

    Raises:
        subprocess.CalledProcessError: it failed; ``stderr`` says why.
    """
    command = [sys.executable, "-m", "stages.reload_check", str(directory)]
    command += ["--new-rows", str(new_rows)] if new_rows else []
    command += ["--documents", str(documents)] if documents else []
    command += ["--beside", str(beside)] if beside else []
    done = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8")
    return json.loads(done.stdout.splitlines()[-1])


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """What ``inspect`` found that is not as expected. Finite logits are always expected."""
    expected = {**expected, "logits_finite": True}
    return [f"{name} is {found[name]!r}, not {value!r}" for name, value in expected.items() if found[name] != value]


def warnings(found: Mapping[str, Any]) -> list[str]:
    """What should not be overlooked in what ``inspect`` found, one sentence each.

    New rows that are too strong: a donor may be damaged, or hostile. Short ones are usual: a mean of rows is shorter
    than they are. A text that the tokenizer cannot spell: what it leaves out costs no bits.
    """
    probe, outliers = found["probe"], found["outliers"]
    sentences = []
    if probe and probe["unspelled_bytes"] > _UNSPELLED_SHARE * probe["bytes"]:
        sentences.append(
            f"the tokenizer has no tokens for {probe['unspelled_bytes']:,} of the {probe['bytes']:,} bytes of the "
            "check's text, or rewrites them: its bits per byte are too low to be compared with the student's"
        )
    if not outliers:
        return sentences
    kinds = [("have larger logits somewhere than copied rows have any reason to", outliers["logits"])]
    for kind, matrix in (("input_norms", "input"), ("output_norms", "output")):
        if not (matrix == "output" and found["tied"]):
            kinds.append((f"of the {matrix} matrix are longer than every copied row", outliers[kind]["longer"]))
    return sentences + [_sentence(what, listing) for what, listing in kinds if listing["count"]]


def _sentence(what: str, listing: Mapping[str, Any]) -> str:
    names = ", ".join(f"{row['token']!r} ({row['id']})" for row in listing["rows"][:_NAMED])
    more = ", ..." if listing["count"] > _NAMED else ""
    return f"{listing['count']:,} new rows {what}: {names}{more}"


def _generate(model: PreTrainedModel, prompt: Tensor) -> list[int]:
    import torch

    written = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=GENERATED_TOKENS
    )
    return written[0, prompt.shape[1] :].tolist()


def _probe(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, new_rows: Path | None, documents: Path | None
) -> dict[str, Any]:
    import numpy as np
    import torch

    from alignment.byte_view import ByteView
    from stages.initialisation import probe

    passages = probe.read_passages(documents) if documents else probe.PASSAGES
    size = max(tokenizer.get_vocab().values()) + 1
    new = None if new_rows is None else torch.from_numpy(np.load(new_rows))
    comparable = new is not None and int((~new).sum()) > 1
    reference = ~new if comparable else torch.ones(size, dtype=torch.bool)
    scores = probe.score_passages(model, tokenizer, passages, reference)
    outliers = None
    if comparable:
        view = ByteView.from_tokenizer(tokenizer)
        outliers = {"logits": probe.logit_outliers(scores, new, view)}
        matrices = {"input_norms": model.get_input_embeddings(), "output_norms": model.get_output_embeddings()}
        outliers |= {kind: probe.norm_outliers(layer.weight, new, view) for kind, layer in matrices.items()}
    return {"probe": probe.report(scores, new), "outliers": outliers}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m stages.reload_check")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--new-rows", type=Path)
    parser.add_argument("--documents", type=Path)
    parser.add_argument("--beside", type=Path)
    arguments = parser.parse_args()
    result = inspect(arguments.directory, new_rows=arguments.new_rows, documents=arguments.documents)
    if arguments.beside:
        result["beside"] = inspect(arguments.beside, documents=arguments.documents)
    print(json.dumps(result))
