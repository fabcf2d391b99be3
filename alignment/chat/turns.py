"""How a chat template ends a turn, found by rendering small conversations; no list of model families."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from alignment.chat.messages import ChatError, Message
from alignment.chat.sentinels import numbered_sentinel, split_at_sentinels, unused_sentinel

TOOL_CALL = {"id": "probe0001", "type": "function", "function": {"name": "probe", "arguments": {}}}

_TOOL_REQUEST: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [TOOL_CALL]}
_BEFORE: dict[str, list[list[str]]] = {"system": [[]], "user": [[]], "assistant": [["user"]]}
_OTHER_BEFORE = [["user", "tool request"], ["user"], []]
_NEXT_ROLES = {"system": ["user", "assistant"], "user": ["assistant"], "assistant": ["user"]}
_OTHER_NEXT_ROLES = ["assistant", "user"]
_CLOSING_TURNS = {"user": [], "assistant": ["user"]}  # and the messages before them


class EndOfTurn(NamedTuple):
    """The control tokens that end a message of one role; None where there is no such token.

    Attributes:
        last: after the last message of a conversation.
        earlier: after a message that another one follows.
    """

    last: str | None
    earlier: str | None


class LocatedMessage(NamedTuple):
    """Where contents of a message are in a rendering: the first character and the one after the last."""

    message: int
    start: int
    stop: int


def find_end_of_turn(
    role: str, render: Callable[[Sequence[Message]], str], control_tokens: re.Pattern[str]
) -> EndOfTurn | None:
    """How a template ends the messages of a role; None if it renders no such message.

    The first control token after a content ends its turn, unless it opens the next one. It cannot open anything where
    a conversation is over; hence after an earlier turn, only a token that a conversation can end in is an end.

    Args:
        role: of the messages.
        render: raises ChatError for a conversation that the template refuses.
        control_tokens: matches any of them.
    """
    followed = [
        [*before, role, next_role]
        for before in _BEFORE.get(role, _OTHER_BEFORE)
        for next_role in _NEXT_ROLES.get(role, _OTHER_NEXT_ROLES)
    ]
    last = _tokens_after([[*before, role] for before in _BEFORE.get(role, _OTHER_BEFORE)], -1, render, control_tokens)
    earlier = _tokens_after(followed, -2, render, control_tokens)
    if not last and not earlier:
        return None
    closing = last.union(
        *(_tokens_after([[*before, other]], -1, render, control_tokens) for other, before in _CLOSING_TURNS.items())
    )
    return EndOfTurn(_only(last), _only({token if token in closing else None for token in earlier}))


def find_turn_ends(tokens: Sequence[str | None], located: Sequence[LocatedMessage], text: str) -> list[int | None]:
    """The character at which the end-of-turn token of each message starts; None where there is none.

    A token belongs to the content before it. Where messages without content lie between two contents, the tokens
    found there are given out in order, and only if they are exactly those that the messages should have.

    Args:
        tokens: the end-of-turn token of each message.
        located: the messages that have contents in the rendering, from left to right.
        text: the rendering.
    """
    ends: list[int | None] = [None] * len(tokens)
    nothing_before = LocatedMessage(-1, 0, 0)
    nothing_after = LocatedMessage(len(tokens), len(text), len(text))
    for left, right in itertools.pairwise([nothing_before, *located, nothing_after]):
        expected = [index for index in range(max(left.message, 0), right.message) if tokens[index]]
        if not expected:
            continue
        pattern = "|".join(re.escape(token) for token in {tokens[index] for index in expected} if token)
        found = list(re.finditer(pattern, text[left.stop : right.start]))
        alone = left is not nothing_before and left.message == right.message - 1
        if alone or [match[0] for match in found] == [tokens[index] for index in expected]:
            for index, match in zip(expected, found, strict=False):
                ends[index] = left.stop + match.start()
    return ends


def _tokens_after(
    conversations: Sequence[Sequence[str]],
    position: int,
    render: Callable[[Sequence[Message]], str],
    control_tokens: re.Pattern[str],
) -> set[str | None]:
    """The first control token after the content at a position, up to the next content; None where there is no such.

    Conversations are given by their roles. Those that the template refuses, or whose content it leaves out or repeats,
    say nothing.
    """
    sentinel = unused_sentinel()
    tokens = set()
    for roles in conversations:
        try:
            gaps, numbers = split_at_sentinels(render(_small_conversation(roles, sentinel)), sentinel)
        except ChatError:
            continue
        number = len(roles) + position
        if numbers.count(number) == 1:
            found = control_tokens.search(gaps[numbers.index(number) + 1])
            tokens.add(found[0] if found else None)
    return tokens


def _small_conversation(roles: Sequence[str], sentinel: str) -> list[Message]:
    """Messages of some roles with numbered sentinels for contents; ``"tool request"`` is a tool call."""
    conversation: list[Message] = []
    for position, role in enumerate(roles):
        if role == "tool request":
            conversation.append(_TOOL_REQUEST)
            continue
        extra = {"name": "probe", "tool_call_id": TOOL_CALL["id"]} if role == "tool" else {}
        conversation.append({"role": role, "content": numbered_sentinel(sentinel, position), **extra})
    return conversation


def _only(tokens: set[str | None]) -> str | None:
    return next(iter(tokens)) if len(tokens) == 1 else None
