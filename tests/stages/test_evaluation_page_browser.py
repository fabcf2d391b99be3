"""The report page in a real browser: it draws, filters, runs nothing that a model wrote and fetches nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from evaluation_reports import HOSTILE, MODELS, UNSEEN, report
from headless_browser import PROGRAMS, Browser, find_browser

from stages.evaluation.page import render
from stages.evaluation.page.text import visible

pytestmark = pytest.mark.skipif(find_browser() is None, reason=f"none of {', '.join(PROGRAMS)} is installed")

SMALLEST_CONTRAST = 4.5  # WCAG 2.2, 1.4.3, level AA

CONTRASTS = """
(() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = channels(colour)
      .map((c) => c / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (let one = node; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if ((channels(colour)[3] ?? 1) > 0) return colour;
    }
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === Node.TEXT_NODE && child.data.trim());
    if (!own || !node.checkVisibility()) continue;
    const style = getComputedStyle(node);
    const ink = light(node instanceof SVGElement ? style.fill : style.color), paper = light(behind(node));
    found.push([(Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05), node.outerHTML.slice(0, 80)]);
  }
  return found;
})()
"""


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    return report()


@pytest.fixture(scope="module")
def page(content, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(find_browser(), tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def opened(browser, page) -> Browser:
    browser.open(page)
    return browser


def _choose(browser: Browser, **choices: str) -> int:
    """Set fields of the form as a user does; returns how many items are found."""
    for name, value in choices.items():
        browser.evaluate(
            f"""(() => {{
              const field = document.querySelector('#items [name="{name}"], #items [data-group="{name}"]');
              field.value = {value!r};
              field.dispatchEvent(new Event("input", {{ bubbles: true }}));
            }})()"""
        )
    return int(browser.evaluate("document.querySelector('.count').textContent").split()[0].replace(",", ""))


def test_nothing_is_fetched_and_nothing_is_complained_of(opened, page):
    assert opened.requests == [page.as_uri()]
    assert opened.complaints == []


def test_what_a_model_writes_does_not_run(opened, content):
    _choose(opened, text="onerror")
    assert opened.evaluate("document.querySelectorAll('.items > li').length") == 1
    assert opened.evaluate("document.title") == content["title"]
    assert opened.evaluate("document.querySelectorAll('img').length") == 0
    assert opened.evaluate("document.querySelector('.items .text').textContent") == HOSTILE


def test_a_script_that_is_not_the_pages_own_is_refused(opened):
    # The last line of defence, should a text ever reach the page as markup.
    opened.evaluate(
        """(() => {
          const script = document.createElement("script");
          script.textContent = "document.title = 'run'";
          document.body.append(script);
        })()"""
    )
    assert opened.evaluate("document.title") != "run"
    assert len(opened.complaints) == 1
    assert "Content Security Policy" in opened.complaints[0]


def test_every_chart_is_drawn(opened):
    sizes = opened.evaluate(
        "[...document.querySelectorAll('svg')].map((svg) => {"
        "  const drawn = svg.getBBox();"
        "  return [svg.clientWidth, svg.clientHeight, drawn.width, drawn.height];"
        "})"
    )
    assert len(sizes) == 7
    assert min(min(size) for size in sizes) > 100
    bars = opened.evaluate(
        "[...document.querySelectorAll('svg path')].filter((one) => getComputedStyle(one).fill === 'rgb(44, 138, 87)')"
        ".map((one) => one.getBoundingClientRect().width)"
    )
    assert len(bars) == 3, "distill in two domains and one task"
    assert bars[1] / bars[0] == pytest.approx(1.2411 / 0.9036, rel=0.01)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_all_text_stands_out_from_what_is_behind_it(browser, page, dark):
    browser.open(page, dark=dark)
    browser.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    contrasts = browser.evaluate(CONTRASTS)
    assert len(contrasts) > 500
    ratio, where = min(contrasts)
    assert ratio >= SMALLEST_CONTRAST, where


def test_dark_is_dark(browser, page):
    papers = []
    for dark in (False, True):
        browser.open(page, dark=dark)
        papers.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert papers == ["rgb(255, 255, 255)", "rgb(20, 24, 30)"]


@pytest.mark.parametrize("width", [360, 800, 1600])
def test_no_window_is_too_narrow_for_the_page(browser, page, width):
    browser.open(page, width=width)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width


def test_without_scripts_everything_but_the_items_can_be_read(browser, page):
    browser.open(page, script=False)
    # Scripts of the page are off; the protocol can still look.
    assert browser.evaluate("document.querySelector('noscript p').checkVisibility()")
    assert not browser.evaluate("document.querySelector('form').checkVisibility()")
    words = browser.evaluate("document.body.innerText")
    for text in ("0.904 ★", "Showing items one by one needs JavaScript", "LangGame", "its text is changed"):
        assert text in words, text


def test_differences_can_be_put_away(opened):
    def seen() -> list[bool]:
        return opened.evaluate(
            "[...document.querySelectorAll('#summary .difference')].map((row) => row.checkVisibility())"
        )

    assert len(seen()) == 8
    assert all(seen())
    opened.evaluate("document.getElementById('show-differences').click()")
    assert not any(seen())


def _is(item: dict[str, Any], outcome: bool | None, models: Sequence[str] = MODELS) -> bool:
    return any(item["correct"][model] is outcome for model in models)


def test_items_are_found_by_section_stratum_model_answer_and_text(opened, content):
    items = content["sections"][1]["items"]
    wrong = [item for item in items if _is(item, False)]
    assert 0 < len(wrong) < 60
    assert opened.evaluate("document.querySelector('.count').textContent") == f"{len(wrong) + 1} of 61 items"
    assert opened.evaluate("document.querySelectorAll('.groups select').length") == 0, "sections differ in strata"
    assert _choose(opened, section="1") == len(wrong)
    longest = [item for item in wrong if item["groups"]["task"] == "longest"]
    assert _choose(opened, task="longest") == len(longest)
    by_distill = [item for item in longest if _is(item, False, ["distill"])]
    assert _choose(opened, model="distill") == len(by_distill) < len(longest)
    held_out = [item for item in by_distill if item["groups"]["words"] == "held out"]
    assert _choose(opened, words="held out") == len(held_out) < len(by_distill)
    assert _choose(opened, outcome="", task="", words="", model="") == 60
    assert _choose(opened, outcome="unasked") == 1
    split = [item for item in items if _is(item, False) and _is(item, True)]
    assert _choose(opened, outcome="split") == len(split) < 60
    assert _choose(opened, outcome="", text="LETTER C?") == 3
    # Another section has other strata, so a choice among the old ones is forgotten.
    assert _choose(opened, task="longest", text="") == 20
    assert _choose(opened, section="0") == 1
    assert _choose(opened, section="") == 61


def test_items_are_ordered_by_how_many_models_are_wrong(opened, content):
    def order() -> list[int]:
        return opened.evaluate(
            "[...document.querySelectorAll('.items li')].map((one) => one.querySelectorAll('.wrong').length)"
        )

    counts = [sum(right is False for right in item["correct"].values()) for item in content["sections"][1]["items"]]
    assert len(set(counts)) > 2
    _choose(opened, section="1", outcome="", order="hardest")
    assert order() == sorted(counts, reverse=True)[:20]
    _choose(opened, order="easiest")
    assert order() == sorted(counts)[:20]
    _choose(opened, order="")
    assert order() == counts[:20]


def test_items_come_a_page_at_a_time(opened):
    _choose(opened, section="1", outcome="")
    counts = [opened.evaluate("document.querySelectorAll('.items > li').length")]
    while opened.evaluate("document.querySelector('.more').checkVisibility()"):
        opened.evaluate("document.querySelector('.more').click()")
        counts.append(opened.evaluate("document.querySelectorAll('.items > li').length"))
    assert counts == [20, 40, 60]


def test_an_item_shows_what_was_wanted_and_every_models_answer(opened):
    _choose(opened, text="item 0", outcome="")
    rows = opened.evaluate(
        "[...document.querySelectorAll('.items li tr')].map((row) => row.innerText.split(/\\s+/)[0])"
    )
    assert rows == ["wanted", *MODELS]
    states = opened.evaluate("[...document.querySelectorAll('.items th span + span')].map((one) => one.textContent)")
    assert states == ["– not given", "✗ wrong", "✗ wrong", "✗ wrong", "✗ wrong"], "0 is in none of 1, 2, 3"
    assert "crosses_boundary" in opened.evaluate("document.querySelector('.items li').innerText")


def test_both_rules_of_what_is_visible_are_the_same(opened):
    _choose(opened, text="item 0", outcome="")
    shown = opened.evaluate("document.querySelector('.items td .text:has(.code)').innerHTML")
    assert shown == str(visible(UNSEEN))


def test_twenty_thousand_items_can_be_used(browser, content, tmp_path):
    section = content["sections"][1]
    many = [{**item, "id": f"{item['id']} again {index}"} for index in range(333) for item in section["items"]]
    path = tmp_path / "large.html"
    section = {**section, "bars": [], "curves": [], "items": many}
    path.write_text(render({**content, "sections": [section], "curves": {}}), encoding="utf-8")
    browser.open(path)
    assert browser.evaluate("document.querySelectorAll('.groups select').length") == 2, "of the only section"
    assert browser.evaluate("document.querySelectorAll('.items > li').length") == 20
    assert _choose(browser, text="item 7 again 123") == 1
