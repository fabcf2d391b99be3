"""Conversations out of JSON lines: messages with roles, as chat templates take them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.digests import list_files
from stages.documents import DocumentProblem, check_text, field_of, holds_records, read_records

Conversation = dict[str, Any]
"""``{"messages": [{"role", "content", ...}, ...]}``, and ``"tools"`` if the line has some."""

TOOLS = "tools"


def read_conversations(path: Path, *, field: str) -> Iterator[Conversation]:
    """The conversations of a ``.jsonl`` or ``.parquet`` file, or of all of a directory, in the order of their names.

    Roles are not checked against a list: which ones are understood is for each model's template to say.

    Args:
        path: file or directory.
        field: the key of a JSON line, or the column, that holds the messages; ``tools`` beside it is read as well.

    Raises:
        DocumentProblem: a file holds no records, or a record no proper conversation.
    """
    if path.is_dir():
        for file in list_files(path):
            if file.stat().st_size:
                yield from read_conversations(file, field=field)
        return
    if not holds_records(path):
        raise DocumentProblem(f"{path}: conversations are read from .jsonl files, one a line, or .parquet files")
    for place, record in read_records(path):
        yield conversation_of(place, record, field)


def conversation_of(place: str, record: dict[str, Any], field: str) -> Conversation:
    """The conversation in one field of a record, and the ``tools`` beside it.

    Raises:
        DocumentProblem: it is no proper conversation; names ``place``.
    """
    messages = field_of(place, record, field)
    if not isinstance(messages, list) or not messages:
        found = "an empty list" if messages == [] else type(messages).__name__
        raise DocumentProblem(f"{place}: field {field!r} must be a list of messages, found {found}")
    for number, message in enumerate(messages, start=1):
        _check_message(f"{place}: message {number}", message)
    conversation: Conversation = {"messages": messages}
    if record.get(TOOLS):
        conversation[TOOLS] = record[TOOLS]
    return conversation


def content_bytes(conversation: Conversation) -> int:
    """UTF-8 bytes of the contents of all messages."""
    return sum(len((message.get("content") or "").encode()) for message in conversation["messages"])


def _check_message(place: str, message: Any) -> None:
    if not isinstance(message, dict):
        raise DocumentProblem(f"{place}: expected an object with a 'role' and a 'content', found {message!r:.40}")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise DocumentProblem(f"{place}: its 'role' must be a word such as 'user' or 'assistant', found {role!r:.40}")
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return
    if content is None:
        raise DocumentProblem(f"{place} ({role}): has no 'content'; only a message with 'tool_calls' may have none")
    if not isinstance(content, str):
        advice = "; join its text parts into one string" if isinstance(content, list) else ""
        raise DocumentProblem(f"{place} ({role}): 'content' must be text, found {type(content).__name__}{advice}")
    check_text(f"{place} ({role}): its content", content)
