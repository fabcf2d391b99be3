"""``torchrun`` on this node, or on this node and others on which a person starts the same."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from pipeline.launchers.worker import MODULE
from pipeline.recipe import Resources


def command(job: str, resources: Resources, node: int = 0) -> tuple[str, ...]:
    """The argument vector for machine ``node`` of ``resources.nodes``."""
    nodes = resources.nodes or 1
    meet: tuple[str, ...] = ("--standalone",)
    if nodes > 1:
        host, port = meeting_point(resources)
        # Static, so that rank 0, which reports progress, is on the runner's node.
        meet = ("--nnodes", str(nodes), "--node_rank", str(node), "--master_addr", host, "--master_port", port)
    agent = (sys.executable, "-m", "torch.distributed.run", *meet, "--nproc_per_node", str(resources.processes or 1))
    return (*agent, "-m", MODULE, job)


def meeting_point(resources: Resources) -> tuple[str, str]:
    """Host and port at which the nodes meet: of the recipe, or of the environment; empty where neither says."""
    if resources.rendezvous is not None:
        host, _, port = resources.rendezvous.rpartition(":")
        return host, port
    return os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")


def problems(resources: Resources) -> Iterator[str]:
    """What stands in the way of starting, in words."""
    if (resources.nodes or 1) > 1 and not all(meeting_point(resources)):
        yield (
            f"{resources.nodes} nodes need a place to meet: set rendezvous: host:port to a free port of this machine, "
            "or MASTER_ADDR and MASTER_PORT in the environment"
        )
