"""What a method of initialisation may know, and what it must offer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from alignment.byte_view import ByteView
from alignment.initializers.rows import RowBlock, mean_row
from alignment.vocab import VocabAlignment
from alignment.vocab_tensors import Role


@dataclass(frozen=True)
class Transplant:
    """A student, the tokenizer that it shall have, and what else may help; the same for all of its tensors.

    Attributes:
        student, tokenizer: directories of the student's model and of the target tokenizer.
        source, target: the two tokenizers as bytes.
        alignment: which source ids make each target id.
        donor: directory of a model that uses the target tokenizer; None for none.
        hypernet: directory that a hypernet stage made; None for none.
        texts: yields the training documents, each time from the start; None where there are none.
        seed: of everything that is drawn.
        work: durable scratch of the stage, for what takes long and may be interrupted.
        cache: where tables that other runs may need are kept (``alignment.table_cache``); None for nowhere.
        progress: prints one line.
        should_stop: True once the stage was asked to stop; poll it in long loops and raise StageInterrupted.
    """

    student: Path
    tokenizer: Path
    source: ByteView
    target: ByteView
    alignment: VocabAlignment
    donor: Path | None
    hypernet: Path | None
    texts: Callable[[], Iterator[str]] | None
    seed: int
    work: Path
    cache: Path | None
    progress: Callable[[str], None]
    should_stop: Callable[[], bool]

    @cached_property
    def row_keys(self) -> np.ndarray:
        """uint64 [V]: a number for each target id that depends on what the token is and not on its id.

        Randomness drawn by it stays with the token when ids are permuted. Tokens that spell the same share it.
        """
        specials = self.target.special_tokens

        def spelled(token: int) -> bytes:
            if token in specials:
                return b"s" + specials[token].encode()
            return b"t" + (self.target.token_bytes(token) or b"")

        digests = (hashlib.sha256(spelled(token)).digest()[:8] for token in range(self.target.vocab_size))
        return np.frombuffer(b"".join(digests), dtype=np.uint64)


@dataclass(frozen=True)
class RowTask:
    """One vocabulary-sized tensor of the student that needs rows for the target vocabulary.

    Attributes:
        transplant: what all tensors of the student share.
        name: of the tensor, for messages.
        role: what its rows are for.
        rows: [V_source, D] in the student's dtype, padding rows left out; a bias has D = 1.
        anchor_source, anchor_target: int64 [N], pairs of ids that mean the same and were trained on both sides; in the
            order of the target ids, no id twice. Methods that express new rows through old ones use no others.
        donor_rows: [V_target, D_donor] by target id, the donor's tensor of the same role (its input matrix for an
            output that it ties); None without a donor.
        donor_has: bool [V_target], target ids with a usable donor row; None without a donor.
    """

    transplant: Transplant
    name: str
    role: Role
    rows: Tensor
    anchor_source: Tensor
    anchor_target: Tensor
    donor_rows: Tensor | None = None
    donor_has: Tensor | None = None

    @property
    def alignment(self) -> VocabAlignment:
        """Which source ids make each target id."""
        return self.transplant.alignment

    @cached_property
    def mean_row(self) -> Tensor:
        """[D] float32 (float64 for float64 rows): the mean of all of the student's rows."""
        return mean_row(self.rows).to(torch.promote_types(self.rows.dtype, torch.float32))


@dataclass(frozen=True)
class Estimate:
    """What a method will cost.

    Attributes:
        memory_bytes: at its peak, beyond the matrices of student and donor.
        operations: floating-point operations for all rows.
    """

    memory_bytes: int
    operations: float


class Method(Protocol):
    """An initializer at work on one tensor: ``Method(options, task)``, then ``fit``, then ``rows`` block by block.

    The constructor refuses, before anything expensive is done, what cannot work: it raises StageError with the option
    or input that is at fault and the way out.
    """

    def estimate(self, new_rows: int) -> Estimate:
        """What it will cost to make so many rows."""

    def fit(self) -> None:
        """Do all that does not depend on the row. May take long; what others may reuse goes to the cache."""

    def rows(self, target_ids: Tensor) -> RowBlock:
        """The rows of some target ids, int64 [M]. A row does not depend on the others of its block."""
