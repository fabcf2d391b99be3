"""What two tokenizers' chat templates do with a conversation, found by rendering small ones: for the audit."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.chat.messages import ChatError, Message
from alignment.chat.template import ChatTemplate
from alignment.chat.turns import TOOL_CALL

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("system", "user", "assistant", "tool")

_USER, _ANSWER = "Qxzuser", "Qxzanswer"
_TOOL = {
    "type": "function",
    "function": {"name": "qxztool", "description": "", "parameters": {"type": "object", "properties": {}}},
}


def describe_chat_pair(
    teacher: PreTrainedTokenizerBase | str | Path, student: PreTrainedTokenizerBase | str | Path
) -> dict[str, Any]:
    """The chat templates of a pair as plain JSON values, and in ``notes`` what of a conversation cannot be learned.

    Returns:
        ``teacher`` and ``student`` as ``describe_chat_template`` has them, ``usable`` (whether chat data can be used)
        and ``notes``, a list of sentences.
    """
    sides = {"teacher": describe_chat_template(teacher), "student": describe_chat_template(student)}
    usable = all(side["has_template"] and any(side["roles"].values()) for side in sides.values())
    return {**sides, "usable": usable, "notes": [note for name, side in sides.items() for note in _notes(name, side)]}


def describe_chat_template(tokenizer: PreTrainedTokenizerBase | str | Path) -> dict[str, Any]:
    """What a tokenizer's chat template does, as plain JSON values.

    Returns:
        ``has_template``, and if it has one: ``roles`` (which are rendered), ``end_of_turn`` (control token or None by
        role), ``injected_text`` (what it puts before a conversation by itself, such as a system prompt, or None),
        ``trims_content``, ``reasoning`` (the turns of which it renders ``reasoning_content``: ``"all"``, ``"last"`` or
        ``"none"``), ``drops_earlier_think_blocks``, ``supports_tools`` and ``supports_tool_calls``.
    """
    try:
        template = ChatTemplate.from_tokenizer(tokenizer)
    except ChatError:
        return {"has_template": False}
    return {
        "has_template": True,
        "roles": {role: template.accepts(role) for role in ROLES},
        "end_of_turn": {role: template.end_of_turn(role, last=role == "assistant") for role in ROLES},
        "injected_text": _injected_text(template),
        "trims_content": _trims_content(template),
        "reasoning": _reasoning(template),
        "drops_earlier_think_blocks": _drops_earlier_think_blocks(template),
        "supports_tools": _supports_tools(template),
        "supports_tool_calls": _supports_tool_calls(template),
    }


def _notes(name: str, side: dict[str, Any]) -> list[str]:
    if not side["has_template"]:
        return [f"The {name}'s tokenizer has no chat template: use plain text, not chat data."]
    notes = []
    if not any(side["roles"].values()):
        return [f"The {name}'s template renders no conversation: correct it, or use plain text."]
    if refused := [role for role, accepted in side["roles"].items() if not accepted]:
        notes.append(f"The {name}'s template has no {' or '.join(refused)} messages.")
    if side["end_of_turn"]["assistant"] is None:
        notes.append(f"The {name}'s template ends no answer with a control token: ends of turns are not learned.")
    if side["injected_text"] is not None:
        notes.append(f"The {name}'s template adds text of its own before a conversation, unscored.")
    if side["trims_content"]:
        notes.append(f"The {name}'s template trims white space around contents: it is not learned.")
    if side["drops_earlier_think_blocks"] or side["reasoning"] == "last":
        notes.append(f"The {name}'s template drops the reasoning of earlier turns: it is not learned.")
    if not side["supports_tool_calls"]:
        notes.append(f"The {name}'s template leaves tool calls out: conversations with tool calls are refused.")
    return notes


def _answer(text: str = _ANSWER, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def _user(text: str = _USER) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _injected_text(template: ChatTemplate) -> str | None:
    """What stands before the first user turn and not before the second, without control tokens."""
    try:
        text = template.apply([_user(_USER + "1"), _answer(), _user(_USER + "2")])
    except ChatError:
        return None
    first = template.control_tokens.sub("", text.partition(_USER + "1")[0])
    second = template.control_tokens.sub("", text.partition(_ANSWER)[2].partition(_USER + "2")[0])
    pairs = zip(reversed(first), reversed(second), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return first[: len(first) - shared].strip() or None


def _trims_content(template: ChatTemplate) -> bool:
    return not _renders_whole(template, [_user(f"\n {_USER} \n"), _answer(f"\n {_ANSWER} \n")], (0, 1))


def _reasoning(template: ChatTemplate) -> str:
    reasoned = _answer(reasoning_content="Qxzreason")
    try:
        spans = template.render([_user(), reasoned, _user(), reasoned]).spans
    except ChatError:
        return "none"
    turns = {span.message for span in spans if span.part == "reasoning"}
    return "all" if turns == {1, 3} else "last" if turns == {3} else "none"


def _drops_earlier_think_blocks(template: ChatTemplate) -> bool:
    thoughtful = _answer(f"<think>\nQxzreason\n</think>\n\n{_ANSWER}")
    return not _renders_whole(template, [_user(), thoughtful, _user(), _answer()], (1,))


def _renders_whole(template: ChatTemplate, conversation: Sequence[Message], indices: Sequence[int]) -> bool:
    """Whether the contents of some messages come out in full; also if the template refuses the conversation."""
    try:
        spans = template.render(conversation).spans
    except ChatError:
        return True
    rendered_bytes = [sum(span.stop - span.start for span in spans if span.message == index) for index in indices]
    return rendered_bytes == [len(conversation[index]["content"].encode()) for index in indices]


def _supports_tools(template: ChatTemplate) -> bool:
    try:
        return "qxztool" in template.apply([_user(), _answer()], tools=[_TOOL])
    except ChatError:
        return False


def _supports_tool_calls(template: ChatTemplate) -> bool:
    call = {**TOOL_CALL, "function": {"name": "qxztool", "arguments": {}}}
    try:
        return "qxztool" in template.apply([_user(), _answer("", tool_calls=[call])])
    except ChatError:
        return False
