"""A document as the teacher reads it: its token ids, the bytes that they stand for, and the passes in which it reads.

Everything that scores a text, or looks scores up, goes through here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from alignment.byte_view import ByteView
from alignment.chat import ChatError, ChatTemplate
from stages.scoring.store import text_digest
from stages.stage import StageError
from stages.training.data.windows import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TeacherText:
    """One document of n tokens.

    Attributes:
        digest: of the text, or of the rendered conversation.
        ids: int64 [n], special tokens before the text included.
        byte_lengths: int64 [n], bytes of the text, or of the rendering, that each token stands for.
        prefix: number of special tokens before the text.
    """

    digest: int
    ids: np.ndarray
    byte_lengths: np.ndarray
    prefix: int


@dataclass(frozen=True)
class Pass:
    """A run of a document's tokens that the teacher reads at once: T tokens.

    Attributes:
        ids: int64 [T].
        first: the entry, in its shard, of the first token that the pass scores.
        context: number of tokens before that one.
    """

    ids: np.ndarray
    first: int
    context: int


@dataclass
class TeacherReader:
    """Reads documents with a teacher's tokenizer.

    Attributes:
        view: the tokenizer.
        tokenizer: the same as transformers loads it, with its chat template.
        conversation_tokens: a longer conversation is cut: who joins one in the middle has not seen its markup.
    """

    view: ByteView
    tokenizer: PreTrainedTokenizerBase
    conversation_tokens: int

    @cached_property
    def template(self) -> ChatTemplate:
        """The teacher's chat template; only conversations need one."""
        return ChatTemplate(self.tokenizer)

    def read(self, document: Document) -> TeacherText:
        """A document's tokens.

        Raises:
            StageError: a conversation cannot be rendered; names the document.
        """
        if document.messages is not None:
            try:
                text = self.template.render(document.messages, tools=document.tools).text
            except ChatError as error:
                raise StageError(f"document {document.id}: {error}") from None
            encoding, prefix = self.view.encode_rendered(text), []
        else:
            text = document.text
            encoding, prefix = self.view.encode(text, exact=False), self.view.prefix_ids
        kept = slice(None if document.messages is None else self.conversation_tokens)
        lengths = np.diff(encoding.byte_ends, prepend=0)
        return TeacherText(
            text_digest(text, rendered=document.messages is not None),
            np.concatenate([np.asarray(prefix, dtype=np.int64), encoding.ids[kept].astype(np.int64)]),
            np.concatenate([np.zeros(len(prefix), dtype=np.int64), lengths[kept]]),
            len(prefix),
        )


def passes_of(text: TeacherText, first: int, window: int, context: int) -> list[Pass]:
    """The passes over a text: each token is scored in one of them, after at least ``context`` tokens where there are.

    Special tokens that stand before the text stand before every pass, as before every window in training.

    Args:
        text: what is read.
        first: the entry of its first token.
        window: most tokens of a pass.
        context: tokens of the text that a pass repeats.
    """
    prefix, ids = text.ids[: text.prefix], text.ids[text.prefix :]
    passes = [Pass(text.ids[:window], first, 0)] if len(text.ids) else []
    done = window - len(prefix)
    while done < len(ids):
        start = done - context
        stop = start + window - len(prefix)
        piece = np.concatenate([prefix, ids[start:stop]])
        passes.append(Pass(piece, first + len(prefix) + done, len(prefix) + context))
        done = stop
    return passes


def batches(passes: Sequence[Pass], batch_tokens: int) -> list[list[Pass]]:
    """Passes of like length together, longest first, so that one that does not fit into memory fails at once.

    A batch has at most ``batch_tokens`` tokens with padding, or a single pass.
    """
    ordered = sorted(passes, key=lambda each: -len(each.ids))
    groups = []
    while ordered:
        size = max(1, batch_tokens // len(ordered[0].ids))
        groups.append(ordered[:size])
        ordered = ordered[size:]
    return groups
