"""The report page of a real run, as a reader sees it: opened in a browser from the place where the run left it."""

from __future__ import annotations

import json

import pytest
from headless_browser import PROGRAMS, Browser, find_browser

pytestmark = pytest.mark.skipif(find_browser() is None, reason=f"none of {', '.join(PROGRAMS)} is installed")


def test_the_quickstarts_report_is_a_page_that_needs_nothing_else(finished, tmp_path):
    place, _ = finished
    out = place.directory / "runs" / "quickstart" / "stages" / "evaluate" / "out"
    (retention,) = (
        section
        for section in json.loads((out / "report.json").read_text())["sections"]
        if section["name"] == "retention"
    )
    with Browser(find_browser(), tmp_path) as browser:
        browser.open(out / "report.html")
        assert browser.requests == [(out / "report.html").as_uri()]
        assert browser.complaints == []
        summary = browser.evaluate("document.querySelector('#summary table').innerText")
        charts = browser.evaluate(
            "[...document.querySelectorAll('figure')].map((one) => one.querySelector('svg').clientHeight)"
        )
    for model, measures in retention["tables"][0]["rows"].items():
        assert model in summary
        for column in retention["tables"][0]["columns"]:
            if column["name"] in measures:
                assert f"{measures[column['name']]['value']:.{column['digits']}f}" in summary, (model, column["name"])
    # the domains' bars, and a loss for each of the three trainings at least
    assert len(charts) >= 4
    assert min(charts) > 100
