"""Tool calls: each template writes them in its own way, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alignment.chat.messages import ChatError, Message
from alignment.chat.sentinels import numbered_sentinel, split_at_sentinels, unused_sentinel


def check_tool_calls(
    messages: Sequence[Message], render: Callable[[Sequence[Message]], str], tokenizer_name: str
) -> None:
    """Refuse a conversation whose tool calls a template leaves out: its model would see a turn end without reason.

    Raises:
        ChatError: a tool call is malformed or is not rendered; names the message.
    """
    if not any(message.get("tool_calls") for message in messages):
        return
    sentinel = unused_sentinel(render(messages))
    callers: list[int] = []
    marked = []
    for index, message in enumerate(messages):
        calls = message.get("tool_calls") or ()
        if isinstance(calls, str | Mapping) or not isinstance(calls, Sequence):
            raise _error(messages, index, f"its tool_calls must be a list, got {type(calls).__name__}")
        renamed = []
        for call in calls:
            if (call := _rename(call, numbered_sentinel(sentinel, len(callers)))) is None:
                raise _error(
                    messages, index, "each of its tool_calls must be a mapping with a function that has a name"
                )
            renamed.append(call)
            callers.append(index)
        marked.append({**message, "tool_calls": renamed} if calls else message)
    rendered = set(split_at_sentinels(render(marked), sentinel).numbers)
    for number, index in enumerate(callers):
        if number not in rendered:
            raise _error(
                messages,
                index,
                f"the chat template of tokenizer {tokenizer_name!r} leaves its tool calls out; "
                "leave the conversation out or write them into the content",
            )


def _rename(call: object, name: str) -> dict[str, Any] | None:
    """A tool call of another name; None if it has no name."""
    if not isinstance(call, Mapping):
        return None
    if isinstance(call.get("function"), Mapping):
        function = _rename(call["function"], name)
        return None if function is None else {**call, "function": function}
    return {**call, "name": name} if isinstance(call.get("name"), str) else None


def _error(messages: Sequence[Message], index: int, problem: str) -> ChatError:
    return ChatError(problem, message_index=index, role=messages[index]["role"])
