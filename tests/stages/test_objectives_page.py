"""docs/objectives.md says what the capability table says, and names every option."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stages.objectives import LossEntry
from stages.objectives.base import ObjectiveOptions
from stages.objectives.capabilities import CAPABILITIES, NEED_IN_WORDS

PAGE = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text(encoding="utf-8")
VOCABULARIES = {
    "any": "any",
    "identical": "one",
    "subset": "the student's inside the teacher's",
    "overlapping": "overlapping",
}


def expected_table() -> str:
    """The table as Markdown."""
    lines = [
        "| objective | needs | cached | served | vocabularies | exact | source |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in CAPABILITIES:
        cells = (
            f"`{each.objective}`",
            NEED_IN_WORDS[each.needs],
            "yes" if each.cached else "no",
            each.served,
            VOCABULARIES[each.vocabularies],
            each.exact,
            each.source,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def test_the_page_has_the_table_of_the_code():
    shown = re.search(r"<!-- capabilities -->\n(.*?)\n<!-- end -->", PAGE, flags=re.S)
    assert shown is not None
    assert shown.group(1) == expected_table()


@pytest.mark.parametrize("name", LossEntry.model_fields)
def test_every_option_is_explained(name):
    options = type(LossEntry.model_validate({name: {}}).options)
    section = PAGE.split(f"**`{name}`**", 1)[1].split("\n\n")[0]
    for option in options.model_fields.keys() - ObjectiveOptions.model_fields.keys():
        assert f"`{option}`" in section, f"{name}.{option} is not on the page"
