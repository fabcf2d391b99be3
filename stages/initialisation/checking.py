"""The finished model, loaded by a process that knows nothing of how it was made."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import AutoTokenizer

from stages.initialisation.task import Transplant
from stages.reload_check import differences, inspect_in_fresh_process, inspect_tokenizer, warnings
from stages.stage import StageContext, StageError, StageInterrupted

_TOKENIZER_CHOICE = (
    "Beside a model of some types AutoTokenizer loads only a tokenizer.json: a target tokenizer without one needs a "
    "student of another type."
)


def check_result(
    ctx: StageContext, transplant: Transplant, new: Tensor, passages: Path | None, expected: Mapping[str, Any]
) -> dict[str, Any]:
    """Load what was written, compare it with what was meant, and let it predict a text as the student does.

    Args:
        new: bool [V_target], rows that are no copies.
        passages: what ``passages_to_predict`` gave.
        expected: facts of the model beside those of its tokenizer.

    Returns:
        what was found (``reload_check.inspect``), and the student's own bits per byte beside it.

    Raises:
        StageError: the model does not load, or is not what was expected.
        StageInterrupted: the stage was asked to stop.
    """
    if ctx.should_stop():
        raise StageInterrupted
    ctx.progress("loading the result in a process of its own")
    mask = ctx.work / "new_rows.npy"
    np.save(mask, new.numpy())
    try:
        found = inspect_in_fresh_process(ctx.out, new_rows=mask, documents=passages, beside=transplant.student)
    except subprocess.CalledProcessError as error:
        raise StageError(
            f"the model just written to {ctx.out} does not load. {_TOKENIZER_CHOICE}\n{error.stderr}"
        ) from None
    expected = inspect_tokenizer(AutoTokenizer.from_pretrained(transplant.tokenizer)) | dict(expected)
    if wrong := differences(found, expected):
        raise StageError(
            f"the model just written to {ctx.out} is not what was meant: {'; '.join(wrong)}. "
            f"Check that the student gives finite logits. {_TOKENIZER_CHOICE}"
        )
    for line in warnings(found):
        ctx.progress(f"warning: {line}")
    facts = {key: found[key] for key in ("probe", "outliers", "generated")}
    return facts | {"student_probe": found["beside"]["probe"]}


def some_documents(directory: Path, count: int) -> list[str]:
    """The first lines of a DocumentsArtifact's ``documents.jsonl`` that have a text, of every domain in turn."""
    domains: dict[str, list[str]] = defaultdict(list)
    with (directory / "documents.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            if record.get("text") and len(domains[record["domain"]]) < count:
                domains[record["domain"]].append(line)
    in_turn = (line for group in itertools.zip_longest(*domains.values()) for line in group if line is not None)
    return list(itertools.islice(in_turn, count))


def passages_to_predict(ctx: StageContext) -> Path | None:
    """Documents of ``data.eval`` as a file of their own, if they are to be predicted.

    Raises:
        StageError: none of them has a text.
    """
    directory = ctx.optional_input("eval")
    if directory is None:
        return None
    documents = some_documents(directory, ctx.config.verify.documents)
    if not documents:
        raise StageError(
            "verify: no document of data.eval has a text, and conversations are not predicted here: name some that do, "
            "or write `text: built-in`"
        )
    path = ctx.work / "verify.jsonl"
    path.write_text("".join(documents), encoding="utf-8")
    return path
