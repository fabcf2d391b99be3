"""A model that already uses the target tokenizer, or most of its tokens: a source of rows and of their geometry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alignment.anchors import unused_rows
from alignment.byte_view import ByteView
from alignment.initializers.trained import undertrained
from alignment.special_tokens import special_roles
from alignment.token_codecs import UnsupportedTokenizer
from alignment.vocab import AlignmentError, align_vocabularies
from alignment.vocab_tensors import Role
from stages.initialisation.tensors import VocabularyTensor, read_rows, vocabulary_tensors
from stages.model_loading import refuse_expanded
from stages.stage import StageError

_SHARED_ROLES: tuple[Role, ...] = ("input", "output", "per_layer_input")
"""Roles that mean the same in two models."""


@dataclass(frozen=True)
class DonorRows:
    """The donor's tensor of one role, by target id.

    Attributes:
        rows: [V_target, D].
        usable: bool [V_target], rows that exist, are finite and not zero.
        untrained: bool [V_target], those of them that look like the rows of unused tokens.
        broken: bool [V_target], rows that exist and are not finite.
    """

    rows: Tensor
    usable: Tensor
    untrained: Tensor
    broken: Tensor


class Donor:
    """The donor's rows by target id.

    Attributes:
        share: of the target ids, those that are a token of the donor.

    Raises:
        StageError: it has none of the target's tokens, or it is nothing that rows can be taken of.
    """

    def __init__(self, directory: Path, target: ByteView, tokenizer: Path) -> None:
        from transformers import AutoTokenizer

        refuse_expanded(directory, "donor")
        own = AutoTokenizer.from_pretrained(directory)
        try:
            self._view = ByteView.from_tokenizer(own)
        except UnsupportedTokenizer as error:
            raise StageError(f"the donor's tokenizer cannot be compared with the target's: {error}") from None
        self._view.name = "donor"
        self._tensors: dict[Role, VocabularyTensor] = {
            tensor.role: tensor for tensor in vocabulary_tensors(directory) if tensor.role in _SHARED_ROLES
        }
        rows = self._tensors["input"].matrix_rows
        if self._view.fingerprint == target.fingerprint:
            self._ids = np.where(np.arange(target.vocab_size) < rows, np.arange(target.vocab_size), -1)
        else:
            try:
                alignment = align_vocabularies(
                    self._view,
                    target,
                    source_roles=special_roles(own),
                    target_roles=special_roles(AutoTokenizer.from_pretrained(tokenizer)),
                    source_rows=rows,
                )
            except AlignmentError:
                raise StageError(
                    f"of the target tokenizer and that of the donor in {directory} one lower-cases all text: name a "
                    "model that uses the target tokenizer under models.donor"
                ) from None
            self._ids = np.full(target.vocab_size, -1)
            copied = alignment.copied
            self._ids[copied] = alignment.pieces[alignment.offsets[:-1][copied]]
        self.share = float((self._ids >= 0).mean())
        if not self.share:
            raise StageError(
                f"the donor in {directory} has none of the target tokenizer's tokens: name a model that uses that "
                "tokenizer under models.donor"
            )

    def rows(self, role: Role) -> DonorRows | None:
        """The donor's rows for one role; for an output that it ties, those of its input. None where it has none."""
        tensor = self._tensors.get(role)
        if tensor is not None and tensor.tied_to is not None:
            tensor = self._tensors["input"]
        if tensor is None or tensor.stored_name is None:
            return None
        own = read_rows(tensor)
        untrained = undertrained(own, torch.from_numpy(unused_rows(self._view, len(own))))
        ids = torch.from_numpy(self._ids)
        exists = (ids >= 0) & (ids < len(own))
        safe = torch.where(exists, ids, 0)
        rows = own[: len(ids)] if torch.equal(safe, torch.arange(len(ids))) else own[safe]
        norms = torch.cat([block.float().norm(dim=1) for block in rows.split(1 << 14)])
        finite = norms.isfinite()
        usable = exists & finite & (norms > 0)
        return DonorRows(rows, usable, usable & untrained[safe], exists & ~finite)
