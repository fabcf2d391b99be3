"""Tokenizers that rewrite text: every token is located in the original, and what is not the text is marked."""

from __future__ import annotations

import pickle
import unicodedata
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from toy_tokenizers import HELLO_MERGES, SPACE, byte_level, fast

from alignment.byte_view import ByteView, Encoding, InexactEncoding

ODD_TEXT = "Élan e\u0301 ﬁn ① 東京\u3000x  y\t\n ▁ \x00\x07 İ 👩‍👩‍👧 <unk> [MASK] a-b,c "


def vocabulary(*entries: str) -> dict[str, int]:
    return {entry: index for index, entry in enumerate(entries)}


def uncased_word_pieces() -> Tokenizer:
    entries = ["[UNK]", "elan", "hello", "hel", "##lo", "##l", "a", "b", "fin", "1", "##1", ",", "-", "'", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(vocabulary(*entries), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[UNK]", "[MASK]"])
    return tokenizer


def word_end_bpe() -> Tokenizer:
    """CLIP's pipeline: byte-level, lower-cased, words without their spaces and with a mark at their ends."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [*letters, *(letter + "</w>" for letter in letters), "he</w>", "lo</w>"]
    merges = [("h", "e</w>"), ("l", "o</w>")]
    tokenizer = Tokenizer(models.BPE(vocabulary(*entries), merges, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"), "removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.BPEDecoder()
    return tokenizer


def words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(vocabulary("<unk>", "hello", "world", ","), unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def unigram_without_bytes() -> Tokenizer:
    pieces = [("<unk>", 0.0), *((piece, -float(len(piece) < 3)) for piece in (SPACE, "hello", "l", "o", "f", "i", "1"))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    collapse = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(), collapse])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def bpe_that_drops_the_unknown() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocabulary(SPACE, "a", "b", "ab"), [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


LOSSY = {
    "word pieces": uncased_word_pieces(),
    "word ends": word_end_bpe(),
    "words": words(),
    "unigram": unigram_without_bytes(),
    "dropping": bpe_that_drops_the_unknown(),
    "nfc": byte_level(*HELLO_MERGES, normalizer=normalizers.NFC()),
    "nfkd": byte_level(*HELLO_MERGES, normalizer=normalizers.NFKD()),
    "lower": byte_level(*HELLO_MERGES, normalizer=normalizers.Lowercase()),
}
VIEWS = {name: ByteView.from_tokenizer(fast(tokenizer)) for name, tokenizer in LOSSY.items()}


def spans(encoding: Encoding, text: str) -> list[bytes]:
    data, edges = text.encode(), [0, *encoding.byte_ends.tolist()]
    return [data[start:end] for start, end in pairwise(edges)]


@pytest.mark.parametrize("name", LOSSY)
@given(text=st.text(max_size=30) | st.text(alphabet="hHeél o\u0301\t\nﬁ1,▁", max_size=30))
@example(text=ODD_TEXT)
@example(text="")
@example(text="   ")
def test_marks_are_true_on_every_text(name: str, text: str) -> None:
    view = VIEWS[name]
    encoding = view.encode(text, exact=False)
    data = text.encode()
    if not any(string in text for string in view.special_tokens.values()):
        assert encoding.ids.tolist() == LOSSY[name].encode(text, add_special_tokens=False).ids
    ends = encoding.byte_ends
    assert (np.diff(ends, prepend=0) >= 0).all()
    assert ends.max(initial=0) <= len(data)
    for token_id, span, verbatim, special in zip(
        encoding.ids.tolist(), spans(encoding, text), encoding.verbatim, encoding.special, strict=True
    ):
        if verbatim:
            assert span.removeprefix(b" ") == (view.token_bytes(token_id) or b"").removeprefix(b" ")
        if special:
            assert span == b""
    stretches = np.flatnonzero(~encoding.boundary)
    assert not encoding.verbatim[stretches].any(), "an end is unknown only inside rewritten text"
    if encoding.exact and ends.size and ends[-1] == len(data):
        assert view.encode(text).ids.tolist() == encoding.ids.tolist()
    elif data:
        with pytest.raises(InexactEncoding, match="does not reproduce"):
            view.encode(text)


@given(text=st.text(alphabet="eoaé\u0301\u0327 xÅ\u1100\u1161", max_size=20))
def test_composition_is_located_by_its_parts(text: str) -> None:
    """Under NFC, text is rewritten exactly where it is not its own normal form, and boundaries stay outside."""
    encoding = VIEWS["nfc"].encode(text, exact=False)
    data = text.encode()
    start = 0
    for end, last in zip(encoding.byte_ends.tolist(), encoding.boundary.tolist(), strict=True):
        if last and _is_character_boundary(data, end):
            left, right = data[:end].decode(), data[end:].decode()
            both = unicodedata.normalize("NFC", left) + unicodedata.normalize("NFC", right)
            assert both == unicodedata.normalize("NFC", text), f"a boundary inside a composition at byte {end}"
            start = end
    assert start == len(data) or not data
    assert encoding.exact == (unicodedata.normalize("NFC", text) == text)


def _is_character_boundary(data: bytes, offset: int) -> bool:
    return offset == len(data) or data[offset] & 0xC0 != 0x80


@pytest.mark.parametrize(
    ("name", "text", "expected", "verbatim"),
    [
        ("word pieces", "hello, hello", [b"hello", b",", b" hello"], [1, 1, 1]),
        ("word pieces", "hello  hello", [b"hello", b"  hello"], [1, 0]),
        ("word pieces", "Élan a", ["Élan".encode(), b" a"], [0, 1]),
        ("word pieces", "a - b", [b"a", b" -", b" b"], [1, 1, 1]),
        ("word pieces", "hellol 東", [b"hello", b"l", " 東".encode()], [1, 1, 0]),
        ("word pieces", "hello[UNK]", [b"hello", b"[", b"UNK", b"]"], [1, 0, 0, 0]),
        ("word ends", "he lo", [b"he", b" lo"], [1, 1]),
        ("word ends", "Lo", [b"Lo"], [0]),
        ("words", "hello, world", [b"hello", b",", b" world"], [1, 1, 1]),
        ("words", "hello xy", [b"hello", b" xy"], [1, 0]),
        ("unigram", "hello ﬁ", [b"", b"hello", b" ", b"", "ﬁ".encode()], [1, 1, 1, 0, 0]),
        ("unigram", "l  o", [b"", b"l", b"  ", b"o"], [1, 1, 0, 1]),
        ("dropping", "ab☃ab", [b"", "ab☃".encode(), b"ab"], [0, 0, 1]),
        ("lower", "HEllo", [b"HEllo"], [0]),
    ],
)
def test_hand_worked_locations(name: str, text: str, expected: list[bytes], verbatim: list[int]) -> None:
    encoding = VIEWS[name].encode(text, exact=False)
    assert spans(encoding, text) == expected
    assert encoding.verbatim.tolist() == [bool(value) for value in verbatim]


def test_word_starts_carry_their_space_and_continuations_do_not() -> None:
    view = VIEWS["word pieces"]
    entries = vocabulary("[UNK]", "elan", "hello", "hel", "##lo", "##l", "a", "b", "fin", "1", "##1", ",", "-")
    expected = {"hello": b" hello", "##lo": b"lo", "a": b" a", "1": b" 1", "##1": b"1", ",": b",", "-": b"-"}
    assert {entry: view.token_bytes(entries[entry]) for entry in expected} == expected
    assert view.token_bytes(entries["[UNK]"]) is None


def test_unknown_characters_are_spanned_by_the_unknown_token() -> None:
    encoding = VIEWS["words"].encode("xy hello", exact=False)
    assert encoding.ids.tolist() == [0, 1]
    assert encoding.special.tolist() == [False, False], "it stands for text"
    assert encoding.byte_ends.tolist() == [2, 8]
    assert encoding.verbatim.tolist() == [False, True]


def test_white_space_at_the_end_without_a_token_is_reported() -> None:
    view = VIEWS["words"]
    assert view.encode("hello\n", exact=False).byte_ends.tolist() == [5]
    with pytest.raises(InexactEncoding, match="from byte 5 of 6") as caught:
        view.encode("hello\n")
    assert caught.value.offset == 5


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("word pieces", "lower-cases"),
        ("word pieces", "strips accents"),
        ("word pieces", "its pre-tokenizer BertPreTokenizer drops what it splits at"),
        ("word pieces", "no byte fallback: unknown characters become [UNK]"),
        ("word ends", "its normalizer NFC rewrites text"),
        ("word ends", "its pre-tokenizer Split drops what its pattern does not match"),
        ("unigram", "strips white space from the ends of a text"),
        ("unigram", "its normalizer replaces ' {2,}' with ' '"),
        ("unigram", "'▁' in a text is read as a space"),
        ("dropping", "no byte fallback: unknown characters are dropped"),
    ],
)
def test_the_view_says_why_it_is_not_exact(name: str, reason: str) -> None:
    assert reason in VIEWS[name].inexact_reasons
    assert not VIEWS[name].exact


def test_a_pre_tokenizer_that_drops_the_start_of_a_text_is_named() -> None:
    tokenizer = byte_level(*HELLO_MERGES)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.UnicodeScripts(), tokenizer.pre_tokenizer])
    view = ByteView.from_tokenizer(fast(tokenizer))
    reason = "its pre-tokenizer UnicodeScripts drops leading characters of no script, such as spaces"
    assert view.inexact_reasons == (reason,)
    encoding = view.encode(" a", exact=False)
    assert (encoding.ids.size, encoding.byte_ends.tolist(), encoding.exact) == (1, [2], False)


def test_missing_bytes_are_listed() -> None:
    letters = [letter for letter in sorted(pre_tokenizers.ByteLevel.alphabet()) if letter not in "AÀ"]
    tokenizer = Tokenizer(models.BPE(vocabulary(*letters), []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    view = ByteView.from_tokenizer(fast(tokenizer))
    # The byte 0xC0, which is À in the alphabet, occurs in no UTF-8 text.
    assert view.inexact_reasons == ("no token for the byte 0x41",)
    assert view.encode("Ab", exact=False).byte_ends.tolist() == [2]


def test_byte_fallback_under_a_byte_alphabet_is_no_way_to_spell_the_text() -> None:
    """Without ``Ġ``, a space becomes the fallback tokens of its two bytes C4 A0."""
    letters = [letter for letter in sorted(pre_tokenizers.ByteLevel.alphabet()) if letter != "Ġ"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    model = models.Unigram([(entry, -1.0) for entry in ["<unk>", *letters, *fallback]], 0, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    view = ByteView.from_tokenizer(fast(tokenizer))
    assert view.inexact_reasons == ("no token for the byte 0x20",)
    assert view.encode("a b", exact=False).verbatim.tolist() == [True, False, False, True]


def test_added_tokens_that_swallow_spaces_are_named_and_located() -> None:
    tokenizer = byte_level(*HELLO_MERGES)
    tokenizer.add_tokens([AddedToken("<mask>", lstrip=True, special=False)])
    view = ByteView.from_tokenizer(fast(tokenizer))
    assert view.inexact_reasons == ("the added token '<mask>' swallows the white space before it",)
    encoding = view.encode("hello  <mask> a", exact=False)
    assert spans(encoding, "hello  <mask> a") == [b"hello", b"  <mask>", b" ", b"a"]
    assert encoding.verbatim.tolist() == [True, False, True, True]
    assert view.encode("hello<mask>").exact


def test_pieces_of_special_tokens_that_the_model_makes_of_text_are_named() -> None:
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", 0.0), ("a", -1.0)], 0, False))
    tokenizer.add_special_tokens(["</s>"])
    view = ByteView.from_tokenizer(fast(tokenizer))
    assert any("'</s>' becomes a special token" in reason for reason in view.inexact_reasons)
    encoding = view.encode("a</s>a", exact=False)
    assert encoding.byte_ends.tolist() == [1, 5, 6]
    assert encoding.verbatim.tolist() == [True, False, True]
    with pytest.raises(InexactEncoding, match="</s>"):
        view.encode("a</s>a")


def test_lone_surrogates_are_reported_by_their_place() -> None:
    for exact in (True, False):
        with pytest.raises(InexactEncoding, match=r"character 2 is the lone surrogate U\+D800") as caught:
            VIEWS["nfc"].encode("é \ud800", exact=exact)
        assert caught.value.offset == 3
    with pytest.raises(InexactEncoding, match="lone surrogate"):
        VIEWS["nfc"].encode_rendered("\udfff")


def test_lossy_views_survive_pickling() -> None:
    for view in VIEWS.values():
        copy = pickle.loads(pickle.dumps(view))
        assert copy.inexact_reasons == view.inexact_reasons
        assert copy.encode(ODD_TEXT, exact=False).byte_ends.tolist() == (
            view.encode(ODD_TEXT, exact=False).byte_ends.tolist()
        )
