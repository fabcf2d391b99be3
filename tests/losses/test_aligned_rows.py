"""Where both models predict the same text, found the slow way."""

from __future__ import annotations

from typing import NamedTuple

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from losses.chunks import aligned_rows, scored_rows


class Side(NamedTuple):
    ids: Tensor
    chunk: Tensor
    scored: Tensor
    lengths: Tensor


def side(chunks: list[list[int]], unscored: list[list[int]]) -> Side:
    """Rows of chunk numbers, padded with -1; every token is one byte and scored unless its index is listed."""
    width = max(map(len, chunks))
    chunk = torch.tensor([row + [-1] * (width - len(row)) for row in chunks])
    scored = chunk >= 0
    for row, indices in enumerate(unscored):
        scored[row, [index for index in indices if index < width]] = False
    return Side(torch.zeros_like(chunk), chunk, scored, (chunk >= 0).long())


@st.composite
def sides(draw: st.DrawFn) -> tuple[Side, Side, int]:
    texts = draw(st.integers(1, 3))
    num_chunks = draw(st.integers(1, 5))
    made = []
    for _ in range(2):
        rows = [
            [-1] * draw(st.integers(0, 2))
            + [chunk for chunk in range(num_chunks) for _ in range(draw(st.integers(0, 3)))]
            for _ in range(texts)
        ]
        unscored = [draw(st.lists(st.integers(0, 9), max_size=2)) for _ in range(texts)]
        made.append(side([row or [-1] for row in rows], unscored))
    return made[0], made[1], num_chunks


@given(sides())
def test_rows_predict_the_first_token_of_every_chunk_that_both_sides_score(pair: tuple[Side, Side, int]) -> None:
    teacher, student, num_chunks = pair
    expected = []
    for text in range(len(teacher.chunk)):
        for chunk in range(num_chunks):
            tokens = [(s.chunk[text] == chunk).nonzero().flatten().tolist() for s in (teacher, student)]
            whole = all(
                found and found[0] > 0 and bool(s.scored[text, found].all())
                for s, found in zip((teacher, student), tokens, strict=True)
            )
            if whole:
                rows = [
                    text * s.chunk.shape[1] + found[0] - 1 for s, found in zip((teacher, student), tokens, strict=True)
                ]
                expected.append((*rows, text * num_chunks + chunk, all(len(found) == 1 for found in tokens)))
    assert list(zip(*(part.tolist() for part in aligned_rows(teacher, student, num_chunks)), strict=True)) == expected


def test_scored_tokens_and_what_predicts_them() -> None:
    scored = torch.tensor([[True, True, False], [False, False, True]])
    rows, tokens = scored_rows(scored)
    assert tokens.tolist() == [1, 5]  # nothing predicts the first token of a text
    assert rows.tolist() == [0, 4]
