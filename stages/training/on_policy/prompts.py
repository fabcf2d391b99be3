"""What the student is to continue: beginnings of texts, and conversations before their last answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alignment.byte_view import ByteView
from alignment.chat import ChatError, ChatTemplate
from alignment.chat.messages import Message, Tool
from alignment.spans import align_encodings
from stages.stage import StageError
from stages.training.data.aligner import DocumentAligner
from stages.training.data.order import ReadingOrder
from stages.training.data.windows import Document
from stages.training.random import generator

_LENGTH = 0x6C656E677468  # the stream of random numbers of this module
_ANSWER = "Answer"  # any content shows where contents come
_HEAD_CHARACTERS_A_TOKEN = 32
_REFERENCE_CHARACTERS_A_TOKEN = 8


@dataclass(frozen=True)
class Prompt:
    """What the student continues, once.

    Attributes:
        number: of the prompt, over the whole training; seeds what is drawn for it.
        document_id: where it comes from.
        text: what the student reads: the beginning of a text, or its own rendering of a conversation.
        ids: its tokens, the ones that the tokenizer puts before every text included.
        messages: those of a conversation; None for a text.
        tools: of a conversation.
        reference: what the document says next, as far as it says anything.
    """

    number: int
    document_id: str
    text: str
    ids: tuple[int, ...]
    messages: tuple[Message, ...] | None
    tools: Sequence[Tool] | None
    reference: str


class PromptStream:
    """An endless stream of prompts, in an order that the seed alone sets, each document as often as its weight says.

    Args:
        documents: of the training data.
        held: how many of them, the first ones, are as quickly found in any order; the others are read in ascending
            order, those of a block at once.
        order: of reading.
        aligner: has both tokenizers and their chat templates.
        lengths: fewest and most student tokens of a prompt that is the beginning of a text.
        room: most student tokens of any prompt; documents whose prompt is longer are passed over.
        reference_tokens: about how much of a reference is wanted.
        seed: of the lengths.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        held: int,
        order: ReadingOrder,
        aligner: DocumentAligner,
        *,
        lengths: tuple[int, int],
        room: int,
        reference_tokens: int,
        seed: int,
    ) -> None:
        self._documents = documents
        self._held = held
        self._read: dict[int, Document] = {}
        self._order = order
        self._aligner = aligner
        self._lengths = lengths
        self._room = room
        self._reference_characters = _REFERENCE_CHARACTERS_A_TOKEN * reference_tokens
        self._seed = seed
        self._block: tuple[int, int, np.ndarray] | None = None
        self._epoch = self._block_number = self._cursor = self._given = 0

    def take(self, count: int) -> list[Prompt]:
        """The next ``count`` prompts.

        Raises:
            StageError: a conversation cannot be rendered, or no document of a whole epoch gives a prompt.
        """
        return [self._next() for _ in range(count)]

    def state(self) -> dict[str, int]:
        """Position of the next prompt."""
        return {
            "epoch": self._epoch, "block": self._block_number, "cursor": self._cursor, "given": self._given,
        }  # fmt: skip

    def restore(self, state: Mapping[str, int]) -> None:
        """Continue from a position that ``state`` gave."""
        self._epoch, self._block_number, self._cursor = state["epoch"], state["block"], state["cursor"]
        self._given = state["given"]

    def _next(self) -> Prompt:
        start = self._epoch
        while self._epoch <= start + 1:
            numbers = self._numbers()
            if self._cursor == len(numbers):
                self._block_number, self._cursor = self._block_number + 1, 0
                if self._block_number == self._order.blocks(self._epoch):
                    self._epoch, self._block_number = self._epoch + 1, 0
                continue
            number = int(numbers[self._cursor])
            self._cursor += 1
            prompt = self._of_document(self._read.get(number) or self._documents[number])
            if prompt is not None and len(prompt.ids) <= self._room:
                self._given += 1
                return prompt
        raise StageError(
            f"on_policy: no document gives a prompt of at most {self._room:,} tokens (window_tokens less "
            "max_new_tokens): raise window_tokens, or lower max_new_tokens"
        )

    def _numbers(self) -> np.ndarray:
        """int64: the documents of the block at hand, in the order in which they are read."""
        if self._block is None or self._block[:2] != (self._epoch, self._block_number):
            numbers = self._order.readings(self._epoch, self._block_number).numbers
            order = self._order.permutation(self._epoch, self._block_number, len(numbers))
            streamed = np.unique(numbers[numbers >= self._held]).tolist()
            self._read = {number: self._documents[number] for number in streamed}
            self._block = self._epoch, self._block_number, numbers[order]
        return self._block[2]

    def _of_document(self, document: Document) -> Prompt | None:
        if document.messages is not None:
            return self._of_conversation(document)
        fewest, most = self._lengths
        wanted = int(generator(self._seed, _LENGTH, self._given).integers(fewest, most, endpoint=True))
        if document.context_bytes:
            text = document.text.encode()[: document.context_bytes].decode()
        else:
            text = _beginning(document.text[: _HEAD_CHARACTERS_A_TOKEN * most], self._aligner.views, wanted)
        if text is None:
            return None
        student = self._aligner.views[1]
        ids = (*student.prefix_ids, *student.encode(text, exact=False).ids.tolist())
        following = document.text[len(text) :][: self._reference_characters]
        return Prompt(self._given, document.id, text, ids, None, None, following)

    def _of_conversation(self, document: Document) -> Prompt:
        messages = tuple(document.messages)
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        reference = (messages[answers[-1]].get("content") or "") if answers else ""
        before = messages[: answers[-1]] if answers else messages
        try:
            text = up_to_the_answer(self._aligner.templates[1], before, document.tools)
        except ChatError as error:
            raise StageError(f"document {document.id}: {error}") from None
        ids = self._aligner.views[1].encode_rendered(text).ids.tolist()
        reference = reference[: self._reference_characters]
        return Prompt(self._given, document.id, text, tuple(ids), before, document.tools, reference)


def up_to_the_answer(template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Tool] | None) -> str:
    """A rendered conversation with what its template writes before the content of an answer.

    Not the template's generation prompt: some have none, and with others (of models that may think first) an answer is
    rendered otherwise once it is there, which is how both models will read it.

    Raises:
        ChatError: the template refuses the conversation.
    """
    answered = template.render([*messages, {"role": "assistant", "content": _ANSWER}], tools=tools)
    (start,) = (span.rendered_start for span in answered.spans if span.message == len(messages))
    return answered.text.encode()[:start].decode()


def _beginning(text: str, views: tuple[ByteView, ByteView], wanted: int) -> str | None:
    """The beginning of a text in at most ``wanted`` student tokens that ends where both tokenizers have a boundary.

    It ends before white space if it can in its second half: a model that has read half a word does not go on as it
    would in running text. None if the text has no such beginning.
    """
    teacher, student = (view.encode(text, exact=False) for view in views)
    chunks = align_encodings(teacher, student)
    data = text.encode()
    tokens = np.searchsorted(chunks.student_chunk[chunks.student_chunk >= 0], np.arange(chunks.num_chunks), "right")
    ends = [
        (end, size)
        for end, size in zip(chunks.chunk_ends.tolist(), tokens.tolist(), strict=True)
        if end == len(data) or data[end] & 0xC0 != 0x80
    ]
    if not ends:
        return None
    fitting = [pair for pair in ends if pair[1] <= wanted] or ends[:1]
    before_space = [end for end, size in fitting if 2 * size >= fitting[-1][1] and data[end : end + 1].isspace()]
    return data[: before_space[-1] if before_space else fitting[-1][0]].decode()
