"""URLs that may be shown."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

from stages.masking import mask_text


def without_credentials(url: str) -> str:
    """``url`` without the user name and password that it may hold, and with a password in its query masked."""
    try:
        parts = urlsplit(url)
    except ValueError:  # it is none, as ``http://[::1``
        return mask_text(url)
    if "@" in parts.netloc:
        url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return mask_text(url)
