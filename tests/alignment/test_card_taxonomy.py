"""What vocabulary entries are, as Qtok has it, and the shares of languages and scripts."""

from __future__ import annotations

import pytest

from alignment.byte_view import ByteView
from alignment.card.taxonomy import TOKEN_CLASSES, classify_tokens, language_shares, taxonomy


@pytest.mark.parametrize(
    ("token", "token_class", "script"),
    [
        (b"a", "pure_unicode", "latin"),  # a letter of GPT-2's alphabet of bytes
        (b"+", "pure_unicode", None),
        ("é".encode(), "pure_unicode", "latin"),
        ("ł".encode(), "pure_unicode", "latin"),  # U+0142 stands for a byte there
        ("ж".encode(), "char_alpha", "cyrillic"),
        ("東".encode(), "char_alpha", "han"),
        (b" ", "char_other", None),  # U+0020 is not in the alphabet: it is written as U+0120
        ("☃".encode(), "char_other", None),
        (b"\n", "char_errors", None),
        (b" the", "spaced_alpha", "latin"),
        (" дом".encode(), "spaced_alpha", "cyrillic"),
        (b" 12", "spaced_other", None),
        (b"  ", "spaced_other", None),
        (b" \n", "spaced_errors", None),
        (b"ing", "inner_alpha", "latin"),
        ("東京".encode(), "inner_alpha", "han"),
        ("東の".encode(), "inner_other", None),  # two scripts
        (b"x1", "inner_other", None),
        (b"\n\n", "inner_errors", None),
        (b"<mask>", "control_tokens", None),
        (b"[PAD]", "control_tokens", None),
        (b"<h2>", "inner_other", None),
        (b"</td>", "inner_other", None),
        (b"<>", "inner_other", None),
        ("東".encode()[:2], "unicode_flanks", None),
        (b"\x80", "unicode_flanks", None),  # whatever its length
        (b" \xe6\x9d", "unicode_flanks", None),
    ],
)
def test_the_class_of_a_token(token, token_class, script):
    assert classify_tokens([token]) == [(token_class, script)]


def test_a_vocabulary_is_partitioned():
    view = ByteView.from_token_bytes([b"a", b" the", "дом".encode(), b"\xff", None, b"", b"<unk>"])
    found = taxonomy(view)
    assert found.entries == 7 == sum(found.classes.values())
    assert tuple(found.classes) == TOKEN_CLASSES
    assert found.classes["control_tokens"] == 2, "a special token, whatever it is called, and one that looks like one"
    assert found.letters == {
        "latin": {"char": 1, "spaced": 1, "inner": 0},
        "cyrillic": {"char": 0, "spaced": 0, "inner": 1},
    }
    assert found.script_shares == {"latin": pytest.approx(2 / 7), "cyrillic": pytest.approx(1 / 7)}


def test_language_shares_are_of_tokens():
    # evaluation.md §9: ␣the{en}, ␣cat{en,nl}, ing{en,de,nl}. Divided by the six pairs, as Qtok does, it would be
    # 30.56, 13.89 and 5.56, which sum to 50.
    shares = language_shares([("en",), ("en", "nl"), ("en", "de", "nl"), ()])
    assert {name: round(100 * share, 2) for name, share in shares.items()} == {"en": 61.11, "nl": 27.78, "de": 11.11}
    assert sum(shares.values()) == pytest.approx(1)
    assert language_shares([(), ()]) == {}
