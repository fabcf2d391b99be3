"""Weighted pieces as a recipe asks for them: which end weighs most in which role, and counts from the training text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from init_world import SOURCE, TARGET, make_task, make_transplant
from pydantic import TypeAdapter, ValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from alignment.byte_view import ByteView
from stages.initialisation.methods import build_method
from stages.initialisation.task import RowTask
from stages.initializers import Chain, InitializerOptions
from stages.stage import StageError, StageInterrupted

HGH, ABCD, XYZ = TARGET.index(b"hgh"), TARGET.index(b"abcd"), TARGET.index(b"xyz")


def byte_level(*merges: tuple[bytes, bytes]) -> ByteView:
    """Byte-level BPE that merges across words: id b for byte b, then the merges."""
    alphabet = bytes_to_unicode()
    pairs = [tuple("".join(alphabet[byte] for byte in side) for side in merge) for merge in merges]
    vocabulary = {alphabet[byte]: byte for byte in range(256)}
    vocabulary |= {left + right: 256 + rank for rank, (left, right) in enumerate(pairs)}
    backend = Tokenizer(models.BPE(vocabulary, pairs))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return ByteView.from_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))


SOURCE_VIEW = byte_level((b"t", b"h"), (b"th", b"e"), (b" ", b"the"))
TARGET_VIEW = byte_level((b"t", b"h"), (b"th", b"e"), (b"the", b" "), (b"c", b"a"))
THE_SPACE, CA = 258, 259
TEXTS = ["the the thing", "a car, the cat", "singing"]


def options_of(written: object) -> InitializerOptions:
    (options,) = TypeAdapter(Chain).validate_python(written)
    return options


def rows_of(written: object, task: RowTask, ids: list[int]) -> torch.Tensor:
    method = build_method(options_of(written), task)
    method.fit()
    block = method.rows(torch.tensor(ids))
    assert block.made.all()
    return block.values(task.rows)


def weighted(weights: str, **options: object) -> dict[str, object]:
    return {"method": "piece_weighted", "weights": weights, **options}


@pytest.mark.parametrize(
    ("written", "role", "expected"),
    [
        ("piece_mean", "input", [1, 1]),
        ("fvt", "output", [1, 1]),
        ("piece_weighted", "input", [1, 2]),
        (weighted("first"), "input", [1, 0]),
        (weighted("last"), "output", [0, 1]),
        (weighted("geometric"), "input", [1, 0.5]),
        (weighted("geometric", decay=0.25, emphasis="last"), "output", [0.25, 1]),
        (weighted("geometric", emphasis="role"), "input", [0.5, 1]),
        (weighted("exponential"), "input", [1, math.exp(2)]),
        (weighted("exponential"), "per_layer_input", [1, math.exp(2)]),
        (weighted("exponential", rate=1), "output", [math.exp(1), 1]),
        # mergekit's weighted_mean has it the other way round, against its own comment.
        (weighted("linear"), "input", [1, 2]),
        (weighted("linear"), "output", [2, 1]),
    ],
)
def test_what_the_two_pieces_of_a_token_weigh(written: object, role: str, expected: list[float]) -> None:
    task = make_task(role=role, dtype=torch.bfloat16)
    h, gh = task.rows[[SOURCE.index(b"h"), SOURCE.index(b"gh")]].float()
    row = (expected[0] * h + expected[1] * gh) / sum(expected)
    torch.testing.assert_close(rows_of(written, task, [HGH]), row[None])


@pytest.mark.parametrize("written", ["piece_mean", "piece_weighted", weighted("exponential"), weighted("last")])
def test_rows_depend_neither_on_their_block_nor_on_ids(written: object) -> None:
    ids = [token for token in range(len(TARGET)) if token not in (XYZ, TARGET.index(None))]
    task = make_task()
    whole = rows_of(written, task, ids)
    assert build_method(options_of("piece_mean"), task).rows(torch.arange(0)).values(task.rows).shape == (0, 6)
    assert torch.equal(torch.cat([rows_of(written, task, [token]) for token in ids]), whole)
    permuted = make_task(make_transplant(target=TARGET[::-1]))
    assert torch.equal(rows_of(written, permuted, [len(TARGET) - 1 - token for token in ids]), whole)


def test_a_token_that_cannot_be_spelled_is_left_to_the_next_method() -> None:
    method = build_method(options_of("piece_weighted"), make_task())
    method.fit()
    assert method.rows(torch.tensor([XYZ, ABCD])).made.tolist() == [False, True]


def text_task(**options: object) -> RowTask:
    return make_task(make_transplant(views=(SOURCE_VIEW, TARGET_VIEW), texts=TEXTS, **options))


def test_frequency_weighs_old_tokens_by_how_often_they_overlap_the_new_one_in_the_text(tmp_path: Path) -> None:
    task = text_task(cache=tmp_path)
    the, space_the, space = 257, 258, ord(" ")
    # "the the thing" is [the ][the ][th] and [the][ the][ ][th], ", the cat" has [ ][the ] and [ the][ ].
    counts = {the: 1, space_the: 3, space: 2}
    expected = sum(count * task.rows[token] for token, count in counts.items()) / 6
    torch.testing.assert_close(rows_of(weighted("frequency"), task, [THE_SPACE]), expected[None])
    most = rows_of(weighted("frequency", max_sources=1), task, [THE_SPACE])
    assert torch.equal(most, task.rows[[space_the]])

    def never() -> Iterator[str]:
        yield from TEXTS
        raise AssertionError("read twice although the counts are kept")

    reads = iter([iter(TEXTS), never()])
    again = replace(task, transplant=replace(task.transplant, texts=lambda: next(reads)))
    torch.testing.assert_close(rows_of(weighted("frequency"), again, [THE_SPACE]), expected[None])


def test_frequency_leaves_tokens_that_the_text_does_not_have() -> None:
    method = build_method(options_of(weighted("frequency")), text_task())
    method.fit()
    assert method.rows(torch.tensor([THE_SPACE, CA, ord("z")])).made.tolist() == [True, True, False]


def test_frequency_needs_text_and_stops_when_asked() -> None:
    assert options_of(weighted("frequency")).wanted_inputs == {"documents"}
    assert not options_of("piece_weighted").wanted_inputs
    with pytest.raises(StageError, match=r"name documents under data\.train"):
        build_method(options_of(weighted("frequency")), make_task())
    task = text_task()
    stopped = replace(task, transplant=replace(task.transplant, should_stop=lambda: True))
    with pytest.raises(StageInterrupted):
        build_method(options_of(weighted("frequency")), stopped).fit()


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (weighted("char_length", decay=0.5), "decay has no effect on weights: char_length; it belongs to geometric"),
        (weighted("geometric", rate=2), "rate has no effect"),
        (weighted("first", emphasis="first"), "emphasis has no effect"),
        (weighted("linear", max_sources=3), "max_sources has no effect"),
        (weighted("geometric", decay=1.5), "less than or equal to 1"),
        (weighted("squared"), "char_length"),
    ],
)
def test_options_without_effect_or_sense_are_refused(written: object, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        options_of(written)
