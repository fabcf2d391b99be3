"""What a teacher is to continue: the beginnings of documents."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from stages.stage import StageError


@dataclass(frozen=True)
class Prompt:
    """The beginning of a document, with what its continuation inherits from it."""

    id: str
    domain: str
    weight: float
    text: str


def read_prompts(directory: Path, prompt_bytes: int, max_documents: int | None) -> list[Prompt]:
    """A prompt from each of the first ``max_documents`` documents of every domain of a documents artifact.

    Raises:
        StageError: a document is a conversation.
    """
    prompts: list[Prompt] = []
    taken: Counter[str] = Counter()
    with (directory / "documents.jsonl").open(encoding="utf-8") as file:
        for record in map(json.loads, file):
            if "text" not in record:
                raise StageError(
                    f"document {record['id']} is a conversation; generate continues plain text: leave it out of "
                    "data.train, or distill on the conversations themselves"
                )
            domain = record["domain"]
            if max_documents is None or taken[domain] < max_documents:
                text = cut_prompt(record["text"], prompt_bytes)
                prompts.append(Prompt(record["id"], domain, float(record["weight"]), text))
                taken[domain] += 1
    return prompts


def cut_prompt(text: str, limit: int) -> str:
    """The beginning of a text in at most ``limit`` UTF-8 bytes, whole characters only; at least 4 are needed for that.

    It ends before white space if there is any in its second half: a model that has read half a word, or a space that
    belongs to the next word's token, does not go on as it would in running text.
    """
    data = text.encode()
    if len(data) <= limit:
        return text
    head = data[:limit].decode(errors="ignore")
    # The character after the head belongs to the search: a word may end exactly at the limit.
    places = [place for place, character in enumerate(text[: len(head) + 1]) if character.isspace()]
    shorter = head[: places[-1]].rstrip() if places else ""
    return shorter if 2 * len(shorter.encode()) >= limit else head
