"""Conversations as they come in: what a message must look like, and which of its texts are content."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

Message = Mapping[str, Any]
Tool = Mapping[str, Any]
PartName = Literal["reasoning", "content"]

REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")  # transformers reads the first that is there


class ChatError(ValueError):
    """A conversation that a chat template cannot render, or renders so that its contents cannot be located.

    Attributes:
        message_index: the offending message, counted from 0; None where no single message is to blame.
    """

    def __init__(self, problem: str, *, message_index: int | None = None, role: object = None) -> None:
        where = "" if message_index is None else f"message {message_index + 1} ({role}): "
        super().__init__(where + problem)
        self.message_index = message_index


class Part(NamedTuple):
    """One text of a message.

    Attributes:
        message: index of the message.
        name: what the text is.
        key: where the message has it.
        text: the text.
    """

    message: int
    name: PartName
    key: str
    text: str


def check_messages(messages: Sequence[Message]) -> None:
    """Refuse what is no conversation of text messages.

    Raises:
        ChatError: the conversation is empty, or a message lacks a role or a content, or its content is no string.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise ChatError(f"a conversation is a list of messages, got {type(messages).__name__}")
    if not messages:
        raise ChatError("the conversation is empty; give at least one message")
    for index, message in enumerate(messages):
        _check_message(index, message)


def _check_message(index: int, message: Message) -> None:
    if not isinstance(message, Mapping):
        raise ChatError(
            f"a message is a mapping with a role and a content, got {type(message).__name__}", message_index=index
        )
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise ChatError(
            f"its role must be a word such as 'user' or 'assistant', got {role!r}", message_index=index, role="no role"
        )
    reasoning_key = _reasoning_key(message)
    if message.get("content") is None and reasoning_key is None and not message.get("tool_calls"):
        raise ChatError("it has no content", message_index=index, role=role)
    for key in ("content", reasoning_key):
        text = message.get(key) if key else None
        if isinstance(text, list | tuple):
            raise ChatError(
                f"its {key} is a list of parts; join the text parts into one string (images and audio cannot be used)",
                message_index=index,
                role=role,
            )
        if text is not None and not isinstance(text, str):
            raise ChatError(f"its {key} must be a string, got {type(text).__name__}", message_index=index, role=role)
        if text and (surrogate := re.search("[\ud800-\udfff]", text)):
            raise ChatError(
                f"its {key} has the lone surrogate U+{ord(surrogate[0]):04X} at character {surrogate.start()}, "
                "which is no Unicode text; replace or remove it",
                message_index=index,
                role=role,
            )


def message_parts(messages: Sequence[Message]) -> list[Part]:
    """The texts of all messages in the order in which templates write them: reasoning first, then content."""
    parts = []
    for index, message in enumerate(messages):
        reasoning_key = _reasoning_key(message)
        if reasoning_key is not None:
            parts.append(Part(index, "reasoning", reasoning_key, message[reasoning_key]))
        if message.get("content") is not None:
            parts.append(Part(index, "content", "content", message["content"]))
    return parts


def check_control_tokens(
    messages: Sequence[Message], tools: Sequence[Tool] | None, control_tokens: re.Pattern[str], name: str
) -> None:
    """Refuse texts in which a tokenizer would read one of its control tokens.

    Raises:
        ChatError: names the message, the control token and the tokenizer.
    """
    advice = f"tokenizer {name!r} would read it as control; remove or rewrite it"
    if tools and (found := control_tokens.search(_as_json(tools))):
        raise ChatError(f"the tools contain the control token {found[0]!r}: {advice}")
    for part in message_parts(messages):
        if found := control_tokens.search(part.text):
            raise ChatError(
                f"its {part.key} contains the control token {found[0]!r} at character {found.start()}: {advice}",
                message_index=part.message,
                role=messages[part.message]["role"],
            )
    for index, message in enumerate(messages):
        if message.get("tool_calls") and (found := control_tokens.search(_as_json(message["tool_calls"]))):
            raise ChatError(
                f"its tool_calls contain the control token {found[0]!r}: {advice}",
                message_index=index,
                role=message["role"],
            )


def _reasoning_key(message: Message) -> str | None:
    return next((key for key in REASONING_KEYS if message.get(key) is not None), None)


def _as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
