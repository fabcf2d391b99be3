"""What goes wrong inside a section, told with the section's and the model's name and with what to do about it."""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stages.stage import StageError


class SectionFailed(StageError):
    """What a section does not foresee: it ends the stage, where any other ``StageError`` leaves one model out."""


@contextmanager
def naming(section: str, model: str | None = None) -> Iterator[None]:
    """Everything that is not meant for the user comes out as an error that is.

    What the user is meant to read (``StageError``), and what the operating system refuses, such as a full disk, passes
    as it is. The traceback of the rest goes to the log.

    Args:
        model: the row under evaluation; None while the section's report is made of all rows.

    Raises:
        SectionFailed: something failed inside.
    """
    from torch import OutOfMemoryError

    asked = f"the section {section} of {model}" if model is not None else f"the report of the section {section}"
    try:
        yield
    except (StageError, OSError):
        raise
    except (OutOfMemoryError, MemoryError) as error:
        raise SectionFailed(
            f"{asked} does not fit into memory: {_first_line(error)}; lower batch_tokens and run again: what is "
            "finished is kept, and results do not depend on it"
        ) from error
    except Exception as error:
        traceback.print_exc()
        raise SectionFailed(
            f"{asked} failed with {type(error).__name__}: {_first_line(error)}; the stage's log has the traceback. "
            f"What is finished is kept: run again once the cause is mended, or leave {section} out of this stage's "
            "options"
        ) from error


def check_finite(value: Any, section: str, model: str) -> None:
    """Refuse a section's result that has a number which is none.

    Args:
        value: plain JSON data.

    Raises:
        SectionFailed: a number is NaN or infinite.
    """
    place = _not_finite(value)
    if place is not None:
        raise SectionFailed(
            f"the section {section} of {model} has a number that is not finite, at {place}: the model's weights are "
            f"damaged or overflow in its dtype. Look at the model's training curve and its preflight, give another "
            f"model under needs, or leave {section} out of this stage's options"
        )


def _not_finite(value: Any, place: str = "result") -> str | None:
    """Where the first number that is NaN or infinite stands."""
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{place} = {value}"
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    found = (_not_finite(part, f"{place}[{key!r}]") for key, part in inside)
    return next((where for where in found if where is not None), None)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "no message")
