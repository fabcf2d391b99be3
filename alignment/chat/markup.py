"""Which tokens of a rendered conversation are markup: all that a model must find as its template writes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from alignment.byte_view import ByteView
from alignment.chat.messages import Message, Tool, message_parts
from alignment.chat.template import ChatTemplate
from alignment.chat.tokens import ContentLayout, move_to_contents
from alignment.encoding import Encoding


class RenderedTokens(NamedTuple):
    """A conversation of T tokens as a model sees it.

    Attributes:
        text: the native rendering.
        encoding: of it, as ``ByteView.encode_rendered`` gives it.
        markup: bool [T], tokens that are no content of a message, or not that alone.
    """

    text: str
    encoding: Encoding
    markup: np.ndarray


def render_tokens(
    view: ByteView, template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Tool] | None = None
) -> RenderedTokens:
    """Render a conversation, tokenize it and tell contents from markup.

    Raises:
        ChatError: the conversation is malformed, or the template cannot render it.
    """
    chat = template.render(messages, tools=tools)
    encoding = view.encode_rendered(chat.text)
    layout = ContentLayout.from_parts(message_parts(messages), len(messages))
    tokens = move_to_contents(encoding, chat, layout)
    markup = (tokens.encoding.special | tokens.straddles)[~tokens.filler]
    return RenderedTokens(chat.text, encoding, markup)
