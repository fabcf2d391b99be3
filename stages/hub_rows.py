"""Rows of a data set of the Hugging Face hub, over a connection that may break.

``huggingface_hub`` and ``datasets`` repeat a single request themselves, for half a minute or for ten by what went
wrong. A run of days needs more: what they give up on is opened anew here, and goes on at the row that was due.

Light: ``datasets`` is imported only when rows are asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.documents import DocumentProblem, DocumentsUnreachable
from stages.hub_errors import connection_errors, may_pass

if TYPE_CHECKING:
    from datasets import IterableDataset

Report = Callable[[str], None]
"""Shows one line to a person."""

PATIENCE_SECONDS = 600.0
"""How long a connection may be gone. The other processes of a training wait meanwhile, for ``timeout_minutes``."""

_FIRST_WAIT_SECONDS = 5.0
_LONGEST_WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class HubRows:
    """The rows of one split, in order.

    Attributes:
        repository, revision: of the hub.
        subset: the data set's configuration; None for its only one.
        split: which split.
    """

    repository: str
    revision: str | None
    subset: str | None
    split: str

    def open(self) -> IterableDataset:
        """The rows as the library streams them.

        Raises:
            DocumentProblem: there is no such data set; DocumentsUnreachable: the hub cannot be reached.
        """
        from datasets import load_dataset
        from datasets.exceptions import DatasetNotFoundError

        try:
            return load_dataset(self.repository, self.subset, revision=self.revision, split=self.split, streaming=True)
        except (DatasetNotFoundError, ValueError, OSError) as error:
            kind = DocumentsUnreachable if may_pass(error) else DocumentProblem
            raise kind(f"{self.repository}: the data set cannot be streamed: {_brief(error)}") from error

    def read(self, first: int, report: Report) -> Iterator[tuple[int, dict[str, Any]]]:
        """Rows with their numbers, from row ``first`` (from 1) on.

        Where the connection breaks, that is said once, and it is tried again with growing pauses for
        ``PATIENCE_SECONDS``; no row is left out or given twice.

        Raises:
            DocumentsUnreachable: it did not come back; names the row.
            DocumentProblem: what is there cannot be read; names the row.
        """
        from datasets.exceptions import DatasetsError

        rows: IterableDataset | None = None
        number, broken_since, wait = first, None, _FIRST_WAIT_SECONDS
        while True:
            try:
                rows = rows if rows is not None else self.open().skip(first - 1)
                for row in rows:
                    broken_since, wait = None, _FIRST_WAIT_SECONDS
                    yield number, row
                    number += 1
                return
            except (DocumentProblem, DatasetsError, OSError, ValueError, *connection_errors()) as error:
                if not may_pass(error):
                    if isinstance(error, DocumentProblem):
                        raise
                    raise DocumentProblem(
                        f"{self.repository}: cannot be read on from record {number:,}: {_brief(error)}"
                    ) from error
                broke = f"{self.repository}: the connection broke at record {number:,} ({_brief(error)})"
                if broken_since is None:
                    broken_since = time.monotonic()
                    report(f"note: {broke}; trying again for {_minutes(PATIENCE_SECONDS)}")
                if time.monotonic() - broken_since + wait > PATIENCE_SECONDS:
                    raise DocumentsUnreachable(
                        f"{broke}, and did not come back in {_minutes(PATIENCE_SECONDS)}. Once the hub can be reached "
                        "the same command goes on; a copy of the data set does without it"
                    ) from error
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
            if rows is not None:
                rows.load_state_dict(rows.state_dict())  # the library's way to go on after the row that it gave last


def _brief(error: Exception) -> str:
    first, *_ = str(error).splitlines() or [""]
    return first or type(error).__name__


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes"
