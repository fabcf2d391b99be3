"""``pipeline validate``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pipeline.commands.common import add_json, add_recipe, load, print_json
from pipeline.errors import EXIT_OK

if TYPE_CHECKING:
    from pipeline.reading.reference_checks import CheckedReferences
    from pipeline.recipe import Recipe

SUMMARY = "check a recipe without running anything"

EPILOG = """\
checks, all problems of one before the next begins:
  schema      the file is YAML without duplicate keys; every key is known, every value is of its type
  losses      the teacher gives what each objective needs, and options that go together are together
  graph       every input is filled by exactly the stages it takes, and there is no cycle
  launching   batches divide over the processes; hostfiles and accelerate files are right and fit the recipe
  references  packages are installed and files exist; references to the hub have the right form
  hub         with --online: repositories exist, are open to you and have the revision
  disk        there is room for the results, by earlier results of their kinds

Nothing is fetched: without --online, repositories are only looked for in the local cache.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``validate``."""
    add_recipe(parser)
    parser.add_argument("--online", action="store_true", help="ask the Hugging Face hub about its repositories")
    add_json(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Check, and say what is right and what was not looked at."""
    from pipeline.reading.launch_checks import check_recipe
    from pipeline.reading.notes import notes
    from pipeline.reading.reference_checks import check_references
    from pipeline.views.render import JSON_SCHEMA_VERSION

    recipe = load(arguments)
    check_recipe(recipe)
    references = check_references(recipe, online=arguments.online)
    checked = ["schema", "losses", "graph", "launching", "references"]
    skipped: dict[str, str] = {}
    if arguments.online:
        checked.append("hub")
    elif references.hub:
        skipped["hub"] = _not_asked(references)
    if references.hub:
        skipped["disk"] = "what is to run is known once the hub has been asked, which `pipeline plan` does"
    else:
        _check_disk(recipe, arguments)
        checked.append("disk")
    if deciding := [name for name, spec in recipe.stages.items() if getattr(spec.config, "digits", None) == "refuse"]:
        skipped["digits"] = f"whether the tokenizers cut numbers alike is for {' and '.join(deciding)} to see, when run"
    noted = notes(recipe)
    if arguments.json:
        facts = {"recipe": str(arguments.recipe), "stages": len(recipe.stages), "checked": checked}
        facts |= {"not_checked": skipped, "hub": references.hub, "notes": noted}
        print_json({"schema_version": JSON_SCHEMA_VERSION, **facts})
        return EXIT_OK
    for note in noted:
        print(f"note: {note}")
    if arguments.online:
        for reference, commit in references.hub.items():
            print(f"{reference}: commit {commit}")
    for check, reason in skipped.items():
        print(f"not checked: {check}: {reason}")
    names = f"{', '.join(checked[:-1])} and {checked[-1]}"
    print(f"{arguments.recipe}: {names} are right ({len(recipe.stages)} stages)")
    return EXIT_OK


def _not_asked(references: CheckedReferences) -> str:
    cached = len(references.hub) - len(references.uncached)
    return (
        f"{len(references.hub)} references were not followed, {cached} of them are in the local cache; --online asks "
        "the hub"
    )


def _check_disk(recipe: Recipe, arguments: argparse.Namespace) -> None:
    from pipeline.estimates import check_room, estimates
    from pipeline.planner import make_plan

    plan = make_plan(recipe, arguments.runs)
    if expected := estimates(plan):
        check_room(plan, expected)
