"""Which failures are worth another attempt, and how long to wait before it (runner rule R17)."""

from __future__ import annotations

from pipeline.executing.outcome import Outcome
from pipeline.reading.resources import Resources

FIRST_PAUSE_SECONDS = 10.0
LONGEST_PAUSE_SECONDS = 300.0


def may_pass(ending: Outcome, resources: Resources) -> bool:
    """Whether a failed attempt may succeed when it is simply repeated.

    What the stage itself understood is final: wrong input, a full disk, an output that cannot be published. The rest
    may pass if the stage calls it transient, or if the user lists its exit code.
    """
    if ending.transient:
        return True
    return not ending.final and ending.code in resources.retry_on


def pause(retry: int) -> float:
    """Seconds before retry number ``retry`` (from 1): 10, 20, 40, ... and never more than 300."""
    return min(FIRST_PAUSE_SECONDS * 2.0 ** (retry - 1), LONGEST_PAUSE_SECONDS)
