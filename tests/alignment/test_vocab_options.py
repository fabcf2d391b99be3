"""What the user may say about a vocabulary alignment: overriding tokens, what to overlook, how many rows there are."""

from __future__ import annotations

import pytest
from tokenizers import normalizers
from vocab_toys import SOURCE, SOURCE_VIEW, WORDS, byte_level, spelled

from alignment.byte_models import byte_model
from alignment.byte_view import ByteView
from alignment.token_index import UnknownToken
from alignment.vocab import AlignmentError, Match, align_vocabularies


def test_what_the_user_says_goes_before_every_rule() -> None:
    target = byte_level([(b"t", b"h"), (b"x", b"y")], specials=("<s>",))
    view = ByteView.from_tokenizer(target)
    override = {"<s>": "</s>", "th": " the", "xy": ord("x")}
    alignment = align_vocabularies(SOURCE_VIEW, view, override=override)
    ids = target.convert_tokens_to_ids(["<s>", "th", "xy"])
    assert alignment.match[ids].tolist() == [Match.OVERRIDE] * 3
    assert [spelled(SOURCE_VIEW, alignment, token) for token in ids[1:]] == [[b" the"], [b"x"]]
    assert alignment.pieces_of(ids[0]).tolist() == SOURCE.convert_tokens_to_ids(["</s>"])


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ({"<z>": "the"}, r"has no token '<z>'; close to it are '<s>'"),
        ({"<s>": "theses"}, r"has no token 'theses'"),
        ({"<s>": " th"}, r"has no token ' th'; close to it are 'th'"),
        ({"<s>": 9999}, r"has no token with the id 9999 and a row: ids are in \[0, 265\)"),
        ({"<s>": -1}, r"has no token with the id -1"),
    ],
)
def test_an_override_of_a_token_that_does_not_exist_is_refused(override: dict[str, str | int], complaint: str) -> None:
    target = ByteView.from_tokenizer(byte_level([], specials=("<s>",)))
    with pytest.raises(UnknownToken, match=complaint):
        align_vocabularies(SOURCE_VIEW, target, override=override)


def test_what_differs_in_case_form_or_space_matches_only_if_the_user_says_so() -> None:
    source = ByteView.from_token_bytes([b"the", b" The", "ﬁ".encode(), b"f", b"i", b"T", b"h", b"e", b"\xc3"])
    target = ByteView.from_token_bytes([b"THE", b" the", b"fi", b"the", b"\xc3\x83\xc3", b"The"])
    plain = align_vocabularies(source, target)
    assert (plain.match == Match.FOLDED).sum() == 0
    found = {
        folds: [
            alignment.pieces_of(token).tolist() if alignment.match[token] == Match.FOLDED else None
            for token in range(target.vocab_size)
        ]
        for folds in (("case",), ("nfkc",), ("space",), ("space", "case", "nfkc"))
        for alignment in [align_vocabularies(source, target, fold=folds)]
    }
    assert found[("case",)] == [[0], [1], None, None, None, [0]]
    assert found[("nfkc",)] == [None, None, [2], None, None, None]
    assert found[("space",)] == [None, [0], None, None, None, [1]]
    assert found[("space", "case", "nfkc")] == [[0], [0], [2], None, None, [0]]


def test_a_tokenizer_that_lower_cases_is_matched_only_if_the_user_says_so() -> None:
    lower = byte_level(WORDS, normalizer=normalizers.Lowercase())
    view = ByteView.from_tokenizer(lower)
    target = ByteView.from_tokenizer(byte_level([(b"T", b"h"), (b"Th", b"e"), (b"t", b"h"), (b"th", b"e")]))
    for source, other in ((view, target), (target, view)):
        with pytest.raises(AlignmentError, match=r"lower-cases all text and .* does not: .*Say `fold: \[case\]`"):
            align_vocabularies(source, other)
    assert align_vocabularies(view, view).copied.all()
    alignment = align_vocabularies(view, target, fold=("case",))
    assert [(Match(alignment.match[token]), spelled(view, alignment, token)) for token in (257, 259)] == [
        (Match.FOLDED, [b"the"]),
        (Match.BYTES, [b"the"]),
    ]


def test_source_ids_without_a_row_are_never_used() -> None:
    tokenizer = byte_level(WORDS, specials=("<s>", "</s>"), added=("new token",))
    view = ByteView.from_tokenizer(tokenizer)
    target = byte_level(WORDS, specials=("<s>", "</s>"), added=("new token",))
    target_view = ByteView.from_tokenizer(target)
    rows = 256 + len(WORDS) + 1  # <s> is the last that has one
    alignment = align_vocabularies(
        view,
        target_view,
        model=byte_model(tokenizer, view),
        source_roles={"eos": rows},
        target_roles={"eos": rows},
        source_rows=rows,
    )
    assert alignment.source_size == rows
    assert alignment.match[rows - 1 :].tolist() == [Match.STRING, Match.NONE, Match.PIECES]
    assert b"".join(piece or b"" for piece in spelled(view, alignment, rows + 1)) == b"new token"
    with pytest.raises(UnknownToken, match="no token with the id 264 and a row"):
        align_vocabularies(view, target_view, override={"the": rows}, source_rows=rows)
