"""Which module makes which suite. To add one: its options in ``options.SuitesOptions``, and a line here."""

from __future__ import annotations

import importlib

from stages.evaluation.suites.options import SuiteOptions
from stages.evaluation.suites.questions import Split, Suite

SUITES: dict[str, str] = {
    "langgame": "stages.evaluation.suites.langgame",
    "cute": "stages.evaluation.suites.cute",
    "addition": "stages.evaluation.suites.addition",
}
"""Name -> module with ``make(options, split) -> Suite``."""


def make_suite(name: str, options: SuiteOptions, split: Split) -> Suite:
    """The questions of a suite.

    Raises:
        StageError: fewer questions are asked for than there are kinds of them.
    """
    return importlib.import_module(SUITES[name]).make(options, split)
