"""Chat data: conversations in two models' own formats, aligned on what was said."""

from alignment.chat.align import AlignedChat, ChatSide, ChatTokens, TrainOn, align_chat
from alignment.chat.messages import ChatError
from alignment.chat.report import describe_chat_pair, describe_chat_template
from alignment.chat.roles import special_roles_and_turns
from alignment.chat.template import ChatTemplate

__all__ = [
    "AlignedChat",
    "ChatError",
    "ChatSide",
    "ChatTemplate",
    "ChatTokens",
    "TrainOn",
    "align_chat",
    "describe_chat_pair",
    "describe_chat_template",
    "special_roles_and_turns",
]
