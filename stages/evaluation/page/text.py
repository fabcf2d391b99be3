"""Text that was read or written by models, as HTML that shows every character of it."""

from __future__ import annotations

import html
import json
import re
import unicodedata
from typing import Any

from markupsafe import Markup

_MARKED = {" ": "space", "\n": "newline", "\t": "tab"}
_SHOWN_BY_CODE = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp", "Zs"}
"""Unicode categories of characters that cannot be seen or told from others: controls, formats, private, surrogates,
separators. ``items.js`` has the same rule."""


def visible(text: str) -> Markup:
    """``text`` with white space marked and what cannot be seen spelled as its code point, such as U+200B."""
    return Markup("".join(_character(character) for character in text))


def _character(character: str) -> str:
    if mark := _MARKED.get(character):
        return f'<i class="{mark}">{character}</i>'
    if unicodedata.category(character) in _SHOWN_BY_CODE or character == "\N{REPLACEMENT CHARACTER}":
        return f'<i class="code">U+{ord(character):04X}</i>'
    return html.escape(character, quote=False)


def script_data(value: Any) -> Markup:
    """``value`` as JSON that can stand in a ``<script>`` element: no text in it ends the element or opens a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(re.sub(r"[<>&]", lambda match: f"\\u{ord(match[0]):04x}", text))
