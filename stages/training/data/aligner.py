"""Training documents -> windows of teacher and student tokens, and what of the text they cover."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from alignment.byte_view import ByteView
from alignment.chat import AlignedChat, ChatError, ChatTemplate, TrainOn, align_chat
from alignment.chat.markup import render_tokens
from alignment.encoding import Encoding
from alignment.spans import align_encodings, mask_chunks
from stages.stage import StageError
from stages.training.data.account import Account, DocumentFacts
from stages.training.data.blocks import DocumentWindows
from stages.training.data.random_splits import RandomSplits, other_sizes
from stages.training.data.scored_text import ScoredDocuments
from stages.training.data.windows import Document, Window, chat_window, scored_bytes, text_windows

_SIDES = ("teacher", "student")


@dataclass
class DocumentAligner:
    """Aligns documents one at a time (a ``WindowMaker``).

    Attributes:
        teacher_directory, student_directory: where the two tokenizers lie.
        window_tokens: most tokens of a window, on either side.
        train_on: of conversations, the messages to learn from.
        scores: where the teacher's scores of the documents are found; None where a model scores them.
        splits: splits the student's tokens; the teacher reads what its own tokenizer gives.
    """

    teacher_directory: Path
    student_directory: Path
    window_tokens: int
    train_on: TrainOn = "assistant"
    scores: ScoredDocuments | None = None
    splits: RandomSplits | None = None

    @cached_property
    def views(self) -> tuple[ByteView, ByteView]:
        """Teacher and student tokenizer."""
        student = ByteView.from_tokenizer(self.student_directory)
        if self.scores is not None:
            return self.scores.teacher_view(), student
        same = self.teacher_directory == self.student_directory
        return student if same else ByteView.from_tokenizer(self.teacher_directory), student

    @cached_property
    def templates(self) -> tuple[ChatTemplate, ChatTemplate]:
        """Teacher and student chat template; only conversations need them."""
        directories = {"teacher": self.teacher_directory, "student": self.student_directory}
        return tuple(_template(side, directory) for side, directory in directories.items())

    def prepare(self) -> None:
        """Load the tokenizers."""
        _, student = self.views
        if self.splits is not None:
            self.splits.prepare(student)

    def __call__(self, document: Document, number: int, epoch: int) -> list[Window]:
        """The windows of one document; its number and the epoch make a difference to ``splits`` alone.

        Raises:
            StageError: a conversation cannot be rendered by both templates, or its contents not be found; or there
                are no scores of the document where there should be.
        """
        return list(self.make(document, number, epoch).windows)

    def make(self, document: Document, number: int, epoch: int, done: float = 0.0) -> DocumentWindows:
        """The same, with what there is to say of the document: ``bytes`` are those of its text, without a prompt, or of
        the messages to learn from, and ``aligned_bytes`` those of them in chunks; of conversations, what of them cannot
        be scored; and of ``splits``, what they count.

        Raises:
            StageError: as above.
        """
        place = (number, epoch, done)
        if document.messages is not None:
            return self._make_chat(document, place)
        teacher, student = self.views
        theirs = teacher.encode(document.text, exact=False)
        ours, split_sizes = self._split_text(
            document.text, theirs if teacher is student else student.encode(document.text, exact=False), place
        )
        encodings = theirs, ours
        chunks, context_bytes, first_entry = align_encodings(*encodings), document.context_bytes, None
        if self.scores is not None:
            scored = self.scores.text(document, encodings[0])
            chunks, first_entry = mask_chunks(chunks, teacher=scored.unscored), scored.first_entry
            context_bytes = max(context_bytes, scored.context_bytes)
        windows = text_windows(teacher, student, encodings, chunks, self.window_tokens, context_bytes, first_entry)
        sizes = {
            "bytes": chunks.text_bytes - document.context_bytes,
            "aligned_bytes": scored_bytes(chunks, document.context_bytes),
            **split_sizes,
        }
        rewritten = tuple(side for side, encoding in zip(_SIDES, encodings, strict=True) if not encoding.exact)
        return DocumentWindows(windows, DocumentFacts(document.id, document.domain, sizes, rewritten))

    def _split_text(
        self, text: str, encoding: Encoding, place: tuple[int, int, float]
    ) -> tuple[Encoding, dict[str, int]]:
        """The student's encoding of a text after its splits, and what they count."""
        if self.splits is None:
            return encoding, {}
        return self.splits.split(text, encoding, lambda: self.views[1].words(text), place, None)

    def _split_chat(self, document: Document, place: tuple[int, int, float]) -> tuple[Encoding | None, dict[str, int]]:
        """The student's tokens of a conversation after the splits of its contents; None for those without splits."""
        if self.splits is None:
            return None, {}
        student, template = self.views[1], self.templates[1]
        text, encoding, markup = render_tokens(student, template, document.messages, document.tools)
        return self.splits.split(text, encoding, lambda: student.words(text, rendered=True), place, markup)

    def _make_chat(self, document: Document, place: tuple[int, int, float]) -> DocumentWindows:
        if self.scores is not None:
            self.scores.check_conversations(document)
        try:
            ours, split_sizes = self._split_chat(document, place)
            chat = align_chat(
                *zip(self.views, self.templates, strict=True),
                document.messages,
                tools=document.tools,
                train_on=self.train_on,
                student_encoding=ours,
            )
        except ChatError as error:
            raise StageError(f"document {document.id}: {error}") from None
        window = chat_window(chat, self.window_tokens)
        if self.scores is not None and window is not None:
            first_entry = self.scores.conversation(document, chat.teacher.text, len(window.teacher.ids))
            window = replace(window, teacher=replace(window.teacher, first_entry=first_entry))
        facts = _chat_facts(document, chat, window, split_sizes)
        return DocumentWindows([] if window is None else [window], facts)

    def describe(self, account: Account) -> dict[str, Any]:
        """What was aligned, as JSON values.

        ``bytes`` and ``aligned_bytes`` are those of ``make``. ``rewritten`` counts for each side the documents that its
        tokenizer does not reproduce, names the first, and says what it does to text: chunks that hold rewritten text
        are left out of every loss. ``chat`` counts what of conversations cannot be scored. ``splits`` says what was
        split. ``warnings`` says what of all this a person should be told.
        """
        described = {} if self.splits is None else self.splits.describe(account.sizes)
        return {
            "documents": account.documents,
            "bytes": account.sizes["bytes"],
            "aligned_bytes": account.sizes["aligned_bytes"],
            "rewritten": {
                side: {
                    "documents": account.rewritten[side],
                    "first": account.first_rewritten.get(side, []),
                    "reasons": list(view.inexact_reasons),
                }
                for side, view in zip(_SIDES, self.views, strict=True)
            },
            "chat": {
                name: size
                for name, size in other_sizes(account.sizes).items()
                if name not in ("bytes", "aligned_bytes")
            },
            **described,
            "warnings": self._warnings(account),
        }

    def _warnings(self, account: Account) -> list[str]:
        total, sizes = account.documents, account.sizes
        lines = [
            f"the {side}'s tokenizer rewrites {account.rewritten[side]:,} of {total:,} documents, first {first[0]}; "
            "what it rewrites is not scored"
            for side, first in account.first_rewritten.items()
        ]
        if sizes["aligned_bytes"] < sizes["bytes"]:
            lines.append(f"{1 - sizes['aligned_bytes'] / sizes['bytes']:.2%} of the text is in no aligned chunk")
        if sizes["cut_conversations"]:
            lines.append(
                f"{sizes['cut_conversations']:,} of {sizes['conversations']:,} conversations are longer than "
                f"window_tokens ({self.window_tokens:,}); what lies beyond is not scored"
            )
        if sizes["tool_calls"]:
            lines.append(f"{sizes['tool_calls']:,} tool calls are context only: each template writes them its own way")
        return lines if self.splits is None else [*lines, *self.splits.warnings(sizes)]


def _chat_facts(
    document: Document, chat: AlignedChat, window: Window | None, split_sizes: Mapping[str, int]
) -> DocumentFacts:
    sizes = {
        **split_sizes,
        "conversations": 1,
        "bytes": chat.trained_bytes,
        "aligned_bytes": chat.chunks.chunk_bytes,
        "tool_calls": chat.tool_calls,
        "cut_conversations": int(window is None or window.num_chunks < chat.chunks.num_chunks),
    }
    rewritten = []
    for side, tokens in zip(_SIDES, (chat.teacher, chat.student), strict=True):
        sizes[f"{side}_not_rendered_bytes"] = tokens.not_rendered_bytes
        sizes[f"{side}_straddling_bytes"] = tokens.straddling_bytes
        sizes[f"{side}_missing_ends"] = len(tokens.missing_ends)
        if tokens.rewritten_bytes:
            rewritten.append(side)
    return DocumentFacts(document.id, document.domain, sizes, tuple(rewritten))


def _template(side: str, directory: Path) -> ChatTemplate:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.name_or_path = side  # what messages call it: a path into the store tells a user nothing
    try:
        return ChatTemplate(tokenizer)
    except ChatError as error:
        raise StageError(f"the data holds conversations, but the {side} cannot render them: {error}") from None
