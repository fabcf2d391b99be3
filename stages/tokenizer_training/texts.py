"""The text of the documents that a tokenizer is made for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from stages.artifacts import read_json
from stages.stage import StageError, StageInterrupted

_PROGRESS_BYTES = 50_000_000


def read_texts(
    documents: Path, *, progress: Callable[[str], None], should_stop: Callable[[], bool], doing: str
) -> Iterator[str]:
    """Every text of a documents artifact; of a conversation every message's content is one.

    Args:
        documents: the artifact's directory.
        progress: told now and then how far the reading has come.
        should_stop: asked before each document.
        doing: what the texts are read for, for ``progress``.

    Raises:
        StageInterrupted: asked to stop.
        StageError: there is no text.
    """
    total = read_json(documents / "manifest.json")["bytes"]
    done = shown = 0
    with (documents / "documents.jsonl").open(encoding="utf-8") as file:
        for line in file:
            if should_stop():
                raise StageInterrupted(f"stopped while {doing}; it starts anew")
            document = json.loads(line)
            texts = [document["text"]] if "text" in document else [m.get("content") or "" for m in document["messages"]]
            for text in filter(None, texts):
                yield text
                done += len(text.encode())
            if done - shown >= _PROGRESS_BYTES:
                shown = done
                progress(f"{doing}: {done / total:.0%} of {total:,} bytes")
    if done == 0:
        raise StageError("the training documents (data.train) hold no text")
