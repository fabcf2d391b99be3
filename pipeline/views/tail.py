"""Following a file that another process appends to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass
class Tail:
    """Reads what was appended to a file since the last call, whole lines only; ``offset`` bytes have been read."""

    path: Path
    offset: int = 0

    def lines(self) -> list[str]:
        """The new lines, without their ends; a line that is still being written waits for the next call."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        return whole.decode("utf-8", errors="replace").splitlines()
