"""One conversation in two chat formats -> two token sequences, and their chunks.

Each model sees a conversation in its native rendering: other markup, other end-of-turn token, perhaps a system prompt
of its own. What the two have in common is the contents of the messages, byte for byte, and that turns end. Tokens of
contents are aligned on the bytes of all contents put together, ends of turns are matched message by message, and all
other markup is left unscored (alm.md §1.7 and §7, numbers 1 to 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from alignment.byte_view import ByteView
from alignment.chat.messages import Message, Tool, check_messages, message_parts
from alignment.chat.template import ChatTemplate, RenderedChat
from alignment.chat.tokens import ContentLayout, ContentTokens, move_to_contents
from alignment.chunk_alignment import ChunkAlignment, mask_chunks
from alignment.encoding import Encoding
from alignment.spans import align_encodings

TrainOn = Literal["assistant", "all", "last"]
"""The messages to learn from: every assistant turn, every message, or the last assistant turn."""

ChatSide = tuple[ByteView, ChatTemplate]
"""A model's side of a chat: its tokenizer and its template."""


@dataclass(frozen=True)
class ChatTokens:
    """A conversation as one model sees it: T tokens.

    Attributes:
        text: the native rendering.
        ids: int32 [T], exactly what the model's tokenizer makes of its rendering, or what the model itself wrote of it.
        message: int32 [T], the message of whose content (or as whose end-of-turn token) a token is part; -1 for markup.
        trained: bool [T], tokens of contents and ends of turns that are to be learned.
        lengths: int64 [T], bytes of content that each token stands for; 0 for markup.
        not_rendered_bytes: content to be learned that the template drops (outer white space, earlier reasoning) or
            writes as JSON.
        straddling_bytes: content to be learned in tokens that hold markup too.
        rewritten_bytes: content to be learned that the tokenizer rewrites (case, Unicode normal form, ``<unk>``).
        missing_ends: messages to be learned whose turn does not end in a control token of its own.
    """

    text: str
    ids: np.ndarray
    message: np.ndarray
    trained: np.ndarray
    lengths: np.ndarray
    not_rendered_bytes: int
    straddling_bytes: int
    rewritten_bytes: int
    missing_ends: tuple[int, ...]


@dataclass(frozen=True)
class AlignedChat:
    """One conversation in two formats, and their alignment.

    Attributes:
        teacher, student: the two token sequences, n and m tokens long.
        chunks: of the messages to be learned, C of them. Offsets count the bytes of all contents, one after the other.
        chunk_message: int32 [C], the message of each chunk; never decreases.
        chunk_is_end: bool [C], chunks that are an end of turn on both sides.
        trained_bytes: bytes of content to be learned.
        tool_calls: number of tool calls, which each template writes in its own way and which are not scored.
    """

    teacher: ChatTokens
    student: ChatTokens
    chunks: ChunkAlignment
    chunk_message: np.ndarray
    chunk_is_end: np.ndarray
    trained_bytes: int
    tool_calls: int

    @property
    def coverage(self) -> float:
        """Share of the content to be learned that is in chunks, 1.0 if there is none."""
        return self.chunks.chunk_bytes / self.trained_bytes if self.trained_bytes else 1.0


def align_chat(
    teacher: ChatSide,
    student: ChatSide,
    messages: Sequence[Message],
    *,
    tools: Sequence[Tool] | None = None,
    train_on: TrainOn = "assistant",
    teacher_encoding: Encoding | None = None,
    student_encoding: Encoding | None = None,
) -> AlignedChat:
    """Render a conversation for both models, and align the two token sequences on the contents of its messages.

    Every chunk has equal bytes of one message on both sides, or is the end of a turn on both. A chunk is left out when
    a token in it holds markup too, when one of the templates drops some of its bytes, or when a tokenizer rewrites it.

    Args:
        teacher, student: each side's tokenizer and template.
        messages: mappings with ``role`` and ``content``, and ``reasoning_content`` and ``tool_calls`` where wanted.
        tools: JSON schemas of tools, which templates write as markup.
        train_on: the messages to learn from.
        teacher_encoding, student_encoding: a model's tokens of its rendering, where they are not those that its
            tokenizer gives, as of an answer that the student sampled.

    Raises:
        ChatError: the conversation is malformed, holds the string of a control token of either tokenizer, or cannot be
            rendered or located by either template; names the message and its role.
        ValueError: ``train_on`` is unknown.
    """
    check_messages(messages)
    trained = _trained_messages([message["role"] for message in messages], train_on)
    layout = ContentLayout.from_parts(message_parts(messages), len(messages))
    sides = []
    for (view, template), given in ((teacher, teacher_encoding), (student, student_encoding)):
        chat = template.render(messages, tools=tools)
        encoding = view.encode_rendered(chat.text) if given is None else given
        sides.append((chat, move_to_contents(encoding, chat, layout)))
    (teacher_chat, teacher_tokens), (student_chat, student_tokens) = sides

    chunks = align_encodings(
        teacher_tokens.encoding,
        student_tokens.encoding,
        teacher_events=teacher_tokens.events,
        student_events=student_tokens.events,
    )
    chunks = mask_chunks(
        chunks, teacher=~_of_message(trained, teacher_tokens), student=~_of_message(trained, student_tokens)
    )
    return AlignedChat(
        teacher=_summary(teacher_chat, teacher_tokens, trained),
        student=_summary(student_chat, student_tokens, trained),
        chunks=replace(
            chunks,
            teacher_chunk=chunks.teacher_chunk[~teacher_tokens.filler],
            student_chunk=chunks.student_chunk[~student_tokens.filler],
        ),
        chunk_message=_chunk_messages(chunks, teacher_tokens),
        chunk_is_end=chunks.chunk_starts == chunks.chunk_ends,
        trained_bytes=int(np.diff(layout.message_ends, prepend=0)[trained].sum()),
        tool_calls=sum(len(message.get("tool_calls") or ()) for message in messages),
    )


def _trained_messages(roles: Sequence[str], train_on: TrainOn) -> np.ndarray:
    """bool [M]: the messages to be learned."""
    if train_on not in get_args(TrainOn):
        raise ValueError(f"train_on is {train_on!r}; expected one of {', '.join(map(repr, get_args(TrainOn)))}")
    if train_on == "all":
        return np.ones(len(roles), dtype=bool)
    trained = np.array([role == "assistant" for role in roles])
    if train_on == "last":
        return np.arange(len(roles)) == max(np.flatnonzero(trained), default=-1)
    return trained


def _of_message(flags: np.ndarray, tokens: ContentTokens) -> np.ndarray:
    """bool [T]: the flag of each token's message; False for markup."""
    return np.append(flags, False)[tokens.message]  # the -1 of markup reads the entry at the end


def _chunk_messages(chunks: ChunkAlignment, teacher: ContentTokens) -> np.ndarray:
    """int32 [C]: the message of each chunk, the same on both sides."""
    messages = np.full(chunks.num_chunks, -1, dtype=np.int32)
    scored = chunks.teacher_chunk >= 0
    messages[chunks.teacher_chunk[scored]] = teacher.message[scored]
    return messages


def _summary(chat: RenderedChat, tokens: ContentTokens, trained: np.ndarray) -> ChatTokens:
    real = ~tokens.filler
    learned = _of_message(trained, tokens)
    lengths = np.where(learned, tokens.byte_lengths, 0)
    rewritten = ~tokens.encoding.verbatim & ~tokens.straddles & real
    ended = set(tokens.events.tolist())
    return ChatTokens(
        text=chat.text,
        ids=tokens.encoding.ids[real],
        message=tokens.message[real],
        trained=learned[real],
        lengths=tokens.byte_lengths[real],
        not_rendered_bytes=int(lengths[tokens.filler].sum()),
        straddling_bytes=int(lengths[tokens.straddles].sum()),
        rewritten_bytes=int(lengths[rewritten].sum()),
        missing_ends=tuple(message for message in np.flatnonzero(trained).tolist() if message not in ended),
    )
