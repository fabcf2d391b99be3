"""Tokens that two vocabularies share, found by looking at all pairs."""

from __future__ import annotations

from pathlib import Path

import pytest
from vocab_toys import WORDS, byte_level

from alignment.byte_view import ByteView
from alignment.common_vocabulary import common_vocabulary, stop_ids


def views() -> tuple[ByteView, ByteView]:
    """Two vocabularies with other merges and an end of text each, the first with an added token besides."""
    first = byte_level(WORDS, specials=("<|end|>",), added=("<think>",))
    second = byte_level(WORDS[:3], specials=("</s>", "<pad>"))
    return ByteView.from_tokenizer(first), ByteView.from_tokenizer(second)


def test_equal_bytes_are_paired_and_nothing_else() -> None:
    teacher, student = views()
    shared = common_vocabulary(teacher, student, {}, {})
    expected = {
        (ours, theirs)
        for ours in range(student.vocab_size)
        for theirs in range(teacher.vocab_size)
        if student.token_bytes(ours) and student.token_bytes(ours) == teacher.token_bytes(theirs)
    }
    assert set(zip(shared.student.tolist(), shared.teacher.tolist(), strict=True)) == expected
    assert shared.student.tolist() == sorted(shared.student.tolist())


def test_ends_of_text_are_one_token_under_any_name() -> None:
    teacher, student = views()
    ends = {name: view.special_tokens for name, view in (("teacher", teacher), ("student", student))}
    theirs = next(token for token, string in ends["teacher"].items() if string == "<|end|>")
    ours = next(token for token, string in ends["student"].items() if string == "</s>")
    roles = {"eos": theirs, "end_of_turn": theirs}, {"eos": ours, "end_of_turn": ours, "pad": ours + 1}
    shared = common_vocabulary(teacher, student, *roles)
    pairs = list(zip(shared.student.tolist(), shared.teacher.tolist(), strict=True))
    assert (ours, theirs) in pairs
    assert len({pair[0] for pair in pairs}) == len({pair[1] for pair in pairs}) == len(pairs)
    assert stop_ids(student, roles[1]).tolist() == [ours]


@pytest.mark.demo
def test_the_common_part_of_published_vocabularies(gpt2_tokenizer_dir: Path, smollm2_dir: Path) -> None:
    shared = common_vocabulary(
        ByteView.from_tokenizer(smollm2_dir), ByteView.from_tokenizer(gpt2_tokenizer_dir), {}, {}
    )
    assert len(shared.student) == 36_960  # data.md counts one more: the end of text, which has no bytes
