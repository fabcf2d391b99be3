"""Which failures of the Hugging Face hub may pass by themselves.

Light: the libraries that fail are imported when a failure is judged.
"""

from __future__ import annotations


def connection_errors() -> tuple[type[Exception], ...]:
    """What a request that the libraries have repeated in vain ends with."""
    from huggingface_hub.utils import httpx  # whichever version of it the library uses

    return (ConnectionError, TimeoutError, httpx.RequestError)


def may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later: no connection, or a server that is too busy or ill."""
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import HfHubHTTPError

    if is_offline_mode():
        return False
    reasons = _reasons(error)
    for each in reasons:
        if isinstance(each, HfHubHTTPError):
            status = each.response.status_code
            return status in (408, 429) or status >= 500
    return any(isinstance(each, connection_errors()) for each in reasons)


def _reasons(error: BaseException | None) -> list[BaseException]:
    """The error, and what led to it: where a server is ill, load_dataset says that there is no such file."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
