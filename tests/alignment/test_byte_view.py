"""A tokenizer as bytes: exact on every text, or an error that says where it is not."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from toy_tokenizers import END, HELLO_MERGES, SPACE, byte_level, fast

from alignment.byte_view import ByteView, InexactEncoding
from alignment.token_codecs import TokenCodec, byte_alphabet
from alignment.token_table import TokenKind

SCRIPTS = "Café naïve — 東京タワー Москва 👩‍👩‍👧 e\u0301 \x00\r\n\tdef f(x):\n    return 12345\n  עברית ไทย"


def sentencepiece() -> Tokenizer:
    """SentencePiece-style BPE with byte fallback and no treatment of spaces yet."""
    controls = ["<unk>", "<s>", "</s>"]
    fallbacks = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = [SPACE, "h", "e", "l", "o", "w", "é", "he", "ll", "hell", "hello", SPACE + "hello", SPACE * 2]
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), (SPACE, "hello"), (SPACE, SPACE)]
    entries = [*controls, *fallbacks, *pieces]
    model = models.BPE(
        {entry: index for index, entry in enumerate(entries)},
        merges,
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(controls)
    return tokenizer


def llama_style() -> Tokenizer:
    """The pipeline of Llama-2's tokenizer.json: a normaliser that puts a space before every text."""
    tokenizer = sentencepiece()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


def gemma_style() -> Tokenizer:
    """The pipeline of Gemma's tokenizer.json: no space is invented, and a run of spaces is an added token."""
    tokenizer = sentencepiece()
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_tokens([AddedToken(SPACE * 2, normalized=False)])
    return tokenizer


def metaspace(prepend_scheme: str) -> Tokenizer:
    tokenizer = sentencepiece()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(SPACE, prepend_scheme, split=False)]
    )
    return tokenizer


def sequence_byte_level() -> Tokenizer:
    """ByteLevel nested in sequences on both ends, as in Llama-3 and SmolLM2."""
    split_digits = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer = byte_level(*HELLO_MERGES, pre_tokenizer=split_digits)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel()])
    return tokenizer


def prefix_space_byte_level() -> Tokenizer:
    """RoBERTa's option: a space before every text that does not begin with one."""
    return byte_level(*HELLO_MERGES, pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True))


BYTE_LEVEL = {
    "byte_level": fast(byte_level(*HELLO_MERGES), eos_token=END),
    "sequence": fast(sequence_byte_level(), eos_token=END),
    "prefix_space": fast(prefix_space_byte_level(), eos_token=END),
}
SENTENCEPIECE = {
    "llama": fast(llama_style()),
    "gemma": fast(gemma_style()),
    "metaspace_always": fast(metaspace("always")),
    "metaspace_first": fast(metaspace("first")),
    "metaspace_never": fast(metaspace("never")),
}
TOKENIZERS = BYTE_LEVEL | SENTENCEPIECE
VIEWS = {name: ByteView.from_tokenizer(tokenizer) for name, tokenizer in TOKENIZERS.items()}


def spelled(view: ByteView, ids: np.ndarray) -> bytes:
    return b"".join(view.token_bytes(token_id) or b"" for token_id in ids.tolist())


def test_byte_alphabet_has_the_published_characters() -> None:
    alphabet = {byte: character for character, byte in byte_alphabet().items()}
    expected = {0x00: "Ā", 0x09: "ĉ", 0x0A: "Ċ", 0x0D: "č", 0x20: "Ġ", 0x7F: "ġ", 0xAD: "Ń"}
    expected |= {0xC3: "Ã", 0xA9: "©", 0xFF: "ÿ"}
    assert {byte: alphabet[byte] for byte in expected} == expected
    assert len(alphabet) == 256
    assert TokenCodec(byte_level=True).to_bytes("ĠcafÃ©") == " café".encode()


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=st.text(max_size=60))
@example(text="")
@example(text=" ")
@example(text="  hello  hello héllo\n")
@example(text=f"hello{END}<s>hello</s>")
@example(text=SCRIPTS)
def test_tokens_spell_every_text(name: str, text: str) -> None:
    view = VIEWS[name]
    if name in SENTENCEPIECE and SPACE in text:
        with pytest.raises(InexactEncoding):
            view.encode(text)
        return
    encoding = view.encode(text)
    expected = text.encode()
    assert spelled(view, encoding.ids) in (expected, b" " + expected)
    assert encoding.ids.tolist() == TOKENIZERS[name].encode(text, add_special_tokens=False, split_special_tokens=True)
    assert encoding.byte_ends.tolist()[-1:] == ([len(expected)] if text else [])
    for start, end, token_id in zip(
        encoding.byte_ends, encoding.byte_ends[1:], encoding.ids.tolist()[1:], strict=False
    ):
        assert expected[start:end] == view.token_bytes(token_id)
    assert not encoding.special.any()


# Where a space is invented the tokenizer's own offsets give it to the first character.
@pytest.mark.parametrize("name", ["byte_level", "sequence", "gemma", "metaspace_never"])
@given(text=st.text(alphabet="helo w\n1", max_size=40))
def test_byte_ends_are_the_tokenizers_own_offsets_on_ascii(name: str, text: str) -> None:
    backend = TOKENIZERS[name].backend_tokenizer
    ends = [end for _, end in backend.encode(text, add_special_tokens=False).offsets]
    assert VIEWS[name].encode(text).byte_ends.tolist() == ends


def test_encoding_has_the_promised_types() -> None:
    encoding = VIEWS["byte_level"].encode("hello hello")
    assert (encoding.ids.dtype, encoding.byte_ends.dtype, encoding.special.dtype) == (np.int32, np.int64, bool)
    assert encoding.boundary.tolist() == encoding.verbatim.tolist() == [True, True]
    assert encoding.byte_ends.tolist() == [5, 11]


def test_tokens_may_end_inside_a_character() -> None:
    encoding = VIEWS["byte_level"].encode("é東")
    assert encoding.byte_ends.tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize(
    ("name", "text", "ends"),
    [
        ("llama", "hello", [5]),  # "▁hello"
        ("llama", "hello hello", [5, 11]),
        ("llama", " hello", [0, 6]),  # "▁", "▁hello": the first token has no byte of the text
        ("llama", "wo", [0, 1, 2]),  # "▁", "w", "o"
        ("llama", "東", [0, 1, 2, 3]),
        ("gemma", " hello", [6]),
        ("gemma", "hello  w", [5, 7, 8]),
        ("metaspace_always", "hello", [5]),
        ("metaspace_always", " hello", [6]),  # Metaspace adds no second space
        ("metaspace_never", "hello", [5]),
        ("prefix_space", "hello", [5]),
        ("prefix_space", " hello", [6]),
    ],
)
def test_an_invented_leading_space_is_no_byte_of_the_text(name: str, text: str, ends: list[int]) -> None:
    assert VIEWS[name].encode(text).byte_ends.tolist() == ends


def test_sentencepiece_kinds_and_bytes() -> None:
    view = VIEWS["gemma"]
    ids = SENTENCEPIECE["gemma"].convert_tokens_to_ids
    assert view.token_bytes(ids("<0x41>")) == b"A"
    assert view.kinds[ids("<0x41>")] == TokenKind.BYTE_FALLBACK
    assert view.token_bytes(ids("é")) == "é".encode()
    assert view.token_bytes(ids(SPACE + "hello")) == b" hello"
    assert view.kinds[ids("hello")] == TokenKind.TEXT
    assert view.token_bytes(ids("<s>")) is None
    # Added, but also a piece of the model, which writes it for two spaces.
    assert view.token_bytes(ids(SPACE * 2)) == b"  "
    assert view.kinds[ids(SPACE * 2)] == TokenKind.ADDED


@pytest.mark.parametrize("name", TOKENIZERS)
def test_special_strings_in_a_document_are_text(name: str) -> None:
    tokenizer, view = TOKENIZERS[name], VIEWS[name]
    special_id, special = next(reversed(view.special_tokens.items()))
    text = f"hello {special} hello"
    encoding = view.encode(text)
    assert special_id not in encoding.ids
    assert encoding.byte_ends[-1] == len(text)
    assert special_id in tokenizer.encode(text), "the caller's tokenizer must be left as it was"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_exactness_is_known_beforehand(name: str) -> None:
    mark = () if name in BYTE_LEVEL else (f"{SPACE!r} in a text is read as a space",)
    assert VIEWS[name].inexact_reasons == mark
    assert VIEWS[name].exact == (not mark)


def test_a_long_document() -> None:
    text = "hello wörld\n" * 80_000  # 1 MB
    encoding = VIEWS["byte_level"].encode(text)
    assert encoding.byte_ends[-1] == len(text.encode())
    assert np.isin(np.arange(1, 80_001) * 13, encoding.byte_ends).all()


def test_a_normaliser_that_rewrites_the_text_is_reported() -> None:
    tokenizer = fast(byte_level(normalizer=normalizers.NFC()))
    tokenizer.name_or_path = "some/model"
    view = ByteView.from_tokenizer(tokenizer)
    assert view.encode("ab é").byte_ends[-1] == 5
    with pytest.raises(InexactEncoding) as caught:
        view.encode("ab e\u0301 c")
    assert caught.value.offset == 3
    message = str(caught.value)
    for part in ("some/model", "byte 3 of 8", repr("e\u0301 c".encode()), repr("é c".encode()), "NFC"):
        assert part in message


@pytest.mark.parametrize(
    ("text", "offset"),
    [("a b", 3), ("a bc", 0)],
)
def test_text_that_tokens_lengthen_or_shorten_is_reported(text: str, offset: int) -> None:
    normalizer = normalizers.Sequence([normalizers.Replace(Regex("b$"), "b!"), normalizers.Replace("a bc", "")])
    view = ByteView.from_tokenizer(fast(byte_level(normalizer=normalizer)))
    with pytest.raises(InexactEncoding) as caught:
        view.encode(text)
    assert caught.value.offset == offset


def test_an_unknown_token_is_reported_by_its_name() -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, "<unk>": 1}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    view = ByteView.from_tokenizer(fast(tokenizer, unk_token="<unk>"))
    with pytest.raises(InexactEncoding, match=r"special tokens \['<unk>'\]"):
        view.encode("ab")


def test_prefix_ids_are_what_the_tokenizer_puts_before_a_text() -> None:
    assert VIEWS["llama"].prefix_ids == [1]
    assert VIEWS["gemma"].prefix_ids == []
    assert VIEWS["byte_level"].prefix_ids == []


def test_batches_encode_like_single_texts() -> None:
    texts = ["hello", "", SCRIPTS, " hello 1234"]
    for view in VIEWS.values():
        for text, batched in zip(texts, view.encode_batch(texts), strict=True):
            single = view.encode(text)
            assert batched.ids.tolist() == single.ids.tolist()
            assert batched.byte_ends.tolist() == single.byte_ends.tolist()


def test_a_pickled_view_still_reads_special_strings_as_text() -> None:
    copy = pickle.loads(pickle.dumps(VIEWS["byte_level"]))
    assert copy.encode(f"a{END}").byte_ends[-1] == 1 + len(END)


def test_digit_scheme_of_digits_with_a_dummy_prefix() -> None:
    assert VIEWS["llama"].digit_scheme == "single"


@pytest.mark.demo
def test_gpt2_is_exact_on_many_scripts(gpt2_tokenizer_dir: Path) -> None:
    view = ByteView.from_tokenizer(gpt2_tokenizer_dir)
    assert (view.vocab_size, view.prefix_ids, view.digit_scheme) == (50257, [], "free")
    assert view.special_tokens == {50256: END}
    assert sorted(view.token_bytes(index) for index in range(256)) == [bytes([byte]) for byte in range(256)]
    text = f"{SCRIPTS}{END}" * 20
    encoding = view.encode(text)
    assert spelled(view, encoding.ids) == text.encode()
    # https://github.com/openai/gpt-2: "Hello world" is 15496 995, one token for each word.
    assert view.encode("Hello world").ids.tolist() == [15496, 995]
