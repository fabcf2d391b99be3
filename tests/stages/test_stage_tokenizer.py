"""The tokenizer stage: what each method makes of a tokenizer, what it keeps, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tokenizer_world import (
    ENGLISH,
    FRENCH,
    HINDI,
    HOSTILE,
    SPECIALS,
    TEMPLATE,
    byte_level,
    documents,
    make,
    sentencepiece,
)
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from alignment.byte_view import ByteView
from pipeline.reading.loading import load_recipe
from stages.stage import StageError, StageInterrupted
from stages.tokenizer import TokenizerStage

EXTEND = {"method": "extend", "new_tokens": 40}
SUPERTOKENS = {"method": "supertokens", "new_tokens": 20, "min_frequency": 4}
FROM_SCRATCH = ({"method": "bpe", "vocab_size": 400}, {"method": "unigram", "vocab_size": 330})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``free``, ``single``, ``sentencepiece``: tokenizers; ``french``, ``english``: documents."""
    folder = tmp_path_factory.mktemp("tokenizer-stage")
    byte_level(folder / "free")
    byte_level(folder / "single", digits="single")
    sentencepiece(folder / "sentencepiece")
    documents(folder / "french", [FRENCH * 3, ENGLISH + HINDI * 3])
    documents(
        folder / "english", [ENGLISH, [{"role": "user", "content": ENGLISH * 3}, {"role": "tool", "content": ""}]]
    )
    return folder


def view_of(directory: Path) -> ByteView:
    return ByteView.from_tokenizer(directory)


def assert_contains(made: ByteView, base: ByteView) -> None:
    """Every id of the base is the same token."""
    assert [made.token_bytes(token) for token in range(base.vocab_size)] == [
        base.token_bytes(token) for token in range(base.vocab_size)
    ]
    assert made.special_tokens == base.special_tokens


def assert_joins_tokens(made: ByteView, base: ByteView, text: str) -> None:
    """The tokens of a text are tokens of the base put together."""
    ends, base_ends = (view.encode(text).byte_ends.tolist() for view in (made, base))
    assert set(ends) <= set(base_ends)


@pytest.mark.parametrize("student", ["free", "single", "sentencepiece"])
def test_extend_joins_what_the_base_cuts(world: Path, tmp_path: Path, student: str) -> None:
    made = make(tmp_path / "made", world / student, world / "french", EXTEND)
    view, base = view_of(made.directory), view_of(world / student)
    assert view.vocab_size == base.vocab_size + 40
    assert_contains(view, base)
    assert view.digit_scheme == base.digit_scheme
    for text in (FRENCH, ENGLISH, *HOSTILE):
        if base.exact or "▁" not in text:
            assert_joins_tokens(view, base, text)
    assert made.report["base"]["bytes_per_token"] < made.report["made"]["bytes_per_token"]
    assert made.report["new_tokens"]["count"] == 40
    assert made.report["base_tokens_kept"] == 1.0


def test_no_new_token_holds_a_digit_where_numbers_are_cut(world: Path, tmp_path: Path) -> None:
    data = documents(tmp_path / "numbers", ["zebra 2024 zebra2024, 17zebra in 2024. " * 9])
    view = view_of(make(tmp_path / "made", world / "single", data, EXTEND).directory)
    new = [view.token_bytes(token) for token in range(view_of(world / "single").vocab_size, view.vocab_size)]
    assert new
    assert not any(set(token) & set(b"0123456789") for token in new)


def test_a_character_that_sentencepiece_has_only_bytes_for_becomes_a_token(world: Path, tmp_path: Path) -> None:
    made = make(tmp_path / "made", world / "sentencepiece", world / "french", EXTEND | {"new_tokens": 60})
    view, base = view_of(made.directory), view_of(world / "sentencepiece")
    assert len(base.encode("स").ids) == 3
    assert len(view.encode("स").ids) == 1
    assert len(view.encode("\n").ids) == 1
    assert view.encode("\n").ids.tolist() == base.encode("\n").ids.tolist()  # one byte is as good as a token


@pytest.mark.parametrize("student", ["free", "single", "sentencepiece"])
def test_supertokens_are_whole_words_as_frequent_as_asked(world: Path, tmp_path: Path, student: str) -> None:
    made = make(tmp_path / "made", world / student, world / "english", SUPERTOKENS | {"max_words": 3})
    view, base = view_of(made.directory), view_of(world / student)
    assert_contains(view, base)
    assert view.digit_scheme == base.digit_scheme
    new = [view.token_bytes(token).decode() for token in range(base.vocab_size, view.vocab_size)]
    assert " was the" in new
    assert max(len(token.split()) for token in new) == 3
    text = ENGLISH * 4
    for token in new:
        words = token[1:].split(" ")
        assert token[0] == " "
        assert 2 <= len(words) <= 3
        assert all(word.isalpha() for word in words)
        assert text.count(token) >= 4
    for text in (ENGLISH, FRENCH, *HOSTILE):
        if base.exact or "▁" not in text:
            assert_joins_tokens(view, base, text)


@pytest.mark.parametrize("options", [EXTEND, SUPERTOKENS, *FROM_SCRATCH], ids=lambda options: options["method"])
def test_every_text_is_spelled_and_decoded(world: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    made = make(
        tmp_path / "made", world / "free", world / "french" if options is EXTEND else world / "english", options
    )
    tokenizer = AutoTokenizer.from_pretrained(made.directory)
    view = ByteView.from_tokenizer(tokenizer)
    assert view.exact
    for text in (ENGLISH, FRENCH, HINDI, *HOSTILE):
        assert tokenizer.decode(view.encode(text).ids.tolist()) == text


@pytest.mark.parametrize("options", [EXTEND, SUPERTOKENS, *FROM_SCRATCH], ids=lambda options: options["method"])
def test_the_same_text_in_another_order_gives_the_same_bytes(
    world: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    texts = [FRENCH, ENGLISH * 2, ENGLISH, HINDI]
    options = options | ({"new_tokens": 15} if "new_tokens" in options else {})
    found = [
        make(tmp_path / f"made-{turn}", world / "free", documents(tmp_path / f"data-{turn}", order), options).directory
        for turn, order in enumerate([texts, texts, texts[::-1]])
    ]
    first, *others = [(directory / "tokenizer.json").read_bytes() for directory in found]
    assert all(other == first for other in others)


@pytest.mark.parametrize("options", FROM_SCRATCH, ids=lambda options: options["method"])
def test_from_scratch_keeps_specials_roles_template_and_digits(
    world: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    made = make(tmp_path / "made", world / "single", world / "english", options)
    tokenizer = AutoTokenizer.from_pretrained(made.directory)
    view = ByteView.from_tokenizer(tokenizer)
    assert view.vocab_size <= options["vocab_size"]
    assert view.digit_scheme == "single"
    assert list(view.special_tokens.values()) == list(SPECIALS)
    assert tokenizer.special_tokens_map == AutoTokenizer.from_pretrained(world / "single").special_tokens_map
    assert tokenizer.chat_template == TEMPLATE
    assert made.report["base_tokens_kept"] < 1
    assert made.report["made"]["bytes_per_token"] > 1.5


def test_from_scratch_cuts_as_its_options_say(world: Path, tmp_path: Path) -> None:
    numbers = documents(tmp_path / "numbers", [" ".join(str(number) for number in range(0, 30_000, 7))])
    options = {"method": "bpe", "vocab_size": 900}
    for scheme in ("single", "up_to_3_left", "up_to_3_right", "free"):
        made = make(tmp_path / scheme, world / "free", numbers, options | {"digits": scheme, "pattern": "gpt2"})
        assert made.report["made"]["digit_scheme"] == scheme
    words = documents(tmp_path / "words", ["to the end of the line " * 9])
    whole = make(tmp_path / "whole", world / "free", words, {"method": "bpe", "vocab_size": 300, "pattern": "^.*$"})
    assert len(view_of(whole.directory).encode("to the end of the line").ids) < 6
    assert "warning: the text has too few numbers" in whole.told


def test_unigram_knows_words_that_always_stand_before_a_cut(world: Path, tmp_path: Path) -> None:
    made = make(tmp_path / "made", world / "free", world / "english", FROM_SCRATCH[1])
    assert len(view_of(made.directory).encode(" was").ids) == 1


def test_keep_digits_changes_how_numbers_are_cut_and_nothing_else(world: Path, tmp_path: Path) -> None:
    made = make(tmp_path / "made", world / "single", world / "english", "keep_digits", target=world / "free")
    view, target = view_of(made.directory), view_of(world / "free")
    assert (target.digit_scheme, view.digit_scheme) == ("free", "single")
    assert_contains(view, target)
    assert view.exact
    for text in (FRENCH.replace("1948", "").replace("2024", ""), HINDI, *HOSTILE[:4]):
        assert view.encode(text).ids.tolist() == target.encode(text).ids.tolist()
    assert made.report["new_tokens"] == {"count": 0, "used": 0, "top": []}
    again = make(tmp_path / "again", world / "single", world / "english", "keep_digits", target=made.directory)
    assert view_of(again.directory).fingerprint == view.fingerprint


@pytest.mark.parametrize("student", ["single", "free"])
def test_keep_digits_for_a_sentencepiece_target(world: Path, tmp_path: Path, student: str) -> None:
    target = world / "sentencepiece"
    if student == "free":
        with pytest.raises(StageError, match="Cuts can be added to a tokenizer, none taken back"):
            make(tmp_path / "made", world / student, world / "english", "keep_digits", target=target)
    else:
        made = make(tmp_path / "made", world / student, world / "english", "keep_digits", target=target)
        assert view_of(made.directory).digit_scheme == "single"


def test_the_report_counts_what_it_says(world: Path, tmp_path: Path) -> None:
    made = make(tmp_path / "made", world / "free", world / "french", EXTEND)
    text = [FRENCH * 3, ENGLISH + HINDI * 3]
    view, base = view_of(made.directory), view_of(world / "free")
    ids = [token for each in text for token in view.encode(each).ids.tolist()]
    report = made.report
    assert report["method"] == "extend"
    assert report["text_bytes"] == sum(len(each.encode()) for each in text)
    assert report["made"]["tokens_of_text"] == len(ids)
    assert report["base"]["tokens_of_text"] == sum(len(base.encode(each).ids) for each in text)
    assert len(report["new_tokens"]["top"]) == 20
    for token in report["new_tokens"]["top"]:
        assert ids.count(token["id"]) == token["frequency"]
    frequencies = [token["frequency"] for token in report["new_tokens"]["top"]]
    assert frequencies == sorted(frequencies, reverse=True)
    metrics = json.loads((made.directory / "metrics.json").read_text())
    assert metrics["bytes_per_token"] == pytest.approx(report["text_bytes"] / len(ids))
    assert "40 of them new" in made.told


def test_what_a_method_cannot_work_with_is_refused_by_name(world: Path, tmp_path: Path) -> None:
    unigram = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    )
    unigram.add_special_tokens({"eos_token": "</s>"})
    unigram.save_pretrained(tmp_path / "unigram")
    ByT5Tokenizer().save_pretrained(tmp_path / "byt5")
    french, free = world / "french", world / "free"
    with pytest.raises(StageError, match=r"the student's tokenizer has a Unigram model: only byte-pair encoding"):
        make(tmp_path / "a", tmp_path / "unigram", french, EXTEND)
    with pytest.raises(StageError, match=r"is a ByT5Tokenizer, which runs in Python"):
        make(tmp_path / "b", tmp_path / "byt5", french, SUPERTOKENS)
    with pytest.raises(StageError, match=r"the target tokenizer is a ByT5Tokenizer, which runs in Python"):
        make(tmp_path / "c", free, french, "keep_digits", target=tmp_path / "byt5")
    with pytest.raises(StageError, match="no new token occurs 1000 times in the text"):
        make(tmp_path / "d", free, french, EXTEND | {"min_frequency": 1000})
    with pytest.raises(StageError, match="a vocabulary of 257 has no room for 256 bytes and 2 special tokens"):
        make(tmp_path / "e", free, french, {"method": "bpe", "vocab_size": 257})
    with pytest.raises(StageError, match="cuts numbers by the scheme 'single', so 'free' cannot be had with it"):
        make(tmp_path / "f", free, french, {"method": "bpe", "vocab_size": 300, "pattern": "qwen2"})
    with pytest.raises(StageError, match="hold no text"):
        make(tmp_path / "g", free, documents(tmp_path / "empty", [[{"role": "user", "content": ""}]]), EXTEND)


@pytest.mark.parametrize("options", [EXTEND, SUPERTOKENS, *FROM_SCRATCH], ids=lambda options: options["method"])
def test_it_stops_when_asked(world: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(StageInterrupted):
        make(tmp_path / "made", world / "free", world / "french", options, stop=lambda: True)


@pytest.mark.parametrize(
    "options",
    [
        "extend",
        "wordpiece",
        {"new_tokens": 3},
        EXTEND | {"max_words": 3},
        SUPERTOKENS | {"max_words": 1},
        {"method": "unigram", "vocab_size": 400, "min_frequency": 2},
        {"method": "bpe", "vocab_size": 256},
        {"method": "bpe", "vocab_size": 400, "pattern": "gtp2"},
        {"method": "keep_digits", "digits": "single"},
    ],
)
def test_options_that_mean_nothing_are_refused(options: Any) -> None:
    with pytest.raises(ValidationError):
        TokenizerStage.Config(make=options)


RECIPE = """\
name: small
models: {student: {model: ./model%s}}
data: {train: [{path: ./text.txt}]}
stages:
  tokenizer: {uses: tokenizer, make: %s}
  align: {uses: align, needs: [tokenizer]}
"""


def test_a_made_tokenizer_takes_the_place_of_the_recipes(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE % ("", "{method: extend, new_tokens: 5}"))
    stages = load_recipe(path).stages
    assert stages["align"].inputs["tokenizer"] == ("tokenizer",)
    assert set(stages["tokenizer"].inputs) == {"student", "documents"}
    assert "sources/tokenizer" not in stages
    path.write_text(RECIPE % (", tokenizer: ./target", "keep_digits"))
    stages = load_recipe(path).stages
    assert stages["tokenizer"].inputs["tokenizer"] == ("sources/tokenizer",)
    assert stages["align"].inputs["tokenizer"] == ("tokenizer",)
