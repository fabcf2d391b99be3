"""How a global batch divides over processes: world size × micro-batch × accumulation = batch."""

from __future__ import annotations


def split_batch(batch: int, micro_batch: int | None, processes: int) -> tuple[int, int]:
    """Windows in one forward pass and forward passes in one step, for each process.

    Args:
        batch: windows in one optimiser step, over all processes.
        micro_batch: windows in one forward pass of one process; None for its whole share.
        processes: how many there are on all nodes.

    Raises:
        ValueError: they do not divide; the message has the nearest numbers that do.
    """
    share, rest = divmod(batch, processes)
    micro = micro_batch or share
    if not rest and share and share % micro == 0:
        return micro, share // micro
    unit = processes * (micro_batch or 1)
    below, above = batch // unit * unit, (batch // unit + 1) * unit
    ways = [f"batch_windows: {f'{below} or {above}' if below else above}"]
    if micro_batch and share and not rest:
        fitting = max(size for size in range(1, min(micro, share) + 1) if share % size == 0)
        ways.append(f"micro_batch_windows: {fitting}")
    counts = [n for n in range(1, batch + 1) if batch % (n * (micro_batch or 1)) == 0]
    if fewer := [n for n in counts if n < processes]:
        ways.append(f"{fewer[-1]} {'process' if fewer[-1] == 1 else 'processes'}")
    times = f" × micro_batch_windows ({micro_batch})" if micro_batch else ""
    raise ValueError(
        f"batch_windows ({batch}) must be processes ({processes}){times} × a whole number of forward passes; "
        f"what would fit: {', or '.join(ways)}"
    )
