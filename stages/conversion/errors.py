"""The error of every conversion."""

from __future__ import annotations


class ConversionError(Exception):
    """A file is not what its conversion expects; the message names the file and the place in it."""
