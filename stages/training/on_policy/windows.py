"""Rollouts -> windows: the prompt is context, what the student wrote is scored by both models on their own tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
from transformers import AutoTokenizer

from alignment.byte_view import ByteView
from alignment.chat import ChatError, ChatTemplate, align_chat
from alignment.chunk_alignment import ChunkAlignment, mask_chunks
from alignment.encoding import Encoding, concatenated
from alignment.spans import align_encodings
from alignment.special_tokens import special_roles
from stages.training.data.aligner import DocumentAligner
from stages.training.data.windows import Side, Window, chat_window, first_window
from stages.training.on_policy.prompts import up_to_the_answer
from stages.training.on_policy.rollouts import Rollout

NOTHING = Window(*[Side(np.zeros(1, np.int64), np.full(1, -1), np.zeros(1, np.int64))] * 2, num_chunks=0)
"""The window of a rollout of which nothing can be scored: it keeps the number of windows of a step."""


@dataclass(frozen=True)
class ScoredRollout:
    """A rollout as a training window.

    Attributes:
        window: scored on what the student wrote, as far as both models can be asked about it.
        scored_bytes: bytes of the rollout in chunks.
        own_tokens: whether the student's tokens are the ones that it sampled; else its tokenizer's for the same text.
        canonical: of the sampled tokens, how many its tokenizer would give for the text.
    """

    window: Window
    scored_bytes: int
    own_tokens: bool
    canonical: int


@dataclass(frozen=True)
class RolloutAligner:
    """Aligns rollouts; the prompt's tokens are in no chunk, nor are those of a chunk that holds some of the prompt.

    The student's tokens are those that it sampled, unless its chat template rewrites what stands around them; a teacher
    with the same tokenizer gets them too, and any other its own tokenizer's for the text that they spell. The end of a
    text is scored if the student ended it with a special token that the teacher has too, and the end of a turn if
    it ended that as its template does: were an end free of charge, a policy gradient would have the student write
    nothing. A rollout that was cut off loses its last chunk: the student might have gone on with the same word, and the
    teacher would then have written it otherwise.

    Attributes:
        aligner: has the tokenizers and chat templates of both models.
        text_ends: the student's special tokens -> what the teacher has in their place, where it has something.
    """

    aligner: DocumentAligner
    text_ends: Mapping[int, int]

    @cached_property
    def one_tokenizer(self) -> bool:
        """Whether both models have the same tokenizer."""
        teacher, student = self.aligner.views
        return teacher.fingerprint == student.fingerprint

    @classmethod
    def of(cls, aligner: DocumentAligner) -> Self:
        """Special tokens that are written the same are the same, else ends of text are."""
        teacher, student = aligner.views
        named = {string: token for token, string in teacher.special_tokens.items()}
        ends = {token: named[string] for token, string in student.special_tokens.items() if string in named}
        directories = (aligner.teacher_directory, aligner.student_directory)
        theirs, ours = (special_roles(AutoTokenizer.from_pretrained(each)).get("eos") for each in directories)
        return cls(aligner, {ours: theirs} | ends if None not in (theirs, ours) else ends)

    def __call__(self, rollout: Rollout) -> ScoredRollout:
        """The window of a rollout; a conversation's is in the native format of each model."""
        return self._text(rollout) if rollout.prompt.messages is None else self._answer(rollout)

    def _text(self, rollout: Rollout) -> ScoredRollout:
        teacher, student = self.aligner.views
        prompt, sampled = student.encode(rollout.prompt.text, exact=False), _sampled(rollout, student)
        written = teacher.encode(rollout.prompt.text + rollout.text, exact=False)
        if self.one_tokenizer:
            written = concatenated([prompt, sampled])
        ended = rollout.end in self.text_ends
        encodings = (
            concatenated([written, _end(self.text_ends[rollout.end])] if ended else [written]),
            concatenated([prompt, sampled, _end(rollout.end)] if ended else [prompt, sampled]),
        )
        ends = [np.full(len(each.ids), -1) for each in encodings]
        if ended:
            ends[0][-1] = ends[1][-1] = 0
        chunks = align_encodings(*encodings, teacher_events=ends[0], student_events=ends[1])
        chunks = mask_chunks(chunks, student=np.arange(len(encodings[1].ids)) < len(prompt.ids))
        if rollout.end is None:
            chunks = _without(chunks, np.arange(chunks.num_chunks) == chunks.num_chunks - 1)
        of_chunks = (chunks.teacher_chunk, chunks.student_chunk)
        sides = (_side(*each) for each in zip(self.aligner.views, encodings, of_chunks, strict=True))
        window = first_window(*sides, chunks.num_chunks, self.aligner.window_tokens) or NOTHING
        canonical = student.encode(rollout.prompt.text + rollout.text, exact=False)
        return ScoredRollout(window, _scored_bytes(window), True, _common(canonical, sampled, prompt.text_bytes))

    def _answer(self, rollout: Rollout) -> ScoredRollout:
        student, (teachers, template) = self.aligner.views[1], self.aligner.templates
        messages = [*rollout.prompt.messages, {"role": "assistant", "content": rollout.text}]
        sampled = _sampled(rollout, student)
        try:
            own = _sampled_answer(rollout, sampled, rollout.prompt.text, template, student)
            same = None
            if self.one_tokenizer:
                before = up_to_the_answer(teachers, rollout.prompt.messages, rollout.prompt.tools)
                same = _sampled_answer(rollout, sampled, before, teachers, student)
            chat = align_chat(
                *zip(self.aligner.views, self.aligner.templates, strict=True),
                messages,
                tools=rollout.prompt.tools,
                train_on="last",
                teacher_encoding=same,
                student_encoding=own,
            )
        except ChatError:  # it wrote the string of a control token, or what a template rewrites
            return ScoredRollout(NOTHING, 0, own_tokens=False, canonical=0)
        if rollout.end is None:
            last = np.flatnonzero(~chat.chunk_is_end).max(initial=0)
            chat = replace(chat, chunks=_without(chat.chunks, np.arange(chat.chunks.num_chunks) >= last))
        elif student.special_tokens[rollout.end] != template.end_of_turn("assistant", last=True):
            chat = replace(chat, chunks=_without(chat.chunks, chat.chunk_is_end))
        window = chat_window(chat, self.aligner.window_tokens) or NOTHING
        canonical = student.encode(rollout.text, exact=False)
        return ScoredRollout(window, _scored_bytes(window), own is not None, _common(canonical, sampled, 0))


def _sampled_answer(
    rollout: Rollout, sampled: Encoding, before: str, template: ChatTemplate, view: ByteView
) -> Encoding | None:
    """A model's tokens of the answered conversation, with those of the answer as sampled.

    None if the rendering is not what stands before the answer, the answer, and something after it.

    Raises:
        ChatError: the template refuses the conversation.
    """
    messages = [*rollout.prompt.messages, {"role": "assistant", "content": rollout.text}]
    rendered = template.apply(messages, tools=rollout.prompt.tools)
    if not rendered.startswith(before + rollout.text):
        return None
    prompt, rest = (view.encode_rendered(text) for text in (before, rendered[len(before) + len(rollout.text) :]))
    return concatenated([prompt, sampled, rest])


def _end(token: int) -> Encoding:
    """A special token that ends a text."""
    yes, no = np.ones(1, dtype=bool), np.zeros(1, dtype=np.int64)
    return Encoding(np.array([token], dtype=np.int32), no, special=yes, boundary=yes, verbatim=yes, text_bytes=0)


def _sampled(rollout: Rollout, view: ByteView) -> Encoding:
    """The sampled tokens on the bytes that they spell."""
    ids = np.array(rollout.ids, dtype=np.int32)
    ends = np.cumsum(view.byte_lengths[ids], dtype=np.int64)
    everywhere = np.ones(len(ids), dtype=bool)
    return Encoding(ids, ends, ~everywhere, everywhere, everywhere, len(rollout.text.encode()))


def _common(canonical: Encoding, sampled: Encoding, start: int) -> int:
    """How many of the sampled tokens stand in ``canonical`` at the same bytes, ``start`` further on."""
    both = [
        {(end, token) for end, token in zip(each.byte_ends.tolist(), each.ids.tolist(), strict=True)}
        for each in (replace(canonical, byte_ends=canonical.byte_ends - start), sampled)
    ]
    return len(both[0] & both[1])


def _without(chunks: ChunkAlignment, left_out: np.ndarray) -> ChunkAlignment:
    """The alignment without the chunks of bool [C] ``left_out``."""
    chunk = chunks.student_chunk
    return mask_chunks(chunks, student=(chunk >= 0) & np.append(left_out, False)[chunk])


def _side(view: ByteView, encoding: Encoding, chunk: np.ndarray) -> Side:
    """A whole text after what its tokenizer puts before every text."""
    prefix = np.array(view.prefix_ids, dtype=np.int64)
    nothing = np.zeros(len(prefix), dtype=np.int64)
    return Side(
        ids=np.concatenate([prefix, encoding.ids.astype(np.int64)]),
        chunk=np.concatenate([nothing - 1, chunk.astype(np.int64)]),
        lengths=np.concatenate([nothing, np.diff(encoding.byte_ends, prepend=0)]),
    )


def _scored_bytes(window: Window) -> int:
    return int(window.student.lengths[window.student.chunk >= 0].sum())
