"""Alignment by common byte boundaries, against worked cases and a brute-force search over all spans."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.byte_view import ByteView, InexactEncoding
from alignment.spans import ChunkAlignment, align, align_texts

BOS = None  # a special token: it stands for no text


def ends_and_special(tokens: Sequence[str | bytes | None]) -> tuple[np.ndarray, np.ndarray]:
    """Byte ends and special flags of tokens in which "Ġ" is written for a space and "Ċ" for a newline."""
    texts = [
        token.replace("Ġ", " ").replace("Ċ", "\n").encode() if isinstance(token, str) else token for token in tokens
    ]
    ends = np.cumsum([len(text or b"") for text in texts], dtype=np.int64)
    return ends, np.array([text is None for text in texts], dtype=bool)


def align_tokens(teacher: Sequence[str | bytes | None], student: Sequence[str | bytes | None]) -> ChunkAlignment:
    teacher_ends, teacher_special = ends_and_special(teacher)
    student_ends, student_special = ends_and_special(student)
    return align(teacher_ends, student_ends, teacher_special=teacher_special, student_special=student_special)


def brute_force(teacher_ends: list[int], student_ends: list[int]) -> tuple[list[int], list[int]]:
    """Chunk ids by definition (alm.md §1.1): the minimal pairs of token spans over the same bytes, left to right."""
    teacher_chunk, student_chunk = [-1] * len(teacher_ends), [-1] * len(student_ends)
    i = k = chunks = 0
    while True:
        spans = [
            (j, m)
            for j in range(i + 1, len(teacher_ends) + 1)
            for m in range(k + 1, len(student_ends) + 1)
            if teacher_ends[j - 1] == student_ends[m - 1]
        ]
        if not spans:
            return teacher_chunk, student_chunk
        j, m = min(spans)
        teacher_chunk[i:j] = [chunks] * (j - i)
        student_chunk[k:m] = [chunks] * (m - k)
        i, k, chunks = j, m, chunks + 1


@pytest.mark.parametrize(
    ("teacher", "student", "teacher_chunk", "student_chunk"),
    [
        # alm.md §9.1; only tokens that stand for text are counted.
        pytest.param(["a", "Ċ", "Ċ", "b"], ["a", "ĊĊ", "b"], [0, 1, 1, 2], [0, 1, 2], id="J"),
        pytest.param([BOS, "Hello", "Ġworld"], ["Hel", "lo", "Ġworld"], [-1, 0, 1], [0, 0, 1], id="E"),
        pytest.param([BOS, "Hello"], [BOS, "Hel", "lo"], [-1, 0], [-1, 0, 0], id="C2"),
        pytest.param(["Hello", "Ġworld"], ["Hel", "lo", "Ġworld"], [0, 1], [0, 0, 1], id="C1"),
        pytest.param(
            [BOS, "ĠHello", "ĠWor"], [BOS, "Ġ", "Hel", "loĠ", "W", "or"], [-1, 0, 0], [-1, 0, 0, 0, 0, 0], id="B"
        ),
        pytest.param(["ab", "c", BOS, BOS], ["a", "bc", BOS], [0, 0, -1, -1], [0, 0, -1], id="K"),
        pytest.param(
            ["What", "'", "s", "Ġultra", "cre", "pid", "arian", "ism", "?"],
            ["What", "'s", "Ġultr", "ac", "repid", "arian", "ism", "?"],
            [0, 1, 1, 2, 2, 2, 3, 4, 5],
            [0, 1, 2, 2, 2, 3, 4, 5],
            id="F, the content",
        ),
        pytest.param(["a", BOS, "b"], ["ab"], [0, -1, 0], [0], id="a special token does not split a chunk"),
        pytest.param(["é".encode()[:1], "é".encode()[1:]], ["é"], [0, 0], [0], id="a cut in a character"),
        pytest.param(
            ["é".encode()[:1], "é".encode()[1:]], [b"\xc3", b"\xa9"], [0, 1], [0, 1], id="a boundary in a character"
        ),
        pytest.param(["ab", "cd", "e"], ["abc"], [-1, -1, -1], [-1], id="nothing in common"),
        pytest.param(["ab", "cd", "ef"], ["a", "b", "cde"], [0, -1, -1], [0, 0, -1], id="an unmatched tail"),
        pytest.param(["", "ab", ""], ["a", "b"], [-1, 0, -1], [0, 0], id="tokens without bytes"),
        pytest.param([], ["a"], [], [-1], id="one side empty"),
        pytest.param([], [], [], [], id="an empty text"),
    ],
)
def test_worked_alignments(
    teacher: list[str], student: list[str], teacher_chunk: list[int], student_chunk: list[int]
) -> None:
    alignment = align_tokens(teacher, student)
    assert alignment.teacher_chunk.tolist() == teacher_chunk
    assert alignment.student_chunk.tolist() == student_chunk
    assert alignment.num_chunks == max([*teacher_chunk, -1]) + 1
    assert alignment.teacher_chunk.dtype == alignment.student_chunk.dtype == np.int32


@pytest.mark.parametrize(
    ("teacher_ends", "student_ends", "coverage"),
    [
        ([2, 4], [4], 1.0),
        ([2, 3], [2, 5], 0.4),  # both cover 2 bytes; the text is at least 5 bytes long
        ([3], [2], 0.0),
        ([], [], 1.0),
    ],
)
def test_coverage_is_a_share_of_bytes(teacher_ends: list[int], student_ends: list[int], coverage: float) -> None:
    assert align(teacher_ends, student_ends).coverage == pytest.approx(coverage)


@st.composite
def two_segmentations(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Byte ends of two segmentations of a random Unicode text; tokens may be empty, sides may be cut short."""
    size = len(draw(st.text(max_size=12)).encode())

    def ends() -> list[int]:
        cuts = draw(st.lists(st.integers(0, size), max_size=size + 3))
        last = [size] if draw(st.booleans()) and size else []
        return sorted(cuts) + last

    return ends(), ends()


@given(two_segmentations())
def test_alignment_is_the_brute_force_one(segmentations: tuple[list[int], list[int]]) -> None:
    teacher_ends, student_ends = segmentations
    # Tokens without bytes belong to no chunk: the search by definition is over the others.
    teacher_spans = np.diff(teacher_ends, prepend=0) > 0
    student_spans = np.diff(student_ends, prepend=0) > 0
    alignment = align(teacher_ends, student_ends)
    teacher_chunk, student_chunk = brute_force(
        np.array(teacher_ends)[teacher_spans].tolist(), np.array(student_ends)[student_spans].tolist()
    )
    assert alignment.teacher_chunk[teacher_spans].tolist() == teacher_chunk
    assert alignment.student_chunk[student_spans].tolist() == student_chunk
    assert (alignment.teacher_chunk[~teacher_spans] == -1).all()
    assert (alignment.student_chunk[~student_spans] == -1).all()
    assert alignment.num_chunks == max([*teacher_chunk, -1]) + 1


@given(two_segmentations())
def test_swapping_the_sides_swaps_the_alignment(segmentations: tuple[list[int], list[int]]) -> None:
    forward, backward = align(*segmentations), align(*reversed(segmentations))
    assert forward.teacher_chunk.tolist() == backward.student_chunk.tolist()
    assert forward.student_chunk.tolist() == backward.teacher_chunk.tolist()
    assert (forward.num_chunks, forward.coverage) == (backward.num_chunks, backward.coverage)


@given(two_segmentations())
def test_equal_tokenizations_align_token_by_token(segmentations: tuple[list[int], list[int]]) -> None:
    ends = np.unique(segmentations[0])
    ends = ends[ends > 0]
    alignment = align(ends, ends)
    assert alignment.teacher_chunk.tolist() == alignment.student_chunk.tolist() == list(range(len(ends)))
    assert alignment.coverage == 1.0


def test_special_tokens_change_nothing_for_the_others() -> None:
    plain = align_tokens(["Hel", "lo", "Ġworld"], ["Hello", "Ġ", "world"])
    marked = align_tokens([BOS, "Hel", BOS, "lo", "Ġworld", BOS], ["Hello", BOS, BOS, "Ġ", "world"])
    assert marked.teacher_chunk[[1, 3, 4]].tolist() == plain.teacher_chunk.tolist()
    assert marked.student_chunk[[0, 3, 4]].tolist() == plain.student_chunk.tolist()
    assert (marked.num_chunks, marked.coverage) == (plain.num_chunks, plain.coverage)


def test_inputs_are_not_changed() -> None:
    teacher_ends, student_ends = np.array([0, 2, 5]), np.array([2, 2, 5])
    teacher_special, student_special = np.array([True, False, False]), np.array([False, True, False])
    inputs = [teacher_ends, student_ends, teacher_special, student_special]
    before = [array.copy() for array in inputs]
    align(teacher_ends, student_ends, teacher_special=teacher_special, student_special=student_special)
    for array, copy in zip(inputs, before, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize(
    ("ends", "special", "message"),
    [
        ([3, 2], None, "token 1 ends at 2"),
        ([-1, 2], None, "token 0 ends at -1"),
        ([1.0, 2.0], None, "vector of integers"),
        ([[1, 2]], None, "vector of integers"),
        ([1, 2], [True], "shape"),
        ([13, 15], [True, False], "special student token 0 spans bytes up to 13"),  # data.md §4
    ],
)
def test_impossible_offsets_are_refused(ends: list[int], special: list[bool] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        align([15], ends, student_special=special)


@pytest.fixture(scope="module")
def tiny_views(tiny_tokenizer_dirs: tuple[Path, Path]) -> tuple[ByteView, ByteView]:
    teacher, student = tiny_tokenizer_dirs
    return ByteView.from_tokenizer(teacher), ByteView.from_tokenizer(student)


@given(text=st.text(max_size=80) | st.text(alphabet="the quick brown fox 🙂é\n", max_size=200))
def test_chunks_of_two_real_tokenizers_have_equal_bytes(tiny_views: tuple[ByteView, ByteView], text: str) -> None:
    aligned = align_texts(*tiny_views, text)
    sides = [
        (tiny_views[0], aligned.teacher, aligned.chunks.teacher_chunk),
        (tiny_views[1], aligned.student, aligned.chunks.student_chunk),
    ]
    spelled = []
    for view, encoding, chunks in sides:
        pieces = [b""] * aligned.chunks.num_chunks
        for token_id, chunk in zip(encoding.ids.tolist(), chunks.tolist(), strict=True):
            pieces[chunk] += view.token_bytes(token_id)
        spelled.append(pieces)
    assert spelled[0] == spelled[1]
    assert b"".join(spelled[0]) == text.encode()
    assert aligned.chunks.coverage == 1.0


def test_a_tokenizer_that_changes_the_text_is_refused(tiny_tokenizer_dirs: tuple[Path, Path]) -> None:
    # Case Q of alm.md §9.1: were bytes not compared, "ce" would pair with "cd" by its length alone.
    from tokenizers.normalizers import Replace
    from transformers import AutoTokenizer

    rewriting = AutoTokenizer.from_pretrained(tiny_tokenizer_dirs[1])
    rewriting.backend_tokenizer.normalizer = Replace("cd", "ce")
    exact, inexact = ByteView.from_tokenizer(tiny_tokenizer_dirs[0]), ByteView.from_tokenizer(rewriting)
    assert align_texts(exact, inexact, "ab x").chunks.coverage == 1.0
    with pytest.raises(InexactEncoding, match="from byte 4 of 7"):
        align_texts(exact, inexact, "ab cd x")


@pytest.mark.demo
def test_smollm2_and_gpt2_meet_at_every_word_end(smollm2_dir: Path, gpt2_tokenizer_dir: Path) -> None:
    text = "The strawberry tokenizer splits 12345 unusual words.\nEin Häuschen, 東京 🙂." * 5
    aligned = align_texts(ByteView.from_tokenizer(smollm2_dir), ByteView.from_tokenizer(gpt2_tokenizer_dir), text)
    teacher_ends = aligned.teacher.byte_ends.tolist()
    last_ends = dict(zip(aligned.chunks.teacher_chunk.tolist(), teacher_ends, strict=True))
    word_ends = {len(text[: match.start()].encode()) for match in re.finditer(r"\s", text)}
    assert word_ends < set(last_ends.values())
    assert aligned.chunks.num_chunks == len(set(teacher_ends) & set(aligned.student.byte_ends.tolist()))
    assert aligned.chunks.coverage == 1.0
