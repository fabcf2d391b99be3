"""Rendered chat templates: strings of special tokens are special tokens, and everything is located."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from toy_tokenizers import HELLO_MERGES, SPACE, byte_level, fast
from transformers import PreTrainedTokenizerFast

from alignment.byte_view import ByteView, Encoding

START, END = "<|start|>", "<|end|>"


def byte_level_chat() -> PreTrainedTokenizerFast:
    tokenizer = byte_level(*HELLO_MERGES)
    tokenizer.add_special_tokens([START, AddedToken(END, lstrip=True, rstrip=True)])
    return fast(tokenizer)


def prefixed_chat() -> PreTrainedTokenizerFast:
    """Llama-2's way: a space is invented at the start and after every special token."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), SPACE, *"helo", "he", SPACE + "he"]
    model = models.BPE(
        {piece: index for index, piece in enumerate(pieces)},
        [("h", "e"), (SPACE, "he")],
        unk_token="<unk>",
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.add_special_tokens(["<unk>", START, END])
    return fast(tokenizer, unk_token="<unk>")


def word_piece_chat() -> PreTrainedTokenizerFast:
    vocabulary = {"[UNK]": 0, "hello": 1, "##s": 2, ",": 3}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[UNK]", START, END])
    return fast(tokenizer, unk_token="[UNK]")


TOKENIZERS = {"byte level": byte_level_chat(), "prefixed": prefixed_chat(), "word pieces": word_piece_chat()}
VIEWS = {name: ByteView.from_tokenizer(tokenizer) for name, tokenizer in TOKENIZERS.items()}
PARTS = [START, END, "hello", "Hello", "he", " ", "  ", "\n", "é", "東", ",", "<unk>", "[UNK]", "x"]


def spans(encoding: Encoding, text: str) -> list[bytes]:
    data = text.encode()
    return [data[start:end] for start, end in pairwise([0, *encoding.byte_ends.tolist()])]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(parts=st.lists(st.sampled_from(PARTS), max_size=10))
@example(parts=[START, "hello", " ", END, "\n", START, " he"])
def test_ids_are_the_tokenizers_own_and_specials_span_their_strings(name: str, parts: list[str]) -> None:
    tokenizer, view, text = TOKENIZERS[name], VIEWS[name], "".join(parts)
    encoding = view.encode_rendered(text)
    assert encoding.ids.tolist() == tokenizer(text, add_special_tokens=False).input_ids
    found = spans(encoding, text)
    specials = [
        (view.special_tokens[token_id].encode(), span.strip())
        for token_id, span, special in zip(encoding.ids.tolist(), found, encoding.special, strict=True)
        if special
    ]
    assert all(string == span for string, span in specials)
    strings = [string.decode() for string, _ in specials]
    assert strings == [part for part in parts if part in view.special_tokens.values()]
    assert encoding.verbatim[encoding.special].all()
    assert encoding.boundary[encoding.special].all()
    for token_id, span, verbatim, special in zip(
        encoding.ids.tolist(), found, encoding.verbatim, encoding.special, strict=True
    ):
        if verbatim and not special:
            assert span.removeprefix(b" ") == (view.token_bytes(token_id) or b"").removeprefix(b" ")


def test_an_ordinary_template_is_spelled_by_its_tokens() -> None:
    text = f"{START}hello{START}é\n"
    encoding = VIEWS["byte level"].encode_rendered(text)
    assert spans(encoding, text) == [START.encode(), b"hello", START.encode(), "é".encode(), b"\n"]
    assert encoding.special.tolist() == [True, False, True, False, False]
    assert encoding.exact


def test_swallowed_white_space_belongs_to_the_special_token() -> None:
    text = f"hello \n{END}  hello"
    encoding = VIEWS["byte level"].encode_rendered(text)
    assert spans(encoding, text) == [b"hello", f" \n{END}  ".encode(), b"hello"]
    assert encoding.special.tolist() == [False, True, False]
    assert encoding.exact


def test_spaces_invented_after_special_tokens_are_no_bytes() -> None:
    text = f"{START}he{END}{START} he"
    encoding = VIEWS["prefixed"].encode_rendered(text)
    expected = [START.encode(), b"he", END.encode(), START.encode(), b"", b" he"]
    assert spans(encoding, text) == expected
    assert encoding.exact


def test_unknown_text_is_no_special_token() -> None:
    text = f"{START}東[UNK]"
    encoding = VIEWS["word pieces"].encode_rendered(text)
    assert spans(encoding, text) == [START.encode(), "東".encode(), b"[UNK]"]
    assert encoding.special.tolist() == [True, False, True]
    assert encoding.verbatim.tolist() == [True, False, True]


def test_special_tokens_whose_place_is_unknown_are_no_markup() -> None:
    """Without "A", which leaves no trace, the tokens between two of them could be anywhere between."""
    letters = [letter for letter in sorted(pre_tokenizers.ByteLevel.alphabet()) if letter != "A"]
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([START, END])
    text = f"{START}xA{END}{START}Ay{END}"
    encoding = ByteView.from_tokenizer(fast(tokenizer)).encode_rendered(text)
    assert spans(encoding, text) == [START.encode(), b"x", b"", f"A{END}{START}A".encode(), b"y", END.encode()]
    assert encoding.special.tolist() == [True, False, False, False, False, True]
    assert encoding.verbatim.tolist() == [True, True, False, False, True, True]
    assert encoding.boundary.tolist() == [True, True, False, True, True, True]


def test_rewritten_text_is_marked_and_never_refused() -> None:
    encoding = VIEWS["word pieces"].encode_rendered(f"{START}Hello,\nhellos {END}")
    assert encoding.verbatim.tolist() == [True, False, True, False, True, True]
    assert VIEWS["word pieces"].encode_rendered("").ids.size == 0
