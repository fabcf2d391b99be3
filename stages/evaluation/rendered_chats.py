"""Held-out conversations as each model's own chat template renders them: what is scored are their contents.

Templates differ, so the models do not read the same bytes; what is compared are bits per byte of the contents alone,
each in the markup that its model knows. A token that holds both markup and content counts as content.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alignment.byte_view import ByteView
from alignment.chat.messages import ChatError
from alignment.chat.template import ChatTemplate, RenderedChat
from alignment.tokenizer_facts import load_tokenizer
from stages.evaluation.text_start import TextStart
from stages.evaluation.windows import Conversation


@dataclass(frozen=True)
class ChatRow:
    """One conversation as one model reads it.

    Attributes:
        ids: int32 [T], the whole rendering, with what must stand before its first token if that is content.
        first_scored: index of the first token of a content.
        content: bool [T - first_scored], which of the tokens from there on hold content.
        content_bytes: UTF-8 bytes of the contents in the rendering.
    """

    ids: np.ndarray
    first_scored: int
    content: np.ndarray
    content_bytes: int


def render(conversations: Sequence[Conversation], tokenizer_directory: Path, view: ByteView) -> list[ChatRow | str]:
    """A row for every conversation, or why there is none.

    Raises:
        ChatError: the tokenizer has no chat template.
    """
    tokenizer = load_tokenizer(tokenizer_directory, trust_remote_code=False)
    template, start_ids = ChatTemplate.from_tokenizer(tokenizer), TextStart.of(tokenizer, view).start_ids
    rows: list[ChatRow | str] = []
    for conversation in conversations:
        try:
            rendered = template.render(conversation.messages, tools=conversation.tools)
            rows.append(_row(rendered, view, start_ids))
        except ChatError as error:
            rows.append(str(error))
    return rows


def _row(rendered: RenderedChat, view: ByteView, start_ids: Sequence[int]) -> ChatRow | str:
    encoding = view.encode_rendered(rendered.text)
    in_content = np.zeros(len(rendered.text.encode()) + 1, dtype=np.int64)
    for span in rendered.spans:
        in_content[span.rendered_start + 1 : span.rendered_stop + 1] = 1
    content_bytes = int(in_content.sum())
    if content_bytes == 0:
        return "its contents are empty in the rendering"
    seen = np.cumsum(in_content)
    content = np.diff(seen[encoding.byte_ends], prepend=0) > 0
    if seen[encoding.byte_ends[-1]] != content_bytes or not (encoding.verbatim & encoding.boundary)[content].all():
        return f"tokenizer {view.name!r} does not reproduce its contents"
    first = int(np.argmax(content))
    prefix = start_ids if first == 0 else ()
    if first == 0 and not prefix:
        return "its first token has no probability: nothing stands before it"
    ids = np.concatenate([np.array(prefix, dtype=np.int32), encoding.ids])
    return ChatRow(ids, len(prefix) + first, content[first:], content_bytes)
