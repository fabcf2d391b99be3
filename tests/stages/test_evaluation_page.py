"""The report page: its numbers are the report's, its texts are shown and never obeyed, and it needs no other file."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import pytest
from evaluation_reports import HOSTILE, MODELS, UNSEEN, report
from page_reader import Element, Page

from stages.evaluation.page import render
from stages.evaluation.page.text import visible


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
    (legend,) = Page(text).all("p", **{"class": "legend lines"})
    assert [name for name in models if name in legend.text] == models
    names = re.search(r'<p class="legend lines".*?</p>', text, flags=re.DOTALL)[0]
    marks = dict(re.findall(r'class="model (model-\d[^"]*)">(model \d+)<', names))
    assert list(marks) == [*(f"model-{place}" for place in range(8)), "model-0 turn-1", "model-1 turn-1"]
    assert ".model.turn-1::before" in text, "the legend's dashes"


def test_few_documents_are_said_in_the_summary_and_below_their_table(content):
    section = json.loads(json.dumps(content["sections"][0]))
    for measures in section["tables"][0]["rows"].values():
        measures["speeches"] |= {"low": None, "high": None, "too_few": 1}
    text = render({**content, "sections": [section], "curves": {}})
    note = "Of fewer than 6 documents or items there is no interval, and no difference is marked: speeches (1)."
    assert [element.tag for element in Page(text).elements if element.text == note] == ["tr", "td", "p"]


def test_bars_of_nothing_are_not_drawn(content):
    empty = {"title": "nothing", "unit": "%", "values": {"teacher": {}}}
    section = {**content["sections"][1], "bars": [empty], "curves": []}
    assert Page(render({**content, "sections": [section], "curves": {}})).all("svg") == []


def test_names_of_groups_are_text_in_a_chart(content):
    values = {"teacher": {"$<b>\\frac": {"value": 1.0, "low": None, "high": None}}}
    section = {**content["sections"][1], "bars": [{"title": "hostile", "unit": "", "values": values}]}
    page = Page(render({**content, "sections": [section], "curves": {}}))
    assert "$<b>\\frac" in [element.text for element in page.all("text")]


def test_unseen_characters_of_the_builder_reach_the_page(text):
    assert str(visible(UNSEEN)) in text
