"""What a tokenizer declares: specials, added tokens, gaps, digits, and what makes two tokenizers different."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from toy_tokenizers import END, HELLO_MERGES, byte_level, fast
from transformers import PreTrainedTokenizerFast

from alignment.byte_view import ByteView
from alignment.token_codecs import UnsupportedTokenizer, byte_alphabet
from alignment.token_table import TokenKind


def test_special_token_known_only_to_the_backend() -> None:
    backend = byte_level()
    backend.add_special_tokens([END])
    tokenizer = fast(backend)
    assert tokenizer.all_special_ids == []
    view = ByteView.from_tokenizer(tokenizer)
    assert view.special_tokens == {256: END}
    assert (view.token_bytes(256), view.byte_lengths[256]) == (None, 0)


def test_special_token_known_only_to_all_special_ids() -> None:
    tokenizer = fast(byte_level())
    tokenizer.add_tokens([AddedToken("<end>", special=False)])
    tokenizer.eos_token = "<end>"
    assert not tokenizer.added_tokens_decoder[256].special
    view = ByteView.from_tokenizer(tokenizer)
    assert view.special_tokens == {256: "<end>"}
    assert view.encode("a<end>").byte_ends.tolist() == [1, 2, 3, 4, 5, 6]


def test_added_tokens_that_are_not_special_are_literal_text() -> None:
    tokenizer = fast(byte_level(*HELLO_MERGES))
    tokenizer.add_tokens(["<é>"])
    view = ByteView.from_tokenizer(tokenizer)
    added = tokenizer.convert_tokens_to_ids("<é>")
    assert view.token_bytes(added) == "<é>".encode()
    assert view.kinds[added] == TokenKind.ADDED
    encoding = view.encode("hello<é>hello")
    assert added in encoding.ids
    assert encoding.byte_ends.tolist() == [5, 9, 14]


def test_gaps_in_the_ids_are_recorded() -> None:
    entries = sorted(byte_alphabet())
    vocabulary = {entry: index for index, entry in enumerate(entries)} | {"he": 259}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("h", "e")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    view = ByteView.from_tokenizer(fast(tokenizer))
    assert view.vocab_size == 260
    assert view.missing_ids.tolist() == [256, 257, 258]
    assert view.token_bytes(257) is None
    assert view.byte_lengths[255:].tolist() == [1, 0, 0, 0, 2]
    assert not view.boundary_mask()[257]


@pytest.mark.parametrize("token_id", [-1, 260])
def test_an_id_outside_the_vocabulary_is_an_error(token_id: int) -> None:
    view = ByteView.from_token_bytes([b"a"] * 260)
    with pytest.raises(IndexError, match=rf"{token_id} is outside \[0, 260\)"):
        view.token_bytes(token_id)


def test_a_tokenizer_without_tokens_for_anything_common_is_refused() -> None:
    tokenizer = Tokenizer(models.BPE({"q": 0}, []))
    with pytest.raises(UnsupportedTokenizer, match="no token for a letter, a digit or a kana"):
        ByteView.from_tokenizer(fast(tokenizer))


def test_the_unknown_token_is_special_though_nothing_declares_it() -> None:
    tokenizer = fast(Tokenizer(models.WordLevel({"?": 0, "a": 1}, unk_token="?")))
    assert tokenizer.all_special_ids == []
    view = ByteView.from_tokenizer(tokenizer)
    assert view.special_tokens == {0: "?"}
    assert view.token_bytes(0) is None


def test_merges_are_not_dropped_at_random() -> None:
    tokenizer = byte_level(*HELLO_MERGES)
    tokenizer.model.dropout = 0.9
    assert ByteView.from_tokenizer(fast(tokenizer)).encode("hello hello").byte_ends.tolist() == [5, 11]


def test_a_view_without_a_tokenizer_cannot_encode() -> None:
    view = ByteView.from_token_bytes([b"a", None])
    assert view.digit_scheme == "none"
    assert view.kinds.tolist() == [TokenKind.TEXT, TokenKind.SPECIAL]
    with pytest.raises(UnsupportedTokenizer, match="cannot encode"):
        view.encode("a")


def test_boundary_mask_is_the_special_tokens_and_three_first_bytes() -> None:
    tokens = [b" a", b"\t", b"\n\n", b"a ", b"\r\n", "\u00a0".encode(), None, b""]
    mask = ByteView.from_token_bytes(tokens).boundary_mask()
    assert mask.dtype == bool
    assert mask.tolist() == [True, True, True, False, False, False, True, False]


def test_truncation_and_padding_do_not_change_the_view() -> None:
    plain = fast(byte_level(*HELLO_MERGES))
    limited = fast(byte_level(*HELLO_MERGES), pad_token="!")
    limited.backend_tokenizer.enable_truncation(max_length=2)
    limited.backend_tokenizer.enable_padding(length=50)
    assert ByteView.from_tokenizer(limited).encode("hello hello hello").byte_ends.tolist() == [5, 11, 17]
    unpadded = fast(byte_level(*HELLO_MERGES), pad_token="!")
    assert ByteView.from_tokenizer(limited).fingerprint == ByteView.from_tokenizer(unpadded).fingerprint
    assert ByteView.from_tokenizer(plain).fingerprint != ByteView.from_tokenizer(unpadded).fingerprint


def test_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    tokenizer = fast(byte_level(*HELLO_MERGES))
    tokenizer.save_pretrained(tmp_path / "one")
    tokenizer.save_pretrained(tmp_path / "two")
    one = ByteView.from_tokenizer(tmp_path / "one")
    assert one.fingerprint == ByteView.from_tokenizer(str(tmp_path / "two")).fingerprint
    assert one.encode("hello hello").byte_ends.tolist() == [5, 11]


def test_fingerprints_tell_different_tokenizers_apart() -> None:
    declared_special = fast(byte_level(*HELLO_MERGES))
    declared_special.eos_token = "hello"
    bos_first = byte_level(*HELLO_MERGES)
    bos_first.post_processor = processors.TemplateProcessing(single="! $A", special_tokens=[("!", 0)])
    tokenizers = {
        "plain": fast(byte_level(*HELLO_MERGES)),
        "fewer merges": fast(byte_level(*HELLO_MERGES[:-1])),
        "digits apart": fast(byte_level(*HELLO_MERGES, pre_tokenizer=split_digits())),
        "normalised": fast(byte_level(*HELLO_MERGES, normalizer=normalizers.NFC())),
        "one more special": fast(byte_level(*HELLO_MERGES), eos_token=END),
        "a piece declared special": declared_special,
        "a prefix": fast(bos_first),
    }
    fingerprints = {name: ByteView.from_tokenizer(tokenizer).fingerprint for name, tokenizer in tokenizers.items()}
    assert len(set(fingerprints.values())) == len(tokenizers), fingerprints


def split_digits() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def digit_tokenizer(pattern: str | None) -> PreTrainedTokenizerFast:
    """All numbers of two and three digits are tokens; the pattern says where numbers are cut first."""
    digits = "0123456789"
    merges = [*itertools.product(digits, digits)]
    merges += [(left + middle, right) for left, middle, right in itertools.product(digits, repeat=3)]
    merges += [("10", "00"), ("314", "1")]
    steps = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    if pattern is not None:
        steps.insert(0, pre_tokenizers.Split(Regex(pattern), "isolated"))
    return fast(byte_level(*merges, pre_tokenizer=pre_tokenizers.Sequence(steps)))


@pytest.mark.parametrize(
    ("pattern", "scheme"),
    [
        (r"\p{N}", "single"),
        (r"\p{N}{1,3}", "up_to_3_left"),
        (r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))", "up_to_3_right"),
        (None, "free"),
    ],
)
def test_digit_scheme_is_what_the_tokenizer_does(pattern: str | None, scheme: str) -> None:
    assert ByteView.from_tokenizer(digit_tokenizer(pattern)).digit_scheme == scheme


def test_digit_scheme_is_none_where_digits_are_lost() -> None:
    dropped = byte_level(normalizer=normalizers.Replace(Regex("[0-9]"), ""))
    assert ByteView.from_tokenizer(fast(dropped)).digit_scheme == "none"
