"""Training documents -> windows of teacher and student tokens, and an account of what of the text they cover."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from alignment.byte_view import ByteView
from alignment.chat import AlignedChat, ChatError, ChatTemplate, TrainOn, align_chat
from alignment.spans import align_encodings
from stages.stage import StageError
from stages.training.windows import Document, Window, chat_window, text_windows

_NAMED_DOCUMENTS = 5


@dataclass
class DocumentAligner:
    """Aligns documents one at a time; every document enters the account once, however often it is read.

    Attributes:
        teacher_directory, student_directory: where the two tokenizers lie.
        window_tokens: most tokens of a window, on either side.
        train_on: of conversations, the messages to learn from.
    """

    teacher_directory: Path
    student_directory: Path
    window_tokens: int
    train_on: TrainOn = "assistant"
    _seen: set[str] = field(default_factory=set, init=False)
    _sizes: Counter[str] = field(default_factory=Counter, init=False)
    _rewritten: dict[str, list[str]] = field(default_factory=lambda: {"teacher": [], "student": []}, init=False)

    @cached_property
    def views(self) -> tuple[ByteView, ByteView]:
        """Teacher and student tokenizer."""
        return ByteView.from_tokenizer(self.teacher_directory), ByteView.from_tokenizer(self.student_directory)

    @cached_property
    def templates(self) -> tuple[ChatTemplate, ChatTemplate]:
        """Teacher and student chat template; only conversations need them."""
        directories = {"teacher": self.teacher_directory, "student": self.student_directory}
        return tuple(_template(side, directory) for side, directory in directories.items())

    def __call__(self, document: Document, number: int, epoch: int) -> list[Window]:
        """The windows of one document; its number and the epoch make no difference.

        Raises:
            StageError: a conversation cannot be rendered by both templates, or its contents not be found.
        """
        if document.messages is not None:
            return self._chat_windows(document)
        teacher, student = self.views
        encodings = teacher.encode(document.text, exact=False), student.encode(document.text, exact=False)
        chunks = align_encodings(*encodings)
        if self._is_new(document):
            self._sizes.update(bytes=chunks.text_bytes, aligned_bytes=chunks.chunk_bytes)
            for side, encoding in zip(self._rewritten, encodings, strict=True):
                if not encoding.exact:
                    self._rewritten[side].append(document.id)
        return text_windows(teacher, student, encodings, chunks, self.window_tokens)

    def _chat_windows(self, document: Document) -> list[Window]:
        try:
            chat = align_chat(
                *zip(self.views, self.templates, strict=True),
                document.messages,
                tools=document.tools,
                train_on=self.train_on,
            )
        except ChatError as error:
            raise StageError(f"document {document.id}: {error}") from None
        window = chat_window(chat, self.window_tokens)
        if self._is_new(document):
            self._count_chat(document, chat, window)
        return [] if window is None else [window]

    def _count_chat(self, document: Document, chat: AlignedChat, window: Window | None) -> None:
        self._sizes.update(
            conversations=1,
            bytes=chat.trained_bytes,
            aligned_bytes=chat.chunks.chunk_bytes,
            tool_calls=chat.tool_calls,
            cut_conversations=window is None or window.num_chunks < chat.chunks.num_chunks,
        )
        for side, tokens in (("teacher", chat.teacher), ("student", chat.student)):
            self._sizes[f"{side}_not_rendered_bytes"] += tokens.not_rendered_bytes
            self._sizes[f"{side}_straddling_bytes"] += tokens.straddling_bytes
            self._sizes[f"{side}_missing_ends"] += len(tokens.missing_ends)
            if tokens.rewritten_bytes:
                self._rewritten[side].append(document.id)

    def _is_new(self, document: Document) -> bool:
        known = document.id in self._seen
        self._seen.add(document.id)
        return not known

    def account(self) -> dict[str, Any]:
        """What was aligned so far, as JSON values.

        ``bytes`` are those of texts and of the messages to learn from. ``rewritten`` counts for each side the documents
        that its tokenizer does not reproduce, names the first, and says what it does to text: chunks that hold
        rewritten text are left out of every loss. ``chat`` counts what of conversations cannot be scored.
        ``warnings`` says what of all this a person should be told.
        """
        return {
            "documents": len(self._seen),
            "bytes": self._sizes["bytes"],
            "aligned_bytes": self._sizes["aligned_bytes"],
            "rewritten": {
                side: {
                    "documents": len(documents),
                    "first": documents[:_NAMED_DOCUMENTS],
                    "reasons": list(view.inexact_reasons),
                }
                for (side, documents), view in zip(self._rewritten.items(), self.views, strict=True)
            },
            "chat": {name: int(size) for name, size in self._sizes.items() if name not in ("bytes", "aligned_bytes")},
            "warnings": self._warnings(),
        }

    def _warnings(self) -> list[str]:
        total, sizes = len(self._seen), self._sizes
        lines = [
            f"the {side}'s tokenizer rewrites {len(documents):,} of {total:,} documents, first {documents[0]}; what it "
            "rewrites is not scored"
            for side, documents in self._rewritten.items()
            if documents
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
        return lines


def _template(side: str, directory: Path) -> ChatTemplate:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.name_or_path = side  # what messages call it: a path into the store tells a user nothing
    try:
        return ChatTemplate(tokenizer)
    except ChatError as error:
        raise StageError(f"the data holds conversations, but the {side} cannot render them: {error}") from None
