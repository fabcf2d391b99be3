"""How the processes of a training give each other what their workers made."""

from __future__ import annotations

from torch import distributed as dist

from stages.training.data.prefetch import Exchange, Outcome, alone


def between_processes() -> Exchange:
    """The exchange of all processes that have joined; they must call this, and then it, in the same order.

    It has a group of its own over gloo, so that text takes neither the accelerators' memory nor their links.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return alone
    group = dist.new_group(backend="gloo")

    def exchange(outcome: Outcome) -> list[Outcome]:
        outcomes: list[Outcome] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(outcomes, outcome, group=group)
        return outcomes

    return exchange
