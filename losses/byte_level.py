"""Byte-level distillation: parallel byte heads on the student, taught by the text and by the teacher's next bytes.

Source: MediaTek, Cross-Tokenizer LLM Distillation through a Byte-Level Interface (BLD), arXiv 2604.07466.

Head j reads the hidden state that predicts a student token and predicts byte j of that token, for all j at once and
without seeing the bytes before it. With y the text's bytes, p_j a head's distribution and q the teacher's next-byte
distribution given the text before the byte:

    loss = cross_entropy_weight * sum log 1 / p_j(y) + kl_weight * sum KL(q || p_j)

On purpose unlike the paper: q is summed over every covering of the text before that one pass of the teacher gives
(``losses.coverings``) in place of a beam search with more passes; what ended goes to a complement cell. The
cross-entropy of the student's own tokens is an objective of its own. Bytes beyond the last head have no loss.

Legend: N bytes of text, T tokens, V_S and V_T vocabularies.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from losses.byte_rows import byte_rows
from losses.chunks import TokenizedSide
from losses.coverings import Contexts, SymbolTree, find_coverings, log_probs_before, next_symbols, row_blocks
from losses.output import LossOutput, ratio
from losses.predictions import Predictions
from losses.symbol_targets import SymbolTargets, symbol_divergence, symbol_targets

BYTES = 256
_UNKNOWN = BYTES  # a byte that no token has


class StudentBytes(NamedTuple):
    """The bytes of the student's tokens.

    Attributes:
        offsets: int64 [V_S + 1]; token v is ``data[offsets[v]:offsets[v + 1]]``.
        data: int64, bytes of all tokens one after the other.
    """

    offsets: Tensor
    data: Tensor


class TextBytes(NamedTuple):
    """The N bytes of text in chunks that both sides can compare; a special token counts as one byte.

    Attributes:
        byte: int64 [N]; 256 where it is not known, as for special tokens.
        token: int64 [N], flat position in [B * T] of the student's token.
        place: int64 [N], how many bytes of that token come before it: the head that predicts it.
    """

    byte: Tensor
    token: Tensor
    place: Tensor


def text_bytes(teacher: TokenizedSide, student: TokenizedSide, num_chunks: int, spelling: StudentBytes) -> TextBytes:
    """Spell the student's tokens.

    A space that the tokenizer puts before a text is a byte of the first token but none of the text: the text's bytes
    are the token's last ones.
    """
    rows, _ = byte_rows(teacher, student, num_chunks)
    index = torch.repeat_interleave(rows.length)
    token = rows.student[index]
    first, end = (spelling.offsets[rows.student_id[index] + more] for more in (0, 1))
    place = torch.arange(len(index), device=index.device) - rows.start[index] + (end - first - rows.length[index])
    known = ~rows.special[index] & (place >= 0)
    byte = spelling.data[torch.where(known, first + place, 0)]
    return TextBytes(torch.where(known, byte, _UNKNOWN), token, place)


def teacher_contexts(
    teacher: TokenizedSide,
    student: TokenizedSide,
    num_chunks: int,
    label_logp: Tensor,
    byte_lengths: Tensor,
) -> Contexts:
    """The teacher's tokens as places from where to read on, in the bytes of ``text_bytes``.

    Args:
        label_logp: [B, T] log-probability of every scored teacher token.
        byte_lengths: int64 [V_T]; a token that stands for fewer bytes of text begins before the text and is no context.
    """
    _, line = byte_rows(teacher, student, num_chunks)
    whole = teacher.lengths.flatten()[line.position] == byte_lengths[line.id]
    position = line.position[whole]
    return Contexts(
        first=line.start[whole],
        limit=line.stop[whole],
        row=position - 1,
        token=line.id[whole],
        log_prob=log_probs_before(label_logp, teacher.scored).flatten()[position],
    )


@torch.no_grad()
def next_byte_targets(
    teacher: Predictions, tree: SymbolTree, contexts: Contexts, text: Tensor, wanted: Tensor, dtype: torch.dtype
) -> SymbolTargets:
    """The teacher's distribution of some bytes of a text, given the bytes before.

    Args:
        teacher: the teacher's predictions at all its positions; complete.
        tree: of the bytes of its tokens.
        text: int64 [N] bytes; 256 breaks the text.
        wanted: int64, ascending; which of the N bytes.
        dtype: of the result.
    """
    coverings = find_coverings(tree, text, contexts).at(wanted)
    predictions = teacher.at(contexts.row)
    # No rows make one empty block, so that there is always something to put together.
    blocks = list(row_blocks(len(wanted), teacher.vocab_size)) or [slice(0, 0)]
    masses = (next_symbols(predictions, tree, contexts, coverings, rows, BYTES) for rows in blocks)
    parts = zip(*(symbol_targets(each, dtype) for each in masses), strict=True)
    return SymbolTargets(*(torch.cat(part) for part in parts))


def byte_level_loss(
    logits: Tensor,
    byte: Tensor,
    targets: SymbolTargets,
    *,
    cross_entropy_weight: float = 1.0,
    kl_weight: float = 0.1,
) -> LossOutput:
    """Cross-entropy on the text's bytes and divergence from the teacher's, a byte a unit.

    Args:
        logits: [N, 256] of the byte heads, float32 or float64.
        byte: int64 [N], the text's.
        targets: the teacher's, of N rows; one without target has no divergence.

    Returns:
        Sum over the N bytes, and N. Metrics: ``cross_entropy`` in nats a byte, ``kl`` in nats a byte that the teacher
        says something about, ``teacher_coverage``, the share of those bytes, ``complement``, the mean mass of what is
        not known to be a certain byte, and ``lower_bound``, the share of bytes before which a covering ended.
    """
    cross_entropy = -logits.log_softmax(1).gather(1, byte[:, None]).sum()
    kl = symbol_divergence(targets, logits).sum()
    taught = ((targets.cells.sum(1) + targets.complement) > 0).sum()
    count = torch.tensor(len(byte), device=byte.device)
    return LossOutput(
        total=cross_entropy_weight * cross_entropy + kl_weight * kl,
        count=count,
        metrics={
            "cross_entropy": ratio(cross_entropy, count),
            "kl": ratio(kl, taught),
            "teacher_coverage": ratio(taught, count),
            "complement": ratio(targets.complement.sum(), taught),
            "lower_bound": ratio(targets.lower_bound.sum(), taught),
        },
    )
