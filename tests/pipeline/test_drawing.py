"""``pipeline graph``: the same stages, arrows and states in every format."""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
from pathlib import Path

import pytest
import toys
from headless_browser import Browser, find_browser
from hypothesis import given
from hypothesis import strategies as st
from terminal import TerminalProcess

from pipeline.cli import main
from pipeline.plan import State
from pipeline.views.drawing import COLOURS, Picture, dot, lines, mermaid
from pipeline.views.graph_page import page
from pipeline.views.layers import arrange

EDGES, KINDS = {"align": [], "init": ["align"]}, {"align": "align", "init": "start"}
BARE = Picture("a & b", EDGES, KINDS)
SEEN = Picture("a & b", EDGES, KINDS, {"align": State.FRESH, "init": State.FAILED}, {"init": "failed (attempt 2) <x>"})
RECIPE = """\
name: counting
stages:
  count: {uses: count, steps: 3}
  broken: {uses: misbehave, how: stage error}
  lengths: {uses: table, needs: [count]}
"""


def test_pictures_hold_every_stage_and_arrow() -> None:
    assert lines(BARE).plain == "align  align\ninit   start  ← align"
    assert mermaid(BARE).splitlines() == [
        "graph TD",
        '    n0["align<br/>align"]',
        '    n1["init<br/>start"]',
        "    n0 --> n1",
    ]
    assert '"align" -> "init";' in dot(BARE)
    assert "legend" not in mermaid(BARE) + dot(BARE)


def test_pictures_have_the_colours_of_states_and_a_legend() -> None:
    assert lines(SEEN).plain == "align  align  fresh\ninit   start  failed  ← align"
    assert {str(span.style) for span in lines(SEEN).spans} == {"green", "red"}
    assert mermaid(SEEN).splitlines()[4:] == [
        "    subgraph legend",
        '        fresh_["fresh"]',
        '        failed_["failed"]',
        "    end",
        "    classDef fresh fill:#dcf3e0,stroke:#2f8f46,color:#111",
        "    class n0,fresh_ fresh",
        "    classDef failed fill:#fadbd8,stroke:#c0392b,color:#111",
        "    class n1,failed_ failed",
    ]
    assert '"init" [label="init\\nstart" style=filled fillcolor="#fadbd8" color="#c0392b"];' in dot(SEEN)
    assert '"legend/failed" [label="failed" style=filled' in dot(SEEN)
    assert COLOURS.keys() == set(State)


def _luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.1) of ``#rrggbb``."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("state", State)
def test_text_can_be_read_on_every_colour(state: State) -> None:
    """Contrast of at least 4.5 (WCAG 2.1 AA), of both lines of a box."""
    colour = COLOURS[state]
    for text, fill in (("#1b1b1b", colour.fill), ("#5c5c5c", colour.fill), ("#ececec", colour.dark_fill),
                       ("#b0b0b0", colour.dark_fill), ("#111111", colour.fill)):  # fmt: skip
        dark, light = sorted((_luminance(text), _luminance(fill)))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, fill)


graphs = st.integers(1, 9).flatmap(
    lambda count: st.tuples(
        *(st.lists(st.integers(0, number - 1), unique=True) if number else st.just([]) for number in range(count))
    )
)


@given(graphs)
def test_layouts_lead_down_and_nothing_overlaps(needs: tuple[list[int], ...]) -> None:
    edges = {f"s{number}": [f"s{other}" for other in others] for number, others in enumerate(needs)}
    widths = {name: 40.0 + 30 * len(edges[name]) for name in edges}
    layout = arrange(edges, widths, gap=10.0)
    assert layout.centres.keys() == edges.keys()
    assert layout.paths.keys() == {(other, name) for name in edges for other in edges[name]}
    for path in layout.paths.values():
        levels = [level for _, level in path]
        assert levels == list(range(levels[0], levels[-1] + 1)), "an arrow passes every layer once, downwards"
        assert len(levels) > 1
    for one, other in itertools.combinations(edges, 2):
        (x, level), (y, other_level) = layout.centres[one], layout.centres[other]
        assert level != other_level or abs(x - y) >= (widths[one] + widths[other]) / 2 + 10 - 1e-6
    for name, (x, level) in layout.centres.items():
        assert x - widths[name] / 2 >= -1e-6
        assert x + widths[name] / 2 <= layout.width + 1e-6
        assert level < layout.depth
        passing = [x for path in layout.paths.values() for x, at in path[1:-1] if at == level]
        assert all(abs(x - layout.centres[name][0]) >= widths[name] / 2 for x in passing), "no arrow crosses a box"
    assert arrange(edges, widths, gap=10.0) == layout


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    paths = [Path(toys.__file__).parent, Path(toys.__file__).parents[2]]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nosuch://db")
    return tmp_path


def test_states_are_those_of_the_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["graph", "recipe.yaml"]) == 0
    before = capsys.readouterr().out
    assert before.splitlines()[0] == "count    count"
    assert main(["run", "recipe.yaml", "--keep-going"]) == 1
    capsys.readouterr()
    assert main(["graph", "recipe.yaml"]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[:3] for line in shown.splitlines()] == [
        ["count", "count", "fresh"],
        ["broken", "misbehave", "failed"],
        ["lengths", "table", "fresh"],
    ]
    assert "\x1b" not in shown, "a pipe gets no colours"
    (folder / "recipe.yaml").rename(folder / "moved.yaml")
    assert main(["graph", "--run", "counting"]) == 0
    assert capsys.readouterr().out == shown
    assert main(["graph", "--run", "counting", "--json", "--set", "count.steps=4"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["schema_version"] == 1
    assert [stage["state"] for stage in facts["stages"]] == ["missing", "failed", "missing"]
    script = [sys.executable, "-c", "import sys, toys; from pipeline.cli import main; sys.exit(main(sys.argv[1:]))"]
    for variables, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        terminal = TerminalProcess([*script, "graph", "--run", "counting"], {**os.environ, **variables})
        assert terminal.finish() == 0
        assert ("\x1b[32mfresh" in terminal.output, "\x1b[31mfailed" in terminal.output) == (coloured, coloured)


@pytest.mark.parametrize("words", [[], ["recipe.yaml", "--run", "counting"]])
def test_one_thing_is_drawn(folder: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert main(["graph", *words]) == 2
    assert "name a recipe file, or a run with --run: one of the two" in capsys.readouterr().err


def test_a_run_whose_files_are_elsewhere_is_drawn_without_states(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "recipe.yaml").write_text(
        "name: a\nstages: {one: {uses: source-documents, documents: [{path: ./b.txt}]}}"
    )
    (folder / "runs" / "a").mkdir(parents=True)
    (folder / "runs" / "a" / "recipe.resolved.yaml").touch()
    assert main(["graph", "recipe.yaml"]) == 0
    answer = capsys.readouterr()
    assert answer.out == "one  source-documents\n"
    assert "note: without states" in answer.err


def test_the_page_needs_nothing_else_and_says_what_it_is_given() -> None:
    text = page(SEEN)
    assert not re.search(r"https?://|<script|url\((?!#)", text)
    assert "a &amp; b" in text
    assert "init: failed (attempt 2) &lt;x&gt;" in text
    assert text.count("<rect") == 2
    assert text.count("<li ") == 2
    assert "<li" not in page(BARE)


@pytest.mark.skipif(find_browser() is None, reason="needs a browser")
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    file = tmp_path / "graph.html"
    file.write_text(page(SEEN), encoding="utf-8")
    rectangles = "[...document.querySelectorAll('rect')].map(box => getComputedStyle(box).fill)"
    with Browser(find_browser(), tmp_path / "profile") as browser:
        seen = {}
        for dark in (False, True):
            browser.open(file, dark=dark)
            assert browser.requests == [file.as_uri()]
            assert browser.complaints == []
            seen[dark] = browser.evaluate(rectangles)
            inside = """[...document.querySelectorAll('g')].every(group => {
                const box = group.querySelector('rect').getBoundingClientRect();
                return [...group.querySelectorAll('text')].every(text => {
                    const own = text.getBoundingClientRect();
                    return own.left >= box.left && own.right <= box.right && own.bottom <= box.bottom;
                });
            })"""
            assert browser.evaluate(inside), "text stays inside its box"
    assert seen == {
        False: ["rgb(220, 243, 224)", "rgb(250, 219, 216)"],
        True: ["rgb(23, 56, 31)", "rgb(70, 32, 28)"],
    }
