"""Which module makes which suite. To add one: its options in ``options.SuitesOptions``, and a line here."""

from __future__ import annotations

import importlib

from stages.evaluation.suites.options import SuiteOptions, SuitesOptions
from stages.evaluation.suites.questions import Split, Suite, shortage

SUITES: dict[str, str] = {
    "langgame": "stages.evaluation.suites.langgame",
    "cute": "stages.evaluation.suites.cute",
    "addition": "stages.evaluation.suites.addition",
}
"""Name -> module with ``make(options, split) -> Suite``, and ``cells_of(options, split)``: its kinds of question."""


def check_items(suites: SuitesOptions, split: Split) -> None:
    """See that every suite has a question of each of its kinds, before anything is run.

    Raises:
        ValueError: one is asked for fewer.
    """
    for name, options in suites.chosen().items():
        kinds = importlib.import_module(SUITES[name]).cells_of(options, split)
        if problem := shortage(name, options.items, len(kinds)):
            raise ValueError(problem)


def make_suite(name: str, options: SuiteOptions, split: Split) -> Suite:
    """The questions of a suite.

    Raises:
        StageError: fewer questions are asked for than there are kinds of them.
    """
    return importlib.import_module(SUITES[name]).make(options, split)
