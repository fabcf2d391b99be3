"""What every launcher starts: ``stages.worker`` on a job file, once per rank."""

from __future__ import annotations

import socket

MODULE = "stages.worker"

JOB_FILE = "JOB.json"
"""In the attempt's directory."""


def free_port() -> int:
    """A TCP port that nothing listens on now; another process may take it before it is used."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
