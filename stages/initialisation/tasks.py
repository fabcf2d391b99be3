"""The tensors that need rows, each with what its methods may know."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alignment.anchors import AnchorPolicy, anchors, unused_rows
from alignment.byte_view import ByteView
from alignment.initializers.norms import row_norms
from alignment.initializers.trained import undertrained
from alignment.vocab import Match, VocabAlignment
from stages.documents import read_records
from stages.initialisation.chain import failed_rows
from stages.initialisation.donor import Donor
from stages.initialisation.task import RowTask, Transplant
from stages.initialisation.tensors import VocabularyTensor
from stages.initializers.steps import AnchorOptions
from stages.stage import StageContext, StageError


def load_transplant(ctx: StageContext) -> Transplant:
    """The inputs of the stage, checked against each other.

    Raises:
        StageError: the alignment was made for other tokenizers.
    """
    student, tokenizer = ctx.input("student"), ctx.input("tokenizer")
    source, target = ByteView.from_tokenizer(student), ByteView.from_tokenizer(tokenizer)
    source.name, target.name = "student", "target"  # as messages call them
    alignment = VocabAlignment.load(ctx.input("alignment") / "alignment.npz")
    for role, view, expected in (
        ("student", source, alignment.source_fingerprint),
        ("target", target, alignment.target_fingerprint),
    ):
        if view.fingerprint != expected:
            raise StageError(
                f"the alignment was made for another {role} tokenizer than the one in "
                f"{student if view is source else tokenizer}: name the align stage that takes the same models under "
                "`needs`, and a tokenizer stage under `needs` of both or of neither"
            )
    documents = ctx.optional_input("documents")
    return Transplant(
        student=student,
        tokenizer=tokenizer,
        source=source,
        target=target,
        alignment=alignment,
        donor=ctx.optional_input("donor"),
        hypernet=ctx.optional_input("hypernet"),
        texts=None if documents is None else lambda: read_texts(documents),
        seed=ctx.config.seed,
        work=ctx.work,
        cache=ctx.cache,
        progress=ctx.progress,
        should_stop=ctx.should_stop,
    )


def read_texts(documents: Path) -> Iterator[str]:
    """The text of every document of a DocumentsArtifact; of a conversation what was said, a line a message."""
    for _, record in read_records(documents / "documents.jsonl"):
        if "text" in record:
            yield record["text"]
        else:
            yield "\n".join(m["content"] for m in record["messages"] if isinstance(m.get("content"), str))


@dataclass(frozen=True)
class AnchorFacts:
    """What became of the shared tokens.

    Attributes:
        shared: exact matches that the policy allows and whose row the donor, if there is one, has.
        dropped: of those, rows that look untrained in the student or in the donor.
        broken: target ids, whether shared or not, whose row in the donor is not finite.
    """

    shared: int
    dropped: int
    broken: tuple[int, ...] = ()


def make_task(
    transplant: Transplant, tensor: VocabularyTensor, rows: Tensor, donor: Donor | None, options: AnchorOptions
) -> tuple[RowTask, AnchorFacts]:
    """One tensor with its anchors and the donor's rows.

    Args:
        rows: [V_source, D] its rows, padding included.

    Raises:
        StageError: rows of the student's vocabulary are not finite.
    """
    source = transplant.source
    used = min(source.vocab_size, len(rows))
    if failed := failed_rows(rows[:used]):
        raise StageError(
            f"{tensor.name} of the student has rows that are not finite: {', '.join(map(str, failed))} and maybe more. "
            "Repair the student's weights: nothing can be made of such rows."
        )
    policy = AnchorPolicy(
        special=options.special,
        byte_fallback=options.byte_fallback,
        partial_utf8=options.partial_utf8,
        added=options.added,
        digits=options.digits,
    )
    source_ids, target_ids = map(
        lambda ids: torch.from_numpy(ids).long(),
        anchors(transplant.alignment, source, transplant.target, policy=policy),
    )
    keep = source_ids < len(rows)
    from_donor = donor.rows(tensor.role) if donor else None
    if from_donor:
        keep &= from_donor.usable[target_ids]
    source_ids, target_ids = source_ids[keep], target_ids[keep]
    trained = torch.ones(len(source_ids), dtype=torch.bool)
    if options.undertrained == "drop":
        trained = ~undertrained(rows, torch.from_numpy(unused_rows(source, len(rows))))[source_ids]
        if from_donor:
            trained &= ~from_donor.untrained[target_ids]
    trained &= torch.from_numpy(row_norms(rows) > 0)[source_ids]
    task = RowTask(
        transplant=replace(transplant, alignment=within(transplant.alignment, len(rows))),
        name=tensor.name,
        role=tensor.role,
        rows=rows[:used],
        anchor_source=source_ids[trained],
        anchor_target=target_ids[trained],
        donor_rows=from_donor.rows if from_donor else None,
        donor_has=from_donor.usable if from_donor else None,
    )
    broken = tuple(from_donor.broken.nonzero().flatten().tolist()) if from_donor else ()
    return task, AnchorFacts(len(source_ids), int((~trained).sum()), broken)


def within(alignment: VocabAlignment, rows: int) -> VocabAlignment:
    """The alignment for a tensor with fewer rows than the source vocabulary: what needs others has no counterpart."""
    if rows >= alignment.source_size:
        return alignment
    owner = np.repeat(np.arange(alignment.target_size), alignment.piece_counts)
    lost = np.zeros(alignment.target_size, dtype=bool)
    lost[owner[alignment.pieces >= rows]] = True
    kept = ~lost[owner]
    return VocabAlignment(
        match=np.where(lost, np.int8(Match.NONE), alignment.match),
        offsets=np.concatenate([[0], np.cumsum(np.where(lost, 0, alignment.piece_counts))]),
        pieces=alignment.pieces[kept],
        source_size=rows,
        source_fingerprint=alignment.source_fingerprint,
        target_fingerprint=alignment.target_fingerprint,
    )
