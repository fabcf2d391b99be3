"""Likelihood scoring: a teacher's next-token distribution in a student's smaller vocabulary.

Source: Phan, Khisti, Ullrich, Cross-Tokenizer Likelihood Scoring Algorithms for Language Model Distillation,
arXiv 2512.14954 (the case of a student vocabulary inside the teacher's); evaluation.md §4 for coverings.

Every teacher token decomposes into student tokens, so a prefix of the student's tokens has the probability of all
sequences of teacher tokens that begin with it. Those sequences that one pass of the teacher gives are summed
(``losses.coverings``, with student tokens as symbols); the target t(u) of student token u is its share of their mass.

It is exact in every row where nothing ended, if the student's byte-pair merges are the teacher's up to some rank, the
teacher gives invalid encodings no mass, and no valid encoding of the prefix leaves the text's own before its last
token. Where something ended, the cells are lower bounds. What ended, and the special tokens that the student does not
have, make one more cell, the complement.

    loss = sum_u t(u) log(t(u) / p(u)) + t(rest) log(t(rest) / p(all other tokens))

On purpose unlike the paper: it asks the teacher again for every encoding that ended, offline; we ask once, in training.

Legend: N student tokens in comparable chunks, R of them with a target, V_S and V_T vocabularies, b rows of a block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from losses.byte_rows import byte_rows
from losses.chunks import TokenizedSide
from losses.coverings import (
    Contexts,
    Coverings,
    SymbolTree,
    find_coverings,
    log_probs_before,
    next_symbols,
    rows_per_block,
)
from losses.output import LossOutput
from losses.predictions import LinearHead, Predictions
from losses.rowwise import rowwise_loss
from losses.symbol_targets import symbol_divergence, symbol_targets


class ScoredRows(NamedTuple):
    """The student tokens that have a target, and what their targets are summed from.

    Attributes:
        student: int64 [R], flat positions in [B * T] whose predictions are about these tokens.
        contexts: the teacher's tokens that begin where a student's does.
        coverings: open coverings of the R rows.
    """

    student: Tensor
    contexts: Contexts
    coverings: Coverings


def scored_student_rows(
    teacher: TokenizedSide, student: TokenizedSide, num_chunks: int, tree: SymbolTree, label_logp: Tensor
) -> ScoredRows:
    """Find the rows with a target: those about a token that some teacher token may go on with.

    Args:
        tree: of the student tokens that each teacher token decomposes into.
        label_logp: [B, T] log-probability of every scored teacher token.
    """
    rows, line = byte_rows(teacher, student, num_chunks)
    first, limit = (torch.searchsorted(rows.start, place) for place in (line.start, line.stop))
    meets = rows.start[first.clamp(max=max(len(rows.start) - 1, 0))] == line.start
    position = line.position[meets]
    contexts = Contexts(
        first=first[meets],
        limit=limit[meets],
        row=position - 1,
        token=line.id[meets],
        log_prob=log_probs_before(label_logp, teacher.scored).flatten()[position],
    )
    coverings = find_coverings(tree, rows.student_id, contexts)
    targets = coverings.row[coverings.can_go_on(tree)].unique()
    return ScoredRows(rows.student[targets] - 1, contexts, coverings.at(targets))


def likelihood_scoring_loss(
    teacher: Predictions, student: LinearHead, rows: ScoredRows, tree: SymbolTree
) -> LossOutput:
    """Divergence of the student's next-token distribution from the teacher's, a student token a unit.

    Args:
        teacher: at all its positions; complete.
        student: the head at all its positions.

    Returns:
        Sum over the R rows, and R. Metrics: ``complement``, the mean mass of that cell, and ``lower_bound``, the share
        of rows in which a covering ended.
    """
    predictions, head = teacher.at(rows.contexts.row), student.at(rows.student)

    def losses_of(
        block: slice, logits: Sequence[Tensor], inputs: Sequence[Tensor]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        stop = min(block.stop, len(head))
        span = slice(block.start, stop)
        masses = next_symbols(predictions, tree, rows.contexts, rows.coverings, span, student.vocab_size)
        targets = symbol_targets(masses, logits[0].dtype)
        sums = {"complement": targets.complement.sum(), "lower_bound": targets.lower_bound.sum()}
        count = targets.complement.new_tensor(stop - block.start)
        return symbol_divergence(targets, logits[0]), {name: torch.stack([x, count]) for name, x in sums.items()}

    loss = rowwise_loss(losses_of, [head], block_rows=rows_per_block(teacher.vocab_size + student.vocab_size))
    return LossOutput(loss.total, torch.tensor(len(rows.student), device=rows.student.device), loss.metrics)
