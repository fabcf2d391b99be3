"""A tokenizer's own chat template: what it renders, where the contents are in it, and how it ends a turn."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jinja2

from alignment.chat.contents import locate_contents
from alignment.chat.messages import (
    ChatError,
    Message,
    PartName,
    Tool,
    check_control_tokens,
    check_messages,
    message_parts,
)
from alignment.chat.tools import check_tool_calls
from alignment.chat.turns import EndOfTurn, LocatedMessage, find_end_of_turn, find_turn_ends

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ContentSpan(NamedTuple):
    """A stretch of a message's text in a rendering, in UTF-8 bytes.

    Attributes:
        message: index of the message.
        part: which text of the message.
        start, stop: the stretch in that text's own bytes.
        rendered_start: where it starts in the rendering's bytes.
    """

    message: int
    part: PartName
    start: int
    stop: int
    rendered_start: int

    @property
    def rendered_stop(self) -> int:
        return self.rendered_start + self.stop - self.start


class RenderedChat(NamedTuple):
    """A conversation as a model sees it.

    Attributes:
        text: the native rendering.
        spans: where contents are in it, from left to right, apart from each other. What the template drops (the
            reasoning of earlier turns, outer white space) has no span.
        ends: for each message the byte at which its end-of-turn token starts; None where there is none.
    """

    text: str
    spans: list[ContentSpan]
    ends: list[int | None]


class ChatTemplate:
    """The chat template of one tokenizer.

    Attributes:
        name: what to call the tokenizer in messages.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.name = str(tokenizer.name_or_path or type(tokenizer).__name__)
        if not tokenizer.chat_template:
            raise ChatError(
                f"tokenizer {self.name!r} has no chat template, so it cannot be used with chat data: take the "
                "tokenizer of an instruct model, add a chat_template.jinja to its directory, or train on plain text"
            )
        self._tokenizer = tokenizer
        self._ends_of_turns: dict[str, EndOfTurn | None] = {}

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase | str | Path) -> ChatTemplate:
        """The chat template of a Hugging Face tokenizer, given as an object, a directory or a hub id.

        Raises:
            ChatError: it has no chat template.
        """
        if isinstance(tokenizer, str | Path):
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        return cls(tokenizer)

    def apply(
        self, messages: Sequence[Message], *, tools: Sequence[Tool] | None = None, add_generation_prompt: bool = False
    ) -> str:
        """The text that the template makes of a conversation.

        Raises:
            ChatError: the template refuses the conversation; has the template's own message.
        """
        try:
            return self._apply(messages, tools, add_generation_prompt)
        except Exception as error:  # a template is somebody else's program: it may raise anything
            index = self._first_refused(messages, tools)
            raise ChatError(
                f"the chat template of tokenizer {self.name!r} refuses it: {error}",
                message_index=index,
                role=messages[index]["role"],
            ) from error

    def render(
        self, messages: Sequence[Message], *, tools: Sequence[Tool] | None = None, add_generation_prompt: bool = False
    ) -> RenderedChat:
        """Render a conversation, and locate its contents and the ends of its turns.

        Raises:
            ChatError: the conversation is malformed, has the string of a control token in a content, is refused by
                the template, or is rendered so that a content cannot be located.
        """
        check_messages(messages)
        check_control_tokens(messages, tools, self.control_tokens, self.name)
        apply = partial(self.apply, tools=tools, add_generation_prompt=add_generation_prompt)
        check_tool_calls(messages, apply, self.name)
        text, text_spans = locate_contents(messages, apply, self._literals, self.name)
        parts = message_parts(messages)
        ends = find_turn_ends(
            [
                self.end_of_turn(message["role"], last=index == len(messages) - 1)
                for index, message in enumerate(messages)
            ],
            [LocatedMessage(parts[span.part].message, span.rendered_start, span.rendered_stop) for span in text_spans],
            text,
        )
        rendered_bytes = _ByteOffsets(text)
        part_bytes = [_ByteOffsets(part.text) for part in parts]
        spans = [
            ContentSpan(
                parts[index].message,
                parts[index].name,
                part_bytes[index][start],
                part_bytes[index][stop],
                rendered_bytes[rendered_start],
            )
            for index, start, stop, rendered_start in text_spans
        ]
        return RenderedChat(text, spans, [None if end is None else rendered_bytes[end] for end in ends])

    def end_of_turn(self, role: str, *, last: bool = False) -> str | None:
        """The control token that the template puts after a message of a role; None where there is no such token.

        Args:
            role: of the message.
            last: the message is the last of its conversation, where some templates use another token.
        """
        tokens = self._probe(role)
        return None if tokens is None else tokens.last if last else tokens.earlier

    def accepts(self, role: str) -> bool:
        """Whether the template renders the content of a message of this role in any small conversation."""
        return self._probe(role) is not None

    def _probe(self, role: str) -> EndOfTurn | None:
        if role not in self._ends_of_turns:
            self._ends_of_turns[role] = find_end_of_turn(role, self.apply, self.control_tokens)
        return self._ends_of_turns[role]

    def _apply(self, messages: Sequence[Message], tools: Sequence[Tool] | None, add_generation_prompt: bool) -> str:
        return self._tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tools=list(tools) if tools else None,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )

    def _first_refused(self, messages: Sequence[Message], tools: Sequence[Tool] | None) -> int:
        """The last message of the shortest start of a conversation that the template refuses."""
        for stop in range(1, len(messages)):
            try:
                self._apply(messages[:stop], tools, False)
            except Exception:
                return stop - 1
        return len(messages) - 1

    @cached_property
    def control_tokens(self) -> re.Pattern[str]:
        """Any of the strings that the tokenizer reads as special tokens; nothing if there are none."""
        declared = {token.content for token in self._tokenizer.added_tokens_decoder.values() if token.special}
        tokens = sorted(declared.union(self._tokenizer.all_special_tokens), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, tokens)) or "(?!)")

    @cached_property
    def _literals(self) -> list[str]:
        """The template's string literals, which it may look for in a content.

        Words are left out: templates compare roles with them.

        Raises:
            ChatError: the template is no valid Jinja template.
        """
        templates = self._tokenizer.chat_template
        sources = templates.values() if isinstance(templates, dict) else [templates]
        try:
            literals = {literal for source in sources for literal in _string_literals(source)}
        except jinja2.TemplateSyntaxError as error:
            raise ChatError(
                f"the chat template of tokenizer {self.name!r} is no valid Jinja template: line {error.lineno}: "
                f"{error.message}; correct it where the tokenizer comes from"
            ) from None
        return sorted(literal for literal in literals if re.search(r"[^\w\s]", literal))


def _string_literals(source: str) -> Iterator[str]:
    tokens = jinja2.Environment().lexer.tokenize(source)
    return (token.value for token in tokens if token.type == "string")


class _ByteOffsets:
    """The byte offsets of a text's characters, looked up from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._character = 0
        self._byte = 0

    def __getitem__(self, character: int) -> int:
        if character < self._character:
            self._character = self._byte = 0
        self._byte += len(self._text[self._character : character].encode())
        self._character = character
        return self._byte
