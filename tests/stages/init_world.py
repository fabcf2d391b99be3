"""Small vocabularies and matrices for tests of initializers: ``make_task`` builds a ``RowTask`` without any file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from alignment.anchors import anchors
from alignment.byte_view import ByteView
from alignment.vocab import align_vocabularies
from alignment.vocab_tensors import Role
from stages.initialisation.task import RowTask, Transplant

SOURCE = [*(bytes([byte]) for byte in b"abcdefgh "), b"ab", b"cd", b"abc", b" a", b"gh", b" fe", None]
"""The last one is special. Every target token below can be spelled with these."""
TARGET = [b"cd", b"a", b"b", b"abcd", b" ab", b"gh", b"c", b"d", b"hgh", b"e", b"ab", None, b"xyz", b"f", b"g", b"h"]
"""Copies, decompositions, one special token and one token (``xyz``) that the source cannot spell."""


def make_transplant(
    source: Sequence[bytes | None] = SOURCE,
    target: Sequence[bytes | None] = TARGET,
    *,
    texts: Sequence[str] | None = None,
    seed: int = 17,
    directory: Path = Path("unused"),
    donor: Path | None = None,
    hypernet: Path | None = None,
    cache: Path | None = None,
    views: tuple[ByteView, ByteView] | None = None,
) -> Transplant:
    """A transplant between two vocabularies given as byte strings, or between two tokenizers given as ``views``."""
    source_view, target_view = views or (ByteView.from_token_bytes(source), ByteView.from_token_bytes(target))

    def documents() -> Iterator[str]:
        yield from texts or ()

    return Transplant(
        student=directory,
        tokenizer=directory,
        source=source_view,
        target=target_view,
        alignment=align_vocabularies(source_view, target_view),
        donor=donor,
        hypernet=hypernet,
        texts=None if texts is None else documents,
        seed=seed,
        work=directory,
        cache=cache,
        progress=lambda line: None,
        should_stop=lambda: False,
    )


def make_task(
    transplant: Transplant | None = None,
    *,
    role: Role = "input",
    width: int = 6,
    dtype: torch.dtype = torch.float32,
    donor_width: int | None = None,
    rows: Tensor | None = None,
    donor_rows: Tensor | None = None,
) -> RowTask:
    """A tensor of random rows (fixed seed) to be given rows for the target vocabulary; all exact matches are anchors.

    With ``donor_width`` or ``donor_rows`` there is a donor whose rows are all usable.
    """
    transplant = transplant or make_transplant()
    generator = torch.Generator().manual_seed(5)
    if rows is None:
        rows = torch.randn(transplant.source.vocab_size, width, generator=generator).to(dtype)
    if donor_rows is None and donor_width is not None:
        donor_rows = torch.randn(transplant.target.vocab_size, donor_width, generator=generator).to(dtype)
    source_ids, target_ids = anchors(transplant.alignment, transplant.source, transplant.target)
    return RowTask(
        transplant=transplant,
        name="model.embed_tokens.weight",
        role=role,
        rows=rows,
        anchor_source=torch.from_numpy(source_ids).long(),
        anchor_target=torch.from_numpy(target_ids).long(),
        donor_rows=donor_rows,
        donor_has=None if donor_rows is None else torch.ones(transplant.target.vocab_size, dtype=torch.bool),
    )
