"""What a model wrote, on a page: every character can be seen, and none is obeyed."""

from __future__ import annotations

import html
import json
import re

from hypothesis import given
from hypothesis import strategies as st

from stages.evaluation.page.text import script_data, visible


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
