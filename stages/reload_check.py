"""What a stranger's process sees of a model directory: ``python -m stages.reload_check DIRECTORY`` prints JSON.

Loads with plain transformers, so that nothing of the process that wrote the directory can hide a fault in it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "The café at 12:30, 東京:\n    return x\n"


def inspect(directory: Path) -> dict[str, Any]:
    """Load model and tokenizer, run them on a short text, and say what was found."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenized = inspect_tokenizer(tokenizer)
    with torch.inference_mode():
        logits = model(torch.tensor([tokenized["ids"]])).logits
    return {
        **tokenized,
        "logits_finite": bool(logits.isfinite().all()),
        "matrix_rows": logits.shape[-1],
        "tied": model.get_input_embeddings().weight is model.get_output_embeddings().weight,
    }


def inspect_tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a tokenizer makes of a short text."""
    ids = tokenizer(PROBE, add_special_tokens=False).input_ids
    return {
        "tokenizer_size": max(tokenizer.get_vocab().values()) + 1,
        "ids": ids,
        "decoded": tokenizer.decode(ids),
    }


def inspect_in_fresh_process(directory: Path) -> dict[str, Any]:
    """``inspect`` in an interpreter of its own.

    Raises:
        subprocess.CalledProcessError: it failed; ``stderr`` says why.
    """
    command = [sys.executable, "-m", "stages.reload_check", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8")
    return json.loads(done.stdout.splitlines()[-1])


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """What ``inspect`` found that is not as expected. Finite logits are always expected."""
    expected = {**expected, "logits_finite": True}
    return [f"{name} is {found[name]!r}, not {value!r}" for name, value in expected.items() if found[name] != value]


if __name__ == "__main__":
    print(json.dumps(inspect(Path(sys.argv[1]))))
