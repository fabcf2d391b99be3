"""What may pass by itself: something outside this machine did not answer (runner rule R17)."""

from __future__ import annotations


class TransientError(Exception):
    """A network or a server failed, not what the recipe says: the same attempt may succeed later.

    Mixed into the exceptions of what opens connections. A stage that ends with one ends with an exit code of its own,
    and is tried again where its resources ask for ``retries``.
    """
