"""Standard input, output and error that can be used, whatever the process was started with."""

from __future__ import annotations

import io
import os
import sys


def usable() -> None:
    """Open what was closed, and have output show ``?`` for what its encoding lacks instead of failing.

    A closed descriptor (``>&-``, some daemons) would be given to the next file that is opened: what a library prints
    would then be written into a result.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)  # the processes that we start begin as we do
    os.close(descriptor)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (open as long as we live)
        elif isinstance(stream, io.TextIOWrapper) and mode == "w":
            stream.reconfigure(errors="replace")
