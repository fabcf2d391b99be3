"""One step's windows -> the micro-batches of every process.

How windows are laid out changes the padding, and nothing that is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stages.training.batch import Batch, collate
from stages.training.windows import Window


def micro_batches(windows: Sequence[Window], micro: int, rank: int, world_size: int) -> Iterator[Batch]:
    """This rank's share of one global batch, in micro-batches of ``micro`` windows.

    Windows are sorted by length first: their order inside a step changes nothing but the padding.
    """
    mine = sorted(windows, key=lambda window: -len(window.student.ids))[rank::world_size]
    for start in range(0, len(mine), micro):
        yield collate(mine[start : start + micro])
