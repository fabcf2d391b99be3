"""Special tokens: the roles that a configuration gives them, and what they are matched with."""

from __future__ import annotations

from transformers import ByT5Tokenizer, PreTrainedTokenizerFast
from vocab_toys import SOURCE, SOURCE_VIEW, byte_level

from alignment.byte_view import ByteView
from alignment.special_tokens import special_roles
from alignment.vocab import Match, align_vocabularies


def with_roles(*specials: str, **roles: str) -> PreTrainedTokenizerFast:
    plain = byte_level([], specials=specials)
    return PreTrainedTokenizerFast(tokenizer_object=plain.backend_tokenizer, **roles)


def test_standard_roles_come_in_their_order_and_named_ones_after_them() -> None:
    tokenizer = with_roles(
        "<a>", "<b>", "<c>", "<d>", unk_token="<c>", bos_token="<a>", eot_token="<d>", eos_token="<b>", boi_token="<a>"
    )
    assert list(special_roles(tokenizer).items()) == [
        ("eos", 257),
        ("bos", 256),
        ("unk", 258),
        ("boi", 256),
        ("eot", 259),
    ]


def test_a_special_token_without_a_role_has_none() -> None:
    assert special_roles(with_roles("<a>", "<b>", eos_token="<b>")) == {"eos": 257}
    assert special_roles(byte_level([])) == {}


def test_a_tokenizer_without_a_fast_backend_has_roles() -> None:
    assert special_roles(ByT5Tokenizer(extra_ids=0)) == {"eos": 1, "pad": 0, "unk": 2}


def test_ends_of_turn_that_both_configurations_name_match_by_role() -> None:
    source = with_roles("<|im_end|>", "<|end|>", eos_token="<|end|>", eot_token="<|im_end|>")
    target = with_roles("<|eos|>", "<|eot_id|>", eos_token="<|eos|>", eot_token="<|eot_id|>")
    alignment = align_vocabularies(
        ByteView.from_tokenizer(source),
        ByteView.from_tokenizer(target),
        source_roles=special_roles(source),
        target_roles=special_roles(target),
    )
    assert alignment.match[256:].tolist() == [Match.ROLE, Match.ROLE]
    assert [alignment.pieces_of(token).tolist() for token in (256, 257)] == [[257], [256]]


def test_special_tokens_match_by_role_then_by_string_and_never_as_text() -> None:
    start, end = SOURCE.convert_tokens_to_ids(["<s>", "</s>"])
    target = byte_level([], specials=("<s>", "<|end|>", "<pad>"))
    other_start, other_end, pad = target.convert_tokens_to_ids(["<s>", "<|end|>", "<pad>"])
    alignment = align_vocabularies(
        SOURCE_VIEW,
        ByteView.from_tokenizer(target),
        source_roles={"eos": end},
        target_roles={"eos": other_end, "pad": pad},
    )
    assert alignment.match[[other_start, other_end, pad]].tolist() == [Match.STRING, Match.ROLE, Match.NONE]
    assert alignment.pieces_of(other_start).tolist() == [start]
    assert alignment.pieces_of(other_end).tolist() == [end]


def test_a_role_goes_before_a_string_and_the_first_of_several_roles_decides() -> None:
    start, end = SOURCE.convert_tokens_to_ids(["<s>", "</s>"])
    target = byte_level([], specials=("<s>",))
    (only,) = target.convert_tokens_to_ids(["<s>"])
    alignment = align_vocabularies(
        SOURCE_VIEW,
        ByteView.from_tokenizer(target),
        source_roles={"bos": start, "eos": end},
        target_roles={"eos": only, "bos": only},
    )
    assert alignment.pieces_of(only).tolist() == [end]


def test_a_token_that_is_special_on_one_side_and_added_on_the_other_matches_by_its_string() -> None:
    special, added = byte_level([], specials=("<think>",)), byte_level([], added=("<think>",))
    for source, target in ((special, added), (added, special)):
        alignment = align_vocabularies(ByteView.from_tokenizer(source), ByteView.from_tokenizer(target))
        assert (alignment.match[256], alignment.pieces_of(256).tolist()) == (Match.STRING, [256])


def test_several_special_tokens_without_a_role_match_one_by_one() -> None:
    source, target = byte_level([], specials=("<a>", "<b>", "<c>")), byte_level([], specials=("<c>", "<d>", "<a>"))
    alignment = align_vocabularies(ByteView.from_tokenizer(source), ByteView.from_tokenizer(target))
    assert alignment.match[256:].tolist() == [Match.STRING, Match.NONE, Match.STRING]
    assert [alignment.pieces_of(token).tolist() for token in (256, 257, 258)] == [[258], [], [256]]


def test_a_role_that_is_missing_is_filled_by_its_stand_in_unless_the_string_exists() -> None:
    source = ByteView.from_tokenizer(byte_level([], specials=("[CLS]", "[SEP]", "<s>")))
    target = ByteView.from_tokenizer(byte_level([], specials=("<s>", "<end>", "<pad>")))
    alignment = align_vocabularies(
        source,
        target,
        source_roles={"cls": 256, "sep": 257},
        target_roles={"eos": 257, "bos": 256, "pad": 258},
    )
    assert alignment.match[256:].tolist() == [Match.STRING, Match.ROLE, Match.NONE]
    assert [alignment.pieces_of(token).tolist() for token in (256, 257, 258)] == [[258], [257], []]
