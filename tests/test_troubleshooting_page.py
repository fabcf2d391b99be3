"""Every message of docs/troubleshooting.md is one that the code can print."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("pipeline", "stages", "alignment", "losses")
DIFFERS = "…"
LEAST_LETTERS = 10
"""Less than that of a message's own words would be found somewhere by chance."""


def _messages() -> list[str]:
    page = (REPOSITORY / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    ours, _, _ = page.partition("## Of other programs")
    return re.findall(r"^### `(.*)`$", ours, flags=re.M)


def _texts(tree: ast.AST) -> Iterator[str]:
    """Every text of a module but its docstrings, with ``DIFFERS`` for what an f-string fills in."""
    said = [node for node in ast.walk(tree) if not isinstance(node, ast.Expr)]
    for node in (child for parent in said for child in ast.iter_child_nodes(parent)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else DIFFERS for part in node.values)


@pytest.fixture(scope="module")
def texts() -> str:
    """All of them, a line each."""
    sources = [path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py")]
    found = {text for path in sources for text in _texts(ast.parse(path.read_text(encoding="utf-8")))}
    return "\n".join(" ".join(text.split()) for text in found)


def _said(message: str, texts: str) -> bool:
    """Whether the words of a message stand in one text, in this order."""
    words = [re.escape(part.strip()) for part in message.split(DIFFERS)]
    return re.search("[^\n]*?".join(words), texts) is not None


def test_the_page_has_the_messages_that_people_meet():
    assert len(_messages()) >= 40
    assert len(set(_messages())) == len(_messages())


@pytest.mark.parametrize("message", _messages())
def test_a_message_is_one_of_the_code(message, texts):
    assert len(message.replace(DIFFERS, "").strip()) >= LEAST_LETTERS
    assert _said(message, texts)


def test_a_message_that_nobody_prints_is_found_out(texts):
    assert not _said("run … is already being executed with …", texts)
