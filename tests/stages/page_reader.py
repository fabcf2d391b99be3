"""Reads a page of the report as elements and tables."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import NamedTuple

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
