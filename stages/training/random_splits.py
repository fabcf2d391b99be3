"""Text documents -> windows of one tokenizer, some of whose tokens are split at random (StochasTok)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from alignment.byte_view import ByteView, InexactEncoding
from alignment.splits import SplitTable
from stages.stage import StageError
from stages.training.account import Account, DocumentFacts
from stages.training.blocks import DocumentWindows
from stages.training.random import generator
from stages.training.windows import Document, plain_windows


@dataclass
class RandomSplits:
    """Splits tokens anew in every epoch (a ``WindowMaker``).

    Attributes:
        directory: where the tokenizer lies.
        proportion: split attempts as a share of a document's tokens.
        window_tokens: most tokens of a window.
        seed: of the splits.
    """

    directory: Path
    proportion: float
    window_tokens: int
    seed: int

    @cached_property
    def view(self) -> ByteView:
        """The tokenizer."""
        return ByteView.from_tokenizer(self.directory)

    @cached_property
    def table(self) -> SplitTable:
        """How each of its tokens can be split."""
        return SplitTable.from_view(self.view)

    def prepare(self) -> None:
        """Load the tokenizer."""
        _ = self.table

    def make(self, document: Document, number: int, epoch: int) -> DocumentWindows:
        """The windows of a document; its splits are a function of the seed, the epoch and its number.

        Raises:
            StageError: the document is a conversation, or the tokenizer does not spell it.
        """
        if document.messages is not None:
            raise StageError(f"document {document.id} is a conversation; stochastok takes plain text")
        try:
            encoding = self.view.encode(document.text)
        except InexactEncoding as error:
            raise StageError(f"document {document.id}: {error}") from None
        split = self.table.expand(encoding.ids, self.proportion, rng=generator(self.seed, epoch, number))
        windows = plain_windows(
            split, self.view.byte_lengths, self.view.prefix_ids, self.window_tokens, document.context_bytes
        )
        sizes = {"bytes": encoding.text_bytes - document.context_bytes}
        return DocumentWindows(windows, DocumentFacts(document.id, document.domain, sizes))

    def describe(self, account: Account) -> dict[str, Any]:
        """How much text was read; there is nothing to warn of."""
        return {"documents": account.documents, "bytes": account.sizes["bytes"], "warnings": []}
