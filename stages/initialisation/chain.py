"""Rows for one vocabulary-sized tensor: exact copies, then each method of the chain for what the ones before left."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from alignment.byte_view import ByteView
from alignment.initializers.rows import RowBlock, SparseRows, mean_row
from alignment.vocab import Match
from alignment.vocab_report import spelling
from stages.initialisation.task import Method, RowTask
from stages.stage import StageInterrupted

COPIED, OVERRIDDEN = "copied", "overridden"
_BLOCK_ELEMENTS = 1 << 24
_TYPICAL_NORM_QUANTILE = 0.999
_NAMED = 5


@dataclass
class MadeRows:
    """The rows of one tensor for the target vocabulary, and how each was made.

    Attributes:
        values: [V_target, D] in the student's dtype.
        methods: names; ``method`` holds indices into them. The first is ``copied``.
        method: int8 [V_target]; -1 while nobody has made the row.
        rejected: method -> target ids whose rows were not finite or far too long, and went to the next method.
        diagnostics: name -> float32 [V_target], NaN where a row has none.
        weights_sha256: of the weights over old rows of every row that has them.
        followers: what ``make_rows`` was given, with the same weights: name -> [V_target, 1].
    """

    values: Tensor
    methods: tuple[str, ...]
    method: np.ndarray
    rejected: dict[str, list[int]] = field(default_factory=dict)
    diagnostics: dict[str, np.ndarray] = field(default_factory=dict)
    weights_sha256: str = ""
    followers: dict[str, Tensor] = field(default_factory=dict)

    @property
    def new(self) -> Tensor:
        """bool [V_target]: rows that are no exact copies."""
        return torch.from_numpy(self.method != 0)

    def set_rows(self, ids: Tensor, weights: SparseRows, rows: Tensor, followers: Mapping[str, Tensor]) -> None:
        """Put weighted sums of the student's ``rows`` at ``ids``, and of its ``followers`` at theirs."""
        self.values[ids] = weights.combine(rows).to(self.values.dtype)
        for name, column in followers.items():
            self.followers[name][ids] = weights.combine(column).to(column.dtype)
        self.method[ids.numpy()] = len(self.methods)
        self.methods = (*self.methods, OVERRIDDEN)

    @property
    def counts(self) -> dict[str, int]:
        """Method -> number of rows that it made."""
        found = np.bincount(self.method, minlength=len(self.methods)).tolist()
        return dict(zip(self.methods, found, strict=True))

    def remarks(self, target: ByteView) -> list[str]:
        """Methods that were asked and made nothing, or rows that were rejected, a sentence each; before overrides."""
        counts, sentences = self.counts, []
        for name in self.methods[1 : 1 + int(self.method.max())]:
            if rejected := self.rejected[name]:
                sentences.append(
                    f"{len(rejected):,} rows of {name} are not finite or too long: the next method made them: "
                    f"{named_tokens(target, rejected)}"
                )
            elif not counts[name]:
                sentences.append(f"{name} could make none of the rows: the next method made them")
        return sentences


def make_rows(
    task: RowTask,
    methods: Mapping[str, Method],
    *,
    copy_exact: bool = True,
    max_norm: float | None = None,
    followers: Mapping[str, Tensor] | None = None,
) -> MadeRows:
    """Rows of ``task``'s tensor for every target id.

    A token of the source vocabulary keeps its row bit by bit. Every other id is offered to the methods in turn; a row
    that is not finite, or longer than ``max_norm`` times the 99.9 % quantile of the old rows' norms, counts as not
    made; but nobody is left to make those of the last method shorter.

    Args:
        methods: by name, in order; one is fitted when it is first needed. The last one must make every row.
        copy_exact: False offers exact matches of text to the methods as well; special tokens are copied in any case.
        max_norm: None accepts rows of any finite norm.
        followers: output biases [V_source, 1], to be given values by the same weights; where a method gives no weights,
            by its own prediction, and else the mean.

    Raises:
        StageInterrupted: the stage was asked to stop.
    """
    sources = dict(followers or {})
    made = _exact_copies(task, tuple(methods), copy_exact, sources)
    limit = float("inf") if max_norm is None else max_norm * _typical_norm(task.rows)
    digest = hashlib.sha256()
    remaining = torch.from_numpy(made.method < 0).nonzero().flatten()
    for place, (name, method) in enumerate(methods.items(), start=1):
        if not len(remaining):
            break
        method.fit()
        declined = []
        for ids in remaining.split(max(256, _BLOCK_ELEMENTS // task.rows.shape[1])):
            if task.transplant.should_stop():
                raise StageInterrupted
            block = method.rows(ids)
            values = block.values(task.rows).to(task.rows.dtype)
            norms = values.float().norm(dim=1)
            acceptable = norms.isfinite() & (norms <= limit if place < len(methods) else True)
            kept = block.made & acceptable
            made.rejected[name] += ids[block.made & ~acceptable].tolist()
            made.values[ids[kept]] = values[kept]
            made.method[ids[kept].numpy()] = place
            _record(made, block, ids, kept, digest)
            _follow(made, block, ids, kept, sources)
            declined.append(ids[~kept])
        remaining = torch.cat(declined)
    if len(remaining):
        raise AssertionError(f"{list(methods)[-1]} left {len(remaining)} rows of {task.name} unmade")
    made.weights_sha256 = digest.hexdigest()
    return made


def _exact_copies(
    task: RowTask, methods: tuple[str, ...], copy_exact: bool, followers: Mapping[str, Tensor]
) -> MadeRows:
    """The rows that are copies; all others are open, their method -1."""
    alignment = task.alignment
    made = MadeRows(
        values=torch.empty(alignment.target_size, task.rows.shape[1], dtype=task.rows.dtype),
        methods=(COPIED, *methods),
        method=np.full(alignment.target_size, -1, dtype=np.int8),
        rejected={name: [] for name in methods},
    )
    copied = copied_ids(task, copy_exact)
    source_ids = torch.from_numpy(alignment.pieces[alignment.offsets[copied]]).long()
    made.values[torch.from_numpy(copied)] = task.rows[source_ids]
    made.method[copied] = 0
    for name, tensor in followers.items():
        made.followers[name] = torch.empty(alignment.target_size, tensor.shape[1], dtype=tensor.dtype)
        made.followers[name][torch.from_numpy(copied)] = tensor[source_ids]
    return made


def _follow(made: MadeRows, block: RowBlock, ids: Tensor, kept: Tensor, followers: Mapping[str, Tensor]) -> None:
    """Give ``followers`` values by the weights of a block, or what it predicts, or their mean where it does neither."""
    for name, tensor in followers.items():
        if isinstance(block.rows, SparseRows):
            given = block.rows.combine(tensor)
        else:
            given = mean_row(tensor).expand(len(ids), -1) if block.bias is None else block.bias[:, None]
        made.followers[name][ids[kept]] = given[kept].to(tensor.dtype)


def copied_ids(task: RowTask, copy_exact: bool) -> np.ndarray:
    """int64: target ids that take a source row as it is."""
    alignment = task.alignment
    if copy_exact:
        return np.flatnonzero(alignment.copied)
    kept = np.isin(alignment.match, (Match.ROLE, Match.STRING, Match.OVERRIDE))
    kept[[token for token in task.transplant.target.special_tokens if alignment.copied[token]]] = True
    return np.flatnonzero(kept)


def _typical_norm(rows: Tensor) -> float:
    norms = torch.cat([block.float().norm(dim=1) for block in rows.split(1 << 14)])
    # torch.quantile takes at most 2^24 values, which is no limit for a vocabulary.
    return float(norms.quantile(_TYPICAL_NORM_QUANTILE))


def _record(made: MadeRows, block: RowBlock, ids: Tensor, kept: Tensor, digest: hashlib._Hash) -> None:
    for name, values in block.diagnostics.items():
        column = made.diagnostics.setdefault(name, np.full(len(made.method), np.nan, dtype=np.float32))
        column[ids[kept].numpy()] = values[kept].numpy()
    if isinstance(block.rows, SparseRows):
        for part in (ids[kept], block.rows.indices[kept], block.rows.weights[kept]):
            digest.update(part.contiguous().numpy().tobytes())


def named_tokens(view: ByteView, ids: Sequence[int]) -> str:
    """Tokens as their text and id, for a person; the first few of them."""
    names = ", ".join(f"{spelling(view, token)!r} ({token})" for token in ids[:_NAMED])
    return names + (", ..." if len(ids) > _NAMED else "")


def failed_rows(rows: Tensor, limit: int = 5) -> Sequence[int]:
    """The first rows of [V, D] that hold a value that is not finite."""
    bad = torch.cat([~block.float().isfinite().all(dim=1) for block in rows.split(1 << 14)])
    return bad.nonzero().flatten()[:limit].tolist()
