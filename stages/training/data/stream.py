"""Blocks of windows -> an endless sequence of windows, and what of the training data it has taken.

Order and mixture never depend on the rank, the number of processes or workers, or the size of the micro-batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stages.stage import StageError
from stages.training.data.account import Account
from stages.training.data.blocks import Block
from stages.training.data.prefetch import BlockSource
from stages.training.data.windows import Window

_START = (0, 0, 0)


class WindowStream:
    """An endless stream of windows that reads on exactly from a saved position, however many processes share it.

    Attributes:
        epoch, block, cursor: position of the next window: its epoch, the block of that, the place in it.
        account: of the documents in the blocks that were begun, and of the windows that were taken.
    """

    def __init__(self, source: BlockSource) -> None:
        self._source = source
        self._loaded: Block | None = None
        self._accounted = (-1, -1)
        self._windows = 0  # of the blocks that were left behind
        self.epoch, self.block, self.cursor = _START
        self.account = Account()

    def take(self, count: int) -> list[Window]:
        """The next ``count`` windows.

        Raises:
            StageError: the first epoch, from its start, holds fewer windows; or no document holds any.
        """
        first = self._position == _START
        taken: list[Window] = []
        while len(taken) < count:
            window = self._peek()
            if first and self.epoch > 0:
                raise StageError(
                    f"the training text makes only {len(taken)} windows, but one batch needs {count} (batch_windows): "
                    "add text, or lower batch_windows or window_tokens"
                )
            taken.append(self._advance(window))
        return taken

    def take_tokens(self, budget: int) -> list[Window]:
        """The next windows until they hold ``budget`` tokens, each counted by its longer side; one at least.

        Raises:
            StageError: the first epoch, from its start, holds fewer tokens; or no document holds any.
        """
        first = self._position == _START
        taken: list[Window] = []
        left = budget
        while left > 0:
            window = self._peek()
            if first and self.epoch > 0:
                raise StageError(
                    f"the training text makes only {budget - left:,} tokens, but one batch needs {budget:,} "
                    "(batch_tokens): add text, or lower batch_tokens"
                )
            if taken and window.tokens > left:
                break
            taken.append(self._advance(window))
            left -= window.tokens
        return taken

    def check(self, count: int | None, tokens: int | None) -> None:
        """Make sure, before anything costly is loaded, that the text makes a batch; the position stays where it is.

        Args:
            count, tokens: of the batch; one of them is None.

        Raises:
            StageError: as for ``take`` and ``take_tokens``.
        """
        before = self.state()
        if count is None:
            self.take_tokens(tokens)
        else:
            self.take(count)
        account, accounted = self.account, self._accounted
        self.restore(before)
        # What was read stays read; nothing was trained on.
        self.account, self._accounted = replace(account, drawn={}), accounted

    @property
    def size(self) -> str:
        """How much there is to read, in words."""
        blocks = self._source.order.blocks(self.epoch)
        windows = len(self._current())
        if blocks == 1:
            return f"{windows:,} windows of text an epoch"
        return f"{blocks:,} blocks of documents an epoch, the first of {windows:,} windows"

    def measurements(self) -> dict[str, float]:
        """What there is to log of the windows that were taken last: nothing, for text that is always the same."""
        return {}

    def state(self) -> dict[str, Any]:
        """Position of the next window and the account so far, as JSON values."""
        return {
            "epoch": self.epoch,
            "block": self.block,
            "cursor": self.cursor,
            "windows": self._windows,
            "accounted": list(self._accounted),
            "account": self.account.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state`` gave; the block is made again unless it is the one at hand."""
        self.epoch, self.block, self.cursor = state["epoch"], state["block"], state["cursor"]
        self._windows = state["windows"]
        self._accounted = tuple(state["accounted"])
        self.account = Account.of(state["account"])

    @property
    def _position(self) -> tuple[int, int, int]:
        return self.epoch, self.block, self.cursor

    def _peek(self) -> Window:
        """The next window, left where it is."""
        while self.cursor >= len(block := self._current()):
            self._windows += len(block)
            self.block, self.cursor = self.block + 1, 0
            if self.block == self._source.order.blocks(self.epoch):
                self._end_epoch()
        return block[self.cursor]

    def _advance(self, window: Window) -> Window:
        self._current().draw_into(self.account, self.cursor, window)
        self.cursor += 1
        return window

    def _current(self) -> Block:
        """The block of the next window; its documents enter the account when it is begun for the first time."""
        if self._loaded is None or (self._loaded.epoch, self._loaded.number) != (self.epoch, self.block):
            self._loaded = None  # before another is made, so that two are never held
            self._loaded = self._source.get(self.epoch, self.block)
        if (self.epoch, self.block) > self._accounted:
            self._loaded.read_into(self.account)
            self._accounted = (self.epoch, self.block)
        return self._loaded

    def _end_epoch(self) -> None:
        # Of documents that weigh less than 1, an epoch may read none, or only such as have no window.
        if not self._windows and self.account.documents == len(self._source.documents):
            raise StageError(
                "there is nothing to learn from in data.train: no text that both tokenizers spell alike; of "
                "conversations, only the messages that train_on names are learned"
            )
        self.epoch, self.block = self.epoch + 1, 0
