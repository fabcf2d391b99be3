"""The counts against a slow recount, byte by byte and token by token."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers
from toy_tokenizers import byte_level, fast

from alignment.audit import Audit
from alignment.audit.batch import flatten
from alignment.audit.counts import Statistic, count_cells, fused_chunks
from alignment.audit.text_classes import CLASSES, ClassifiedText, classify
from alignment.byte_view import ByteView
from alignment.encoding import Encoding
from alignment.spans import align_batch

TEACHER = ByteView.from_tokenizer(fast(byte_level(("4", "2"), ("Ġ", "a"), ("a", "b"), ("Ã", "©"), ("Ċ", "Ċ"))))
STUDENT = ByteView.from_tokenizer(fast(byte_level(("Ġ", "a"), ("Ġa", "b"), ("Ġ", "Ġ"), ("Ċ", "Ġ"), ("æ", "Ŀ"))))
ALPHABET = "ab42 \n\t.é東"
COUNTED = (
    *("bytes", "covered", "one_to_one", "chunks", "one_to_one_chunks", "fused", "inside_word", "inside_character"),
    *("teacher_tokens", "teacher_covered", "teacher_common", "student_tokens", "student_covered", "student_common"),
)


def _recount(texts: list[str]) -> dict[tuple[bool, str], dict[str, float]]:
    """All statistics by (code, class), one document, byte and token at a time; for exact tokenizers."""
    total: dict[tuple[bool, str], dict[str, float]] = defaultdict(lambda: dict.fromkeys(COUNTED, 0.0))
    vocabularies = [{view.token_bytes(token) for token in range(view.vocab_size)} for view in (TEACHER, STUDENT)]
    for text in texts:
        data = text.encode()
        classified = classify([text])
        cells = [(bool(code), CLASSES[index]) for code, index in zip(classified.code, classified.classes, strict=True)]
        ends = [view.encode(text).byte_ends.tolist() for view in (TEACHER, STUDENT)]
        common_ends = sorted(set(ends[0]) & set(ends[1]))
        spans = list(zip([0, *common_ends], common_ends, strict=False))
        for cell in cells:
            total[cell]["bytes"] += 1
            total[cell]["covered"] += 1
        for side, other, own_ends in (("teacher", 1, ends[0]), ("student", 0, ends[1])):
            for start, end in zip([0, *own_ends], own_ends, strict=False):
                for position in range(start, end):
                    part = 1 / (end - start)
                    total[cells[position]][f"{side}_tokens"] += part
                    total[cells[position]][f"{side}_covered"] += part
                    total[cells[position]][f"{side}_common"] += part * (data[start:end] in vocabularies[other])
        for start, end in spans:
            inner = [sum(start < own_end <= end for own_end in own) for own in ends]
            counts = total[cells[end - 1]]
            counts["chunks"] += 1
            counts["one_to_one_chunks"] += inner == [1, 1]
            for position in range(start, end):
                total[cells[position]]["one_to_one"] += inner == [1, 1]
            counts["fused"] += end < len(data) and data[end : end + 1] not in (b" ", b"\t", b"\n")
            counts["inside_character"] += data[start] & 0xC0 == 0x80
            around = [_in_word(text, start - 1), _in_word(text, start)] if start else [False]
            counts["inside_word"] += all(around)
    return total


def _in_word(text: str, position: int) -> bool:
    """Whether the character that holds this byte is a letter or a digit."""
    end = 0
    for character in text:
        end += len(character.encode())
        if position < end:
            return character.isalnum()
    raise AssertionError("outside the text")


def _count(texts: list[str]) -> np.ndarray:
    classified = classify(texts)
    encodings = [view.encode_batch(texts) for view in (TEACHER, STUDENT)]
    teacher, student, chunks = flatten(*encodings, align_batch(*encodings), classified.starts)
    keys = [{view.token_bytes(token) for token in range(view.vocab_size)} for view in (TEACHER, STUDENT)]
    return count_cells(
        classified,
        teacher,
        student,
        chunks,
        teacher_common=np.array([TEACHER.token_bytes(token) in keys[1] for token in range(TEACHER.vocab_size)]),
        student_common=np.array([STUDENT.token_bytes(token) in keys[0] for token in range(STUDENT.vocab_size)]),
        fused=fused_chunks(teacher, chunks, TEACHER.boundary_mask()),
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(alphabet=ALPHABET, max_size=14), min_size=1, max_size=4))
def test_counts_equal_a_recount_byte_by_byte(texts):
    counts = _count(texts)
    expected = np.zeros_like(counts)
    order = {
        Statistic.BYTES: "bytes",
        Statistic.COVERED_BYTES: "covered",
        Statistic.ONE_TO_ONE_BYTES: "one_to_one",
        Statistic.TEACHER_TOKENS: "teacher_tokens",
        Statistic.TEACHER_COVERED: "teacher_covered",
        Statistic.TEACHER_COMMON: "teacher_common",
        Statistic.STUDENT_TOKENS: "student_tokens",
        Statistic.STUDENT_COVERED: "student_covered",
        Statistic.STUDENT_COMMON: "student_common",
        Statistic.CHUNKS: "chunks",
        Statistic.ONE_TO_ONE_CHUNKS: "one_to_one_chunks",
        Statistic.FUSED: "fused",
        Statistic.INSIDE_WORD: "inside_word",
        Statistic.INSIDE_CHARACTER: "inside_character",
    }
    for (code, name), values in _recount(texts).items():
        for statistic, key in order.items():
            expected[int(code), CLASSES.index(name), statistic] = values[key]
    np.testing.assert_allclose(counts, expected, atol=1e-9)


def _encoding(ends: list[int], *, boundary: list[bool] | None = None, verbatim: list[bool] | None = None) -> Encoding:
    size = len(ends)
    return Encoding(
        ids=np.zeros(size, dtype=np.int32),
        byte_ends=np.array(ends, dtype=np.int64),
        special=np.zeros(size, dtype=bool),
        boundary=np.array(boundary or [True] * size, dtype=bool),
        verbatim=np.array(verbatim or [True] * size, dtype=bool),
        text_bytes=max(ends, default=0),
    )


def _flatten(texts: list[str], teachers: list[Encoding], students: list[Encoding]):
    classified: ClassifiedText = classify(texts)
    return flatten(teachers, students, align_batch(teachers, students), classified.starts)


def test_the_pieces_of_a_rewritten_stretch_share_its_bytes():
    # Three teacher tokens stand for the first two bytes together; the student has one token a byte.
    teacher = _encoding([0, 0, 2, 3], boundary=[False, False, True, True], verbatim=[False, False, False, True])
    tokens, _, chunks = _flatten(["abc"], [teacher], [_encoding([1, 2, 3])])
    assert tokens.share_out(np.ones(4), 3).tolist() == [1.5, 1.5, 1.0]
    assert (chunks.starts.tolist(), chunks.ends.tolist()) == ([2], [3]), "what is rewritten is in no chunk"


def test_bytes_that_no_token_stands_for_have_no_tokens():
    tokens, *_ = _flatten(
        ["abc", "", "de"],
        [_encoding([1, 2]), _encoding([]), _encoding([2])],
        [_encoding([3]), _encoding([]), _encoding([2])],
    )
    assert tokens.starts.tolist() == [0, 1, 3]
    assert tokens.share_out(np.ones(3), 5).tolist() == [1.0, 1.0, 0.0, 0.5, 0.5]


def test_a_token_without_bytes_at_the_end_shares_with_the_one_before_it():
    texts, students = ["ab", "c"], [_encoding([2]), _encoding([1])]
    tokens, *_ = _flatten(texts, [_encoding([1, 2, 2]), _encoding([1])], students)
    assert tokens.share_out(np.ones(4), 3).tolist() == [1.0, 2.0, 1.0]


def test_an_inexact_document_is_counted_and_its_rest_still_used():
    lower = ByteView.from_tokenizer(fast(byte_level(normalizer=normalizers.Lowercase())))
    audit = Audit(lower, STUDENT)
    audit.add("text", 2.0, ["all lower", "ab CD ef", "fine"])
    report = audit.report()
    rejections = report.rejections
    assert (rejections.teacher_inexact_documents, rejections.student_inexact_documents) == (1, 0)
    assert rejections.teacher_inexact_bytes == 2 * len("CD")
    assert rejections.documents == 1
    (example,) = rejections.examples
    assert (example.domain, example.document, example.side, example.offset) == ("text", 1, "teacher", 3)
    assert example.text.startswith("CD ef")
    assert report.overall.coverage == pytest.approx(1 - rejections.bytes / report.overall.bytes)
    assert rejections.bytes == 2 * len("CD")
    warning = next(finding for finding in report.recommendation.findings if finding.topic == "inexact text")
    assert warning.level == "warning"
    assert "1 of 3 documents" in warning.message
