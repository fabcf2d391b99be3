"""Documents whose teacher scores are in a store: the teacher's tokens of each, and where their scores lie."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alignment.byte_view import ByteView
from alignment.encoding import Encoding
from stages.scoring.manifest import TOKENIZER
from stages.scoring.store import ScoreStore, Span, text_digest
from stages.stage import StageError
from stages.training.data.windows import Document

_WAY_OUT = (
    "the stage that scores and the one that trains must read the same documents: name the same stages under their "
    "`needs`, or run the scoring again"
)


class ScoredText(NamedTuple):
    """Where the scores of one document's n tokens lie.

    Attributes:
        first_entry: of its first token, special tokens before the text included.
        context_bytes: of the text, from its start, that were read but not scored.
        unscored: bool [n] without special tokens before the text, those of the other tokens that have no score.
    """

    first_entry: int
    context_bytes: int
    unscored: np.ndarray


@dataclass(frozen=True)
class ScoredDocuments:
    """Looks documents up in a store, and checks that its tokens are those that the tokenizer gives.

    Attributes:
        store: the scores.
    """

    store: ScoreStore

    @property
    def tokenizer_directory(self) -> Path | None:
        """The teacher's tokenizer; None where only the bytes of its tokens are known."""
        return None if self.store.manifest.tokenizer is None else self.store.directory / TOKENIZER

    def teacher_view(self) -> ByteView | ServedTokenizer:
        """The teacher's tokenizer, or what stands in for one that is not at hand.

        Raises:
            StageError: the tokenizer beside the scores is not the one that they were made with.
        """
        if self.tokenizer_directory is None:
            return ServedTokenizer(self.store)
        view = ByteView.from_tokenizer(self.tokenizer_directory)
        if view.fingerprint != self.store.manifest.tokenizer:
            raise StageError(
                f"{self.tokenizer_directory} is not the tokenizer with which the scores beside it were made: it was "
                "changed, or another version of transformers reads it differently; score the text again"
            )
        return view

    def text(self, document: Document, encoding: Encoding) -> ScoredText:
        """The scores of a text, which the teacher's tokenizer encodes as ``encoding``.

        Raises:
            StageError: the text was not scored, or its tokens were others.
        """
        span = self._find(document, text_digest(document.text))
        prefix = self.store.manifest.prefix_tokens
        lengths = self.store.slice("byte_lengths", span)[prefix:]
        if not np.array_equal(lengths, np.diff(encoding.byte_ends, prepend=0)):
            raise StageError(
                f"document {document.id}: the scores are those of {len(lengths):,} tokens, but the teacher's tokenizer "
                f"cuts the text into {len(encoding.ids):,} others, as another version of its library may do; score the "
                "text again"
            )
        unscored = np.isnan(self.store.slice("label_logp", span)[prefix:])
        leading = len(unscored) if unscored.all() else int(unscored.argmin())
        unscored[:leading] = False
        # A text's first token has no score whoever reads it, and that a window takes care of.
        context_bytes = int(lengths[:leading].sum()) if leading > 1 else 0
        return ScoredText(span.first, context_bytes, unscored)

    def check_conversations(self, document: Document) -> None:
        """Refuse a conversation where only the cuts of texts are known.

        Raises:
            StageError: the teacher's tokenizer and template are not at hand.
        """
        if self.tokenizer_directory is None:
            raise StageError(
                f"document {document.id} is a conversation, but imported scores do not say how the server's template "
                "renders one: import the scores of plain texts, or let `score` run the teacher here"
            )

    def conversation(self, document: Document, rendering: str, tokens: int) -> int:
        """The entry of a conversation's first token.

        Args:
            document: for messages.
            rendering: what the teacher's template makes of it.
            tokens: how many of its tokens are in a window.

        Raises:
            StageError: the conversation was not scored, or not to the end of the window.
        """
        span = self._find(document, text_digest(rendering, rendered=True))
        if span.count < tokens:
            raise StageError(
                f"document {document.id}: the first {span.count:,} tokens of the conversation are scored, but a window "
                f"holds {tokens:,}; raise window_tokens of the stage that scores, or lower it here"
            )
        return span.first

    def _find(self, document: Document, digest: int) -> Span:
        span = self.store.find(digest)
        if span is None:
            kind = "text" if document.messages is None else "conversation, as the teacher's template renders it,"
            raise StageError(f"document {document.id} has no scores: its {kind} is not one that was scored; {_WAY_OUT}")
        return span


@dataclass(frozen=True)
class ServedTokenizer:
    """A teacher's tokenizer of which only the cuts of the scored texts are known: what a server returned.

    Stands in for its ByteView where documents are aligned.
    """

    store: ScoreStore
    prefix_ids: list[int] = field(default_factory=list)
    inexact_reasons: list[str] = field(default_factory=list)

    def encode(self, text: str, *, exact: bool = True) -> Encoding:
        """The cuts of a scored text; ids are not known, and 0. Empty for a text that was not scored."""
        span = self.store.find(text_digest(text)) or Span(0, 0)
        lengths = self.store.slice("byte_lengths", span).astype(np.int64) if span.count else np.zeros(0, np.int64)
        return Encoding(
            ids=np.zeros(len(lengths), dtype=np.int32),
            byte_ends=np.cumsum(lengths),
            special=lengths == 0,
            boundary=np.ones(len(lengths), dtype=bool),
            verbatim=np.ones(len(lengths), dtype=bool),
            text_bytes=len(text.encode()),
        )
