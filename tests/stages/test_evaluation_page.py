"""The report page: its numbers are the report's, its texts are shown and never obeyed, and it needs no other file."""

from __future__ import annotations

import html
import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from evaluation_reports import HOSTILE, MODELS, UNSEEN, report
from hypothesis import given
from hypothesis import strategies as st

from stages.evaluation.numbers import best_rows, interval, shown
from stages.evaluation.page import render
from stages.evaluation.page.text import script_data, visible
from stages.evaluation.training_curves import MOST_POINTS, read_training

VOID = {"meta", "link", "path", "use", "rect", "br", "input", "img"}


class Element(NamedTuple):
    """One element, its attributes, and the text inside it."""

    tag: str
    attributes: dict[str, str | None]
    words: list[str]

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    @property
    def kinds(self) -> set[str]:
        return set((self.attributes.get("class") or "").split())


class Page(HTMLParser):
    """All elements of a page in the order in which they begin; checks that they nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("small", "td", "th"):
            self.handle_data(" ")
        self.elements.append(Element(tag, dict(attrs), []))
        if tag not in VOID:
            self._open.append(self.elements[-1])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.words.append(data)

    def all(self, tag: str, **attributes: str) -> list[Element]:
        """Elements of a kind whose attributes have these values."""
        return [
            element
            for element in self.elements
            if element.tag == tag and all(element.attributes.get(name) == value for name, value in attributes.items())
        ]

    def table(self, title: str) -> list[list[Element]]:
        """The rows of the table in the scrolling part with this label, each a list of its cells."""
        (start,) = (place for place, one in enumerate(self.elements) if one.attributes.get("aria-label") == title)
        rows: list[list[Element]] = []
        for element in self.elements[start + 1 :]:
            if element.tag in ("div", "section", "figure", "h3"):
                break
            if element.tag == "tr":
                rows.append([])
            elif element.tag in ("th", "td"):
                rows[-1].append(element)
        return rows


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    return report()


@pytest.fixture(scope="module")
def text(content) -> str:
    return render(content)


@pytest.fixture(scope="module")
def page(text) -> Page:
    return Page(text)


def _expected(measure: dict[str, float] | None, digits: int, sign: str) -> str:
    if measure is None:
        return "-"
    value, low, high = (
        None if measure[name] is None else format(measure[name], f"{sign}.{digits}f")
        for name in ("value", "low", "high")
    )
    return value if low is None else f"{value} [{low}, {high}]"


def _cell(element: Element) -> str:
    return element.text.replace(" ★", "")


def test_every_number_of_the_summary_is_the_reports_rounded(content, page):
    head, *rows = page.table("Summary")
    assert [cell.text for cell in head] == ["Measure", *MODELS]
    rows = [row for row in rows if len(row) > 1]
    for section in content["sections"]:
        table = section["tables"][0]
        for column in table["columns"]:
            if column["better"] is None:
                continue
            for sign, measures in [("", table["rows"]), *(("+", of) for of in table["differences"].values())]:
                name, *cells = rows.pop(0)
                assert name.text.startswith(column["name"])
                wanted = [
                    _expected(measures.get(model, {}).get(column["name"]), column["digits"], sign) for model in MODELS
                ]
                assert [_cell(cell) for cell in cells] == wanted
    assert rows == []


def test_every_number_of_a_sections_table_is_the_reports_rounded(content, page):
    compared = 0
    for section in content["sections"]:
        for number, table in enumerate(section["tables"]):
            _, *rows = page.table(table["title"])
            for model, measures in table["rows"].items():
                references = [
                    (other, of[model]) for other, of in table["differences"].items() if number and model in of
                ]
                for other, values in [(None, measures), *references]:
                    name, *cells = rows.pop(0)
                    assert name.text == (model if other is None else f"{model} minus {other}")
                    wanted = [
                        _expected(values.get(column["name"]), column["digits"], "" if other is None else "+")
                        for column in table["columns"]
                    ]
                    assert [_cell(cell) for cell in cells] == wanted
                    compared += len(cells)
            assert rows == []
    assert compared > 30


def test_the_summary_in_numbers_that_can_be_checked_by_eye(page):
    rows = {row[0].text: [_cell(cell) for cell in row[1:]] for row in page.table("Summary") if len(row) > 1}
    speeches = rows["speeches trained bits per byte, lower is better"]
    assert speeches[0] == "0.851 [0.839, 0.864]"
    assert speeches[3] == "0.904 [0.891, 0.916]"
    assert rows["speeches, minus teacher"][3] == "+0.052 [+0.040, +0.065]"
    assert rows["speeches, minus control"][3] == "-0.109 [-0.121, -0.096]"
    assert "tokens per byte" not in rows, "of which neither end is good"
    assert rows["accuracy %, higher is better"][4] == "55.4 [48.9, 61.9]"


def test_differences_that_the_summary_leaves_out_are_in_their_own_table(content):
    section = json.loads(json.dumps(content["sections"][1]))
    table = section["tables"][0]
    table["columns"][0]["better"] = None
    page = Page(render({**content, "sections": [section], "curves": {}}))
    assert [row[0].text for row in page.table("Summary")] == ["Measure"]
    lines = {row[0].text: row[1] for row in page.table(table["title"])}
    assert _cell(lines["stochastok minus control"]) == "+24.4 [+17.9, +30.9]"
    assert lines["stochastok minus control"].kinds == {"number", "other"}, "not zero, and neither good nor bad"


def test_the_best_student_of_a_measure_is_marked_and_no_other(page):
    marked = {
        row[0].text.split()[0]: [model for model, cell in zip(MODELS, row[1:], strict=True) if "best" in cell.kinds]
        for row in page.table("Summary")
        if len(row) > 1 and "minus" not in row[0].text
    }
    # teacher 0.851 and 61.2 are better still
    assert marked == {
        "Measure": [],
        "speeches": ["distill"],
        "novel": ["control"],
        "accuracy": ["stochastok"],
    }


def test_a_difference_is_called_better_or_worse_where_its_interval_leaves_out_zero(page):
    rows = {row[0].text: row[1:] for row in page.table("Summary")}

    def tones(name: str) -> list[set[str]]:
        return [cell.kinds & {"better", "worse", "other"} for cell in rows[name]]

    # lower bits are better: 0.904 against the control's 1.012; 1.241 ± 0.031 against 1.235 says nothing
    assert tones("speeches, minus control")[3] == {"better"}
    assert tones("speeches, minus teacher")[3] == {"worse"}
    assert tones("novel, minus control")[3] == set()
    # higher accuracy is better
    assert tones("accuracy, minus control")[4] == {"better"}
    assert tones("accuracy, minus teacher")[1] == {"worse"}


@pytest.mark.parametrize(
    ("value", "digits", "sign", "text"),
    [
        (0.85149, 3, False, "0.851"),
        (12.5, 0, False, "12"),
        (-0.0004, 3, False, "0.000"),
        (-0.0004, 3, True, "+0.000"),
        (0.0004, 3, True, "+0.000"),
        (-1.5, 1, True, "-1.5"),
        (None, 3, False, "-"),
        (math.nan, 3, False, "-"),
        (math.inf, 1, False, "-"),
    ],
)
def test_how_a_number_is_shown(value, digits, sign, text):
    assert shown(value, digits, sign=sign) == text


def test_an_interval_has_both_ends_or_is_not_shown():
    assert interval({"low": -0.02, "high": 0.5}, 2, sign=True) == "[-0.02, +0.50]"
    assert interval({"low": 0.1, "high": None}, 2) == ""


@pytest.mark.parametrize(
    ("values", "better", "best"),
    [
        ({"a": 1.0, "b": 2.0}, "lower", {"a"}),
        ({"a": 1.0, "b": 2.0}, "higher", {"b"}),
        ({"a": 1.0, "b": 2.0}, None, set()),
        ({"a": 1.0}, "lower", set()),
        ({"a": 1.0, "b": None, "c": math.nan}, "lower", set()),
        ({"a": 1.0, "b": 1.0}, "lower", set()),
        # 0.90401 and 0.90449 are both shown as 0.904
        ({"a": 0.90401, "b": 0.90449, "c": 0.92}, "lower", {"a", "b"}),
    ],
)
def test_which_rows_are_best(values, better, best):
    assert best_rows(values, better, 3) == best


def test_the_page_stands_alone(page, text):
    tags = {element.tag for element in page.elements}
    assert not tags & {"img", "iframe", "object", "embed", "image", "base", "form action"}
    for element in page.elements:
        for name in ("href", "xlink:href", "src", "srcset", "action", "data", "poster"):
            address = element.attributes.get(name) or "#"
            assert address == "data:," or address.startswith("#"), element
        assert not any(name.startswith("on") for name in element.attributes)
    style = "".join(element.text for element in page.all("style"))
    assert "@import" not in style
    assert "url(" not in style
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy.attributes["content"].startswith("default-src 'none'; ")


def test_what_a_model_writes_is_text(page, content):
    assert len(page.all("script")) == 2
    assert page.all("title")[0].text == " ".join(content["title"].split())
    assert HOSTILE in ["".join(element.words) for element in page.all("div")], "a continuation"
    assert HOSTILE in ["".join(element.words) for element in page.all("p")], "what is said about a section"


def test_the_items_are_on_the_page_as_they_are_in_the_report(page, content):
    (script,) = page.all("script", type="application/json")
    data = json.loads("".join(script.words))
    assert data["models"] == list(MODELS)
    assert [section["title"] for section in data["sections"]] == ["Retention", "LangGame"]
    assert [section["items"] for section in data["sections"]] == [section["items"] for section in content["sections"]]


def test_headings_and_tables_can_be_followed_without_seeing_them(page):
    levels = [int(element.tag[1]) for element in page.elements if re.fullmatch("h[1-6]", element.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all("scope" in element.attributes for element in page.all("th"))
    assert page.elements[0].attributes["lang"] == "en"
    identities = [element.attributes["id"] for element in page.elements if "id" in element.attributes]
    assert len(identities) == len(set(identities))
    targets = {element.attributes["href"] for element in page.all("a")}
    assert targets <= {f"#{identity}" for identity in identities}


def test_every_chart_is_there_with_its_description_and_its_numbers(page, content):
    descriptions = [element.attributes["aria-label"] for element in page.all("svg", role="img")]
    charts = [chart["title"] for section in content["sections"] for chart in (*section["bars"], *section["curves"])]
    training = [measure for one in content["curves"].values() for measure in one["measures"]]
    assert len(descriptions) == len(charts) + len(training) == 7
    for title in (*charts, *training):
        assert any(description.startswith(f"{title}: ") for description in descriptions), title
    below = [element for element in page.all("summary") if element.text == "Numbers"]
    assert len(page.all("figure")) == len(below) == 7


def test_the_numbers_below_a_chart_are_the_reports(page):
    figures = [element.text for element in page.all("figure")]
    (bars,) = (text for text in figures if text.startswith("Bits per byte by domain"))
    assert "novel 1.104 [1.073, 1.135] 3.312 [3.281, 3.343] 1.234 [1.204, 1.265]" in bars
    (curve,) = (text for text in figures if text.startswith("Accuracy by length"))
    assert "Model points first lowest highest last teacher 6 75 50 75 50 init 6 72 47 72 47" in curve


def test_charts_have_no_colour_of_their_own(text):
    drawings = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    colours = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", "".join(drawings)))
    assert colours <= {"none", *(f"var(--{name})" for name in ("ink", "line", *(f"model-{i}" for i in range(5))))}


def test_bars_are_as_long_as_their_values(text, content):
    (drawing,) = re.findall(r'<svg role="img" aria-label="Bits per byte by domain.*?</svg>', text, flags=re.DOTALL)
    bars = content["sections"][0]["bars"][0]["values"]
    lengths = {}
    for place, model in enumerate(MODELS):
        corners = re.findall(rf'<path d="([^"]+)"[^>]*style="fill: var\(--model-{place}\)', drawing)
        edges = [sorted({float(x) for x in re.findall(r"[ML] (\S+) ", path)}) for path in corners]
        lengths[model] = [right - left for left, right in edges]
    unit = lengths["teacher"][0] / bars["teacher"]["speeches"]["value"]
    for model in MODELS:
        wanted = [bars[model][domain]["value"] * unit for domain in ("speeches", "novel")]
        assert lengths[model] == pytest.approx(wanted, rel=1e-4)


def test_many_skipped_things_are_all_listed_the_later_ones_folded(content):
    entries = [{"what": f"document {index}", "why": "too long", "model": None} for index in range(75)]
    section = {**content["sections"][1], "bars": [], "curves": [], "skipped": entries}
    page = Page(render({**content, "sections": [section], "curves": {}}))
    listed = [row.text for row in page.all("tr") if "too long" in row.text]
    assert listed == [f"LangGame document {index} all too long" for index in range(75)]
    (folded,) = (one for one in page.all("details") if "document 74 " in "".join(one.words))
    assert "45 more" in folded.text
    assert "document 29 " not in folded.text


def test_samples_stand_side_by_side_with_the_text_itself(page):
    headings = [element.text for element in page.all("h5")]
    assert headings == ["the text itself", *MODELS, *MODELS], "the second sample has no text of its own"
    texts = ["".join(element.words) for element in page.all("div", **{"class": "text"})]
    assert texts[:3] == [" years ago our", " years ago teacher\n", " years ago init\n"]


def test_what_was_skipped_is_listed_with_its_reason(page):
    rows = [element.text for element in page.all("tr")]
    assert "Retention document 7 of novel init its text is changed by the tokenizer of init" in rows
    assert "LangGame 12 items all the answer crosses a token boundary" in rows


def test_the_preflight_says_who_failed_what_and_which_numbers_that_costs(page):
    rows = [element.text for element in page.all("tr")]
    assert "round trip passed failed passed passed passed" in rows
    assert "vocabulary passed - passed passed passed" in rows
    (failure,) = (element.text for element in page.all("p") if "round trip" in element.text)
    assert failure == (
        "init, round trip: the tokenizer changes more than half of the documents of novel. Not measured: score texts."
    )
    assert "round trip.changed 7" in rows


def test_facts_settings_and_versions_are_listed(page):
    rows = {element.text for element in page.all("tr")}
    assert {
        "bootstrap.resamples 1000",
        "domains speeches, novel",
        "max_documents none",
        "trained_domains speeches",
        "torch 2.13",
    } <= rows


def test_equal_reports_give_equal_pages(content, text):
    assert render(json.loads(json.dumps(content))) == text


def test_an_almost_empty_report_is_a_page(content):
    bare = Page(render({**content, "sections": [], "curves": {}, "preflight": {}}))
    assert "Nothing was skipped." in [element.text for element in bare.all("p")]
    assert bare.all("svg") == []
    assert [element.attributes for element in bare.all("script")] == [{}]


def test_a_model_that_every_section_skipped_has_an_empty_column(content):
    page = Page(render({**content, "preflight": {**content["preflight"], "lost": {}}}))
    head, *rows = (row for row in page.table("Summary") if len(row) > 1)
    assert [cell.text for cell in head] == ["Measure", *MODELS, "lost"]
    assert {row[-1].text for row in rows} == {"-"}


def test_models_beyond_the_colours_begin_again_dashed(content):
    models = [f"model {index}" for index in range(10)]
    curve = {"title": "many", "x_label": "x", "y_label": "y", "lines": {name: [[0, 1], [1, 2]] for name in models}}
    section = {**content["sections"][1], "tables": [], "bars": [], "items": [], "curves": [curve]}
    text = render({**content, "sections": [section], "curves": {}, "preflight": {}})
    dashed = re.findall(r"stroke-dasharray[^\"]*stroke: (var\(--model-\d\))", text)
    assert dashed == ["var(--model-0)", "var(--model-1)"]


def test_bars_of_nothing_are_not_drawn(content):
    empty = {"title": "nothing", "unit": "%", "values": {"teacher": {}}}
    section = {**content["sections"][1], "bars": [empty], "curves": []}
    assert Page(render({**content, "sections": [section], "curves": {}})).all("svg") == []


def test_names_of_groups_are_text_in_a_chart(content):
    values = {"teacher": {"$<b>\\frac": {"value": 1.0, "low": None, "high": None}}}
    section = {**content["sections"][1], "bars": [{"title": "hostile", "unit": "", "values": values}]}
    page = Page(render({**content, "sections": [section], "curves": {}}))
    assert "$<b>\\frac" in [element.text for element in page.all("text")]


def test_every_character_of_a_text_can_be_seen():
    assert visible("a b\n\tc") == ('a<i class="space"> </i>b<i class="newline">\n</i><i class="tab">\t</i>c')
    assert visible("\x07\u200b\u202e\ufffd\u00a0\r") == "".join(
        f'<i class="code">U+{code}</i>' for code in ("0007", "200B", "202E", "FFFD", "00A0", "000D")
    )
    assert visible("\udcff") == '<i class="code">U+DCFF</i>'
    assert visible("\U000e0041") == '<i class="code">U+E0041</i>'
    assert visible("<i>&amp;") == "&lt;i&gt;&amp;amp;"
    assert visible("naïve 東京🙂").replace('<i class="space"> </i>', " ") == "naïve 東京🙂"


@given(st.text(st.characters()))
def test_a_visible_text_is_the_text(text):
    shown_text = re.sub(r'<i class="code">U\+([0-9A-F]+)</i>', lambda match: f"&#x{match[1]};", str(visible(text)))
    plain = re.sub(r'<i class="\w+">(\s)</i>', r"\1", shown_text)
    assert "<" not in plain
    pieces = re.split(r"&#x([0-9A-F]+);", plain)
    assert (
        "".join(chr(int(piece, 16)) if place % 2 else html.unescape(piece) for place, piece in enumerate(pieces))
        == text
    )


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(JSON_VALUES)
def test_data_in_a_script_is_the_data_and_no_markup(value):
    text = str(script_data(value))
    assert json.loads(text) == value
    assert not set(text) & set("<>&\u2028\u2029")


def _write(directory: Path, points: list[dict[str, float]]) -> Path:
    directory.mkdir()
    (directory / "training.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    return directory


def test_training_curves_are_the_losses_and_what_says_how_they_came_about(tmp_path):
    points = [
        {"step": 5, "loss": 3.0, "alm": 2.0, "alm.weight": 1.0, "alm.units": 9, "learning_rate": 0.1, "mfu": 0.3},
        {"step": 10, "eval.bits_per_byte": 1.5},
        {"step": 10, "loss": float("nan"), "alm": 1.0, "alm.weight": 1.0, "learning_rate": 0.05},
    ]
    trained, initial = _write(tmp_path / "trained", points), tmp_path / "initial"
    initial.mkdir()
    assert read_training({"init": initial, "distill": trained}) == {
        "distill": {
            "steps": 10,
            "points": 3,
            "not_finite": 1,
            "measures": {
                "loss": [[5, 3.0]],
                "eval.bits_per_byte": [[10, 1.5]],
                "learning_rate": [[5, 0.1], [10, 0.05]],
                "alm": [[5, 2.0], [10, 1.0]],
            },
        }
    }


@pytest.mark.parametrize("length", [1, MOST_POINTS, MOST_POINTS + 1, 5000])
def test_long_curves_are_thinned_evenly_and_keep_their_ends(tmp_path, length):
    model = _write(tmp_path / "model", [{"step": step, "loss": step / 2} for step in range(1, length + 1)])
    training = read_training({"model": model})["model"]
    curve = training["measures"]["loss"]
    assert training["points"] == training["steps"] == length
    assert len(curve) == min(length, MOST_POINTS)
    assert curve[0] == [1, 0.5]
    assert curve[-1] == [length, length / 2]
    gaps = {after[0] - before[0] for before, after in pairwise(curve)}
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert all(value == step / 2 for step, value in curve)


def test_unseen_characters_of_the_builder_reach_the_page(text):
    assert str(visible(UNSEEN)) in text
