"""Documents -> an endless sequence of windows, a function of (seed, epoch) alone.

Order and mixture never depend on the rank, the number of processes or the micro-batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stages.stage import StageError
from stages.training.random import generator
from stages.training.windows import Document, Window


class WindowStream:
    """An endless stream of windows whose position is two numbers, so that a resumed run reads on exactly.

    Args:
        documents: the training documents.
        windows_of: (document, its number, epoch) -> its windows.
        seed: seeds the order.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        windows_of: Callable[[Document, int, int], list[Window]],
        seed: int,
    ) -> None:
        self._documents = documents
        self._windows_of = windows_of
        self._seed = seed
        self._loaded_epoch = -1
        self._epoch_windows: list[Window] = []
        self.epoch = 0
        self.cursor = 0

    def windows_in_epoch(self, epoch: int) -> list[Window]:
        """All windows of ``epoch`` in the order in which they are read."""
        if epoch != self._loaded_epoch:
            draw = generator(self._seed, epoch)
            windows: list[Window] = []
            for number, document in enumerate(self._documents):
                # A weight of 1.5 reads a document once in every epoch and once more in about half of them.
                repeats = int(document.weight) + int(draw.random() < document.weight % 1)
                if repeats:
                    windows += self._windows_of(document, number, epoch) * repeats
            self._epoch_windows = [windows[index] for index in draw.permutation(len(windows))]
            self._loaded_epoch = epoch
        return self._epoch_windows

    def take(self, count: int) -> list[Window]:
        """The next ``count`` windows.

        Raises:
            StageError: one whole epoch holds fewer windows than a batch.
        """
        available = len(self.windows_in_epoch(self.epoch))
        if not available:
            raise StageError(
                "there is nothing to learn from in data.train: no text that both tokenizers spell alike; of "
                "conversations, only the messages that train_on names are learned"
            )
        if available < count:
            raise StageError(
                f"the training text makes only {available} windows, but one batch needs {count} (batch_windows): "
                "add text, or lower batch_windows or window_tokens"
            )
        taken: list[Window] = []
        while len(taken) < count:
            windows = self.windows_in_epoch(self.epoch)
            more = windows[self.cursor : self.cursor + count - len(taken)]
            taken += more
            self.cursor += len(more)
            if self.cursor >= len(windows):
                self.epoch, self.cursor = self.epoch + 1, 0
        return taken

    def state(self) -> dict[str, int]:
        """Position of the next window."""
        return {"epoch": self.epoch, "cursor": self.cursor}

    def restore(self, state: dict[str, int]) -> None:
        """Continue from a position that ``state`` gave."""
        self.epoch, self.cursor = state["epoch"], state["cursor"]
