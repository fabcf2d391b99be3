"""The documentation as a site: it builds without a warning, leads nowhere wrong and asks nobody else for anything."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from headless_browser import PROGRAMS, Browser, find_browser

REPOSITORY = Path(__file__).parents[1]
WITH_BROWSER = pytest.mark.skipif(find_browser() is None, reason=f"none of {', '.join(PROGRAMS)} is installed")
LOADED = {"script": "src", "img": "src", "iframe": "src", "link": "href", "source": "src", "object": "data"}
"""Elements whose address a browser loads without being asked."""


@dataclass
class Page(HTMLParser):
    """What one page leads to and loads, and which places it has."""

    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    places: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.places |= {value for key in ("id", "name") if (value := given.get(key))}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"] or "")
        if tag in LOADED and given.get(LOADED[tag]):
            self.loaded.append(given[LOADED[tag]] or "")


def _build(configuration: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--config-file", str(configuration), "--site-dir", str(site)]
    # Not with --quiet, under which warnings are not counted; the variable is for an announcement of the theme's.
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("site")
    built = _build(REPOSITORY / "mkdocs.yml", directory)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return directory


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    found = {}
    for path in sorted(site.rglob("*.html")):
        found[path] = Page()
        found[path].feed(path.read_text(encoding="utf-8"))
    return found


def test_every_page_of_the_documents_is_there(pages, site):
    assert len(pages) > 40
    documents = {path.stem for path in REPOSITORY.glob("docs/*.md")}
    assert documents <= {path.stem for path in pages}
    assert {path.stem for path in REPOSITORY.glob("recipes/*.yaml")} == {
        path.stem for path in pages if path.parent == site / "recipes"
    }


def test_the_first_page_leads_to_every_other_by_its_menu(pages, site):
    menu = {(site / unquote(urlsplit(link).path)).resolve() for link in pages[site / "index.html"].links}
    assert [path.name for path in pages if path not in menu and path.name != "404.html"] == []


def test_links_lead_to_a_place_that_is_there(pages):
    for path, page in pages.items():
        for link in page.links:
            address = urlsplit(link)
            if address.scheme or path.name == "404.html":
                continue
            target = (path.parent / unquote(address.path)).resolve() if address.path else path
            assert target.exists(), f"{path.name} leads to {link}"
            if address.fragment and target in pages:
                assert unquote(address.fragment) in pages[target].places, f"{path.name} leads to {link}"


def test_pages_load_nothing_from_elsewhere(pages, site):
    for path, page in pages.items():
        for address in page.loaded:
            assert not urlsplit(address).netloc, f"{path.name} loads {address}"
            if path.name != "404.html" and not address.startswith("data:"):
                assert (path.parent / urlsplit(address).path).exists(), f"{path.name} loads {address}"
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert re.findall(r"""(?:url\(|@import)\s*["']?(?:https?:)?//[^)"']+""", styles) == []


@WITH_BROWSER
def test_a_browser_asks_for_files_of_the_site_alone(site, tmp_path):
    with Browser(find_browser() or "", tmp_path / "profile") as browser:
        for name in ("index.html", "architecture.html", "recipe.html", "recipes/quickstart.html", "evaluation.html"):
            browser.open(site / name)
            assert [each for each in browser.requests if not each.startswith(("file:", "data:"))] == []
            assert len(browser.requests) > 3
            assert browser.complaints == []


@WITH_BROWSER
def test_the_search_finds_pages_without_a_server(site, tmp_path):
    search = """(() => {
      document.querySelector("#__search").click();
      const field = document.querySelector(".md-search__input");
      field.focus();
      field.value = "Rényi efficiency";
      for (const kind of ["input", "keyup"]) field.dispatchEvent(new Event(kind, {bubbles: true}));
    })()"""
    found = "[...document.querySelectorAll('.md-search-result__link')].map((link) => link.getAttribute('href'))"
    with Browser(find_browser() or "", tmp_path / "profile") as browser:
        browser.open(site / "index.html")
        browser.evaluate(search)
        results: list[str] = []
        for _ in range(100):
            if results := browser.evaluate(found):
                break
            time.sleep(0.2)
        assert any("cards.html" in each or "papers.html" in each for each in results)
        assert [each for each in browser.requests if not each.startswith(("file:", "data:"))] == []
        assert browser.complaints == []


@pytest.mark.parametrize("fault", ["[gone](gone.md)", "[no such place](recipe.md#no-such-place)"])
def test_a_dead_link_stops_the_build(fault, tmp_path):
    for name in ("docs", "recipes", "benchmarks"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("*.jsonl", "__pycache__"))
    for path in (*REPOSITORY.glob("*.md"), REPOSITORY / "mkdocs.yml"):
        shutil.copy(path, tmp_path)
    page = tmp_path / "docs" / "security.md"
    page.write_text(page.read_text(encoding="utf-8") + f"\n{fault}\n", encoding="utf-8")
    assert _build(tmp_path / "mkdocs.yml", tmp_path / "site").returncode != 0


def test_a_page_without_a_place_in_the_menu_stops_the_build(tmp_path):
    configuration = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    menu = configuration.index("\nnav:")
    shutil.copytree(REPOSITORY / "docs" / "hooks", tmp_path / "docs" / "hooks")
    (tmp_path / "README.md").write_text("# First\n", encoding="utf-8")
    (tmp_path / "docs" / "javascripts").mkdir()
    (tmp_path / "mkdocs.yml").write_text(configuration[:menu] + "\nnav: [index.md]\n", encoding="utf-8")
    assert _build(tmp_path / "mkdocs.yml", tmp_path / "site").returncode == 0
    (tmp_path / "docs" / "forgotten.md").write_text("# Forgotten\n", encoding="utf-8")
    assert _build(tmp_path / "mkdocs.yml", tmp_path / "site").returncode != 0


def test_the_pictures_name_what_is_there():
    pictures = "".join(path.read_text(encoding="utf-8") for path in REPOSITORY.glob("docs/images/*.svg"))
    named = re.findall(r">((?:alignment|losses|stages|pipeline)/[\w./]*)<", pictures)
    assert len(named) > 15
    assert [path for path in named if not (REPOSITORY / path).exists()] == []


def test_every_picture_is_shown():
    pages = "".join(path.read_text(encoding="utf-8") for path in REPOSITORY.glob("docs/*.md"))
    pictures = [path.name for path in (REPOSITORY / "docs" / "images").iterdir()]
    assert [name for name in pictures if f"images/{name})" not in pages] == []
