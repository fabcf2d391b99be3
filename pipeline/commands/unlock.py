"""``pipeline unlock``."""

from __future__ import annotations

import argparse

from pipeline.commands.common import add_runs
from pipeline.errors import EXIT_OK, RecipeError

SUMMARY = "remove the leases of a run whose process on another machine is gone"

EPILOG = """\
Only file systems without flock have leases; elsewhere the system frees every lock when its process ends, and there is
nothing to remove. A lease that is removed while its process lives lets two runs overwrite each other.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``unlock``."""
    parser.add_argument("run", metavar="RUN", help="a run's name")
    parser.add_argument("--i-am-sure", action="store_true", help="that no process of the run lives on any machine")
    add_runs(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Remove the leases of the run and of the stages that its recipe names."""
    from pipeline.executing import leases
    from pipeline.executing.locks import describe_holder
    from pipeline.planner import make_plan
    from pipeline.reading.loading import load_recipe
    from pipeline.runs import kept_recipe
    from pipeline.store import Store

    plan = make_plan(load_recipe(kept_recipe(arguments.run, arguments.runs)), arguments.runs)
    store = Store(arguments.runs / "store")
    locks = [store.entry(stage.uses, stage.key).lock_path for stage in plan.stages]
    held = [path for path in (plan.run_directory / "run.lock", *locks) if leases.lease_path(path).exists()]
    if not held:
        print(f"run {arguments.run!r} has no leases")
        return EXIT_OK
    for path in held:
        print(f"{leases.lease_path(path)}: {describe_holder(path)}")
    if not arguments.i_am_sure:
        raise RecipeError("nothing was removed; if none of these processes lives, say so with --i-am-sure")
    for path in held:
        leases.discard(path)
    print(f"{len(held)} leases removed")
    return EXIT_OK
