"""The reference of all keys: complete, in step with the schema, and right about every default."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import Field

from pipeline.recipe import Outline, Resources
from pipeline.reference import markdown_page, skeleton, yaml_page
from pipeline.reference.schema import REQUIRED, Section, section_of
from stages import STAGES, load_stage
from stages.stage import StageConfig, not_keyed, reference

REPOSITORY = Path(__file__).parents[2]
# Other tests of this directory register toy stages.
KINDS = [kind for kind, place in STAGES.items() if place.startswith("stages.") and not kind.startswith("source-")]

BESIDE: dict[str, dict[str, Any]] = {"policy_gradient": {"on_policy": {}}, "on_policy": {"losses": [{"alm": {}}]}}
"""Loss or option -> what the stage needs besides."""


class Inner(StageConfig):
    """What is inside."""

    method: Literal["one"] = "one"
    """Which."""


class Toy(StageConfig):
    """A toy.

    More of it.
    """

    count: int = Field(ge=1, le=1_000_000)
    """How ``many``
    there are."""
    share: float | None = Field(None, gt=0, lt=1)
    """A share."""
    choice: Literal["a", "b"] = not_keyed("a")
    """Which."""
    pair: tuple[float, float] = (0.5, 1e-4)
    """Two."""
    names: dict[str, int | str] = Field(default_factory=dict)
    """Named."""
    path: str = reference("x")
    """Where."""
    inner: Inner | None = None
    several: tuple[Inner, ...] = ()
    """Many of them."""
    named: dict[str, Inner] = {}
    """By name."""


def test_a_model_becomes_options_in_words() -> None:
    section = section_of(Toy)
    options = {option.name: option for option in section.options}
    assert section.meaning == "A toy."
    assert options["count"].meaning == "How `many` there are."
    assert options["count"].default is REQUIRED
    assert {name: option.values for name, option in options.items()} == {
        "count": "integer >= 1, <= 1000000",
        "share": "number > 0, < 1",
        "choice": "a | b",
        "pair": "list of 2: number",
        "names": "mapping of names to integer or text",
        "path": "reference",
        "inner": "mapping",
        "several": "list of mappings",
        "named": "mappings by names",
    }
    assert [name for name, option in options.items() if not option.keyed] == ["choice"]
    assert options["names"].default == {}
    assert [options[name].shape for name in ("inner", "several", "named")] == ["mapping", "list", "names"]
    assert options["inner"].meaning == "What is inside."
    assert [inner.name for inner in options["inner"].sections[0].options] == ["method"]


@pytest.mark.parametrize(
    ("path", "page", "option"),
    [("recipes/reference.yaml", yaml_page, ""), ("docs/reference.md", markdown_page, "--markdown ")],
)
def test_the_files_are_what_the_schema_says_today(path: str, page: Any, option: str) -> None:
    assert (REPOSITORY / path).read_text(encoding="utf-8") == page.render(), (
        f"options have changed: run `python -m pipeline.reference {option}> {path}`"
    )


def test_every_stage_and_section_is_there() -> None:
    assert list(skeleton.SECTIONS) == list(Outline.model_fields)
    assert set(skeleton.STAGES) == set(KINDS)


@pytest.fixture(scope="module")
def recipe() -> list[str]:
    return yaml_page.render().splitlines()


def chapter(lines: list[str], name: str, indent: int = 2) -> list[str]:
    """The lines below a key, up to the next line that stands as far to the left."""
    start = next(i for i, line in enumerate(lines) if re.fullmatch(rf" {{{indent}}}#?{name}:", line))
    below = []
    for line in lines[start + 1 :]:
        if line and not line.startswith(" " * (indent + 1)) and not line.startswith(" " * indent + "#  "):
            break
        below.append(line)
    return below


def disabled(lines: list[str], indent: int = 4) -> Iterator[str]:
    """The keys that are comments, each as the YAML that it becomes without its '#'."""
    block: list[str] = []
    for line in [*lines, ""]:
        body = line.removeprefix(" " * indent + "#")
        commented = body != line and not re.match(r" \S", body)  # '# ' begins prose
        continues = commented and body.startswith(("  ", "- "))
        if block and not continues:
            yield "\n".join(block)
            block = []
        if commented and (block or not continues):
            block.append(body)


def test_disabled_keys_are_found() -> None:
    lines = [
        "    # About.",
        "    #a: 1  # integer",
        "    #b:",
        "    #- c: 2",
        "    #  # on d",
        "    #  d: 3",
        "    e: 4",
    ]
    assert list(disabled(lines)) == ["a: 1  # integer", "b:\n- c: 2\n  # on d\n  d: 3"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not skeleton.STAGES[kind].disabled])
def test_every_option_is_there_and_its_default_may_be_written(recipe: list[str], kind: str) -> None:
    model, given = load_stage(kind).Config, skeleton.STAGES[kind].given
    section = section_of(model)
    written = set(given)
    for block in disabled(chapter(recipe, kind)):
        values = yaml.safe_load(block)
        written |= set(values)
        (name,) = values
        named = next(iter(values["losses"][0])) if name == "losses" else name
        config = model.model_validate({**given, **values, **BESIDE.get(named, {})})
        if not next(option for option in section.options if option.name == name).sections:
            assert config == model.model_validate(given), f"{name} is not its default"
    assert written == set(model.model_fields)


def test_every_option_of_resources_is_there(recipe: list[str]) -> None:
    lines = chapter(recipe[recipe.index("resources:") :], skeleton.RESOURCES)
    blocks = [yaml.safe_load(block) for block in disabled(lines)]
    for values in blocks:
        assert Resources(**values) == Resources()
    assert {name for values in blocks for name in values} | {"launcher"} == set(Resources.model_fields)


def test_every_option_is_explained() -> None:
    def unexplained(section: Section, place: str) -> Iterator[str]:
        for option in section.options:
            if not option.meaning and not option.constant:
                yield f"{place}.{option.name}"
            for inner in option.sections:
                yield from unexplained(inner, f"{place}.{option.name}")

    assert [name for kind in KINDS for name in unexplained(section_of(load_stage(kind).Config), kind)] == []


def test_links_of_the_page_lead_to_its_headings() -> None:
    text = markdown_page.render()
    headings = re.findall(r"^#+ `?([^`\n]+)`?$", text, flags=re.M)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = set(re.findall(r"\(#([^)]+)\)", text))
    assert len(links) > 20
    assert links <= anchors
