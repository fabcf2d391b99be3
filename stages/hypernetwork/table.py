"""All that a student's vocabulary tensors say of a token, as one row: input row, output row and output bias.

Legend: V source tokens, D width of the model, C columns of the table.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors import safe_open
from torch import Tensor

from alignment.vocab_tensors import Role, VocabTensorError, read_vocab_tensors
from stages.stage import StageError

_COLUMNS: tuple[Role, ...] = ("input", "output", "bias")


class TokenRows(NamedTuple):
    """Rows of M tokens: ``input`` and ``output`` [M, D], the same tensor in a tied model; ``bias`` [M] or None."""

    input: Tensor
    output: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class TableLayout:
    """What a row of the table consists of.

    Attributes:
        width: D.
        tied: whether input and output are one matrix, which is there once.
        bias: whether the last column is an output bias.
        dtype: of the input matrix, as safetensors calls it.
    """

    width: int
    tied: bool
    bias: bool
    dtype: str

    @property
    def columns(self) -> int:
        """C."""
        return self.width * (1 if self.tied else 2) + self.bias

    def split(self, rows: Tensor) -> TokenRows:
        """Input, output and bias of ``rows`` [M, C]."""
        first = rows[:, : self.width]
        second = first if self.tied else rows[:, self.width : 2 * self.width]
        return TokenRows(first, second, rows[:, -1] if self.bias else None)

    def facts(self, tokenizer_fingerprint: str) -> dict[str, Any]:
        """What a student must have in common with the one that a hypernetwork was trained for."""
        return {"tokenizer": tokenizer_fingerprint, **asdict(self)}


@dataclass(frozen=True)
class StudentTable:
    """The vocabulary tensors of a model directory; only headers are read until ``rows`` is called.

    Attributes:
        student: the directory.
        vocab_size: V, ids of its tokenizer; rows beyond them are padding and left out.
        tensors: names of the tensors that make the columns.
        layout: of a row.
    """

    student: Path
    vocab_size: int
    tensors: tuple[str, ...]
    layout: TableLayout

    @classmethod
    def of(cls, student: Path, vocab_size: int) -> Self:
        """The table of a model whose tokenizer has ``vocab_size`` ids.

        Raises:
            StageError: the vocabulary tensors cannot be told, have fewer rows than the tokenizer has ids, or include
                inputs of every layer.
        """
        try:
            found = read_vocab_tensors(student)
        except VocabTensorError as error:
            raise StageError(str(error)) from None
        if per_layer := [tensor.name for tensor in found.tensors if tensor.role == "per_layer_input"]:
            raise StageError(
                f"{student} reads tokens by {', '.join(per_layer)} too, which a hypernetwork does not predict; use "
                "another initializer, such as omp or piece_mean"
            )
        if found.matrix_rows < vocab_size:
            raise StageError(
                f"{student}: the tokenizer has ids up to {vocab_size - 1}, the model has only {found.matrix_rows} "
                "rows; use the tokenizer that the model was trained with"
            )
        whole = [tensor for tensor in found.tensors if found.matrix_rows in tensor.shape and tensor.tied_to is None]
        by_role = {tensor.role: tensor for tensor in whole}
        names = tuple(by_role[role].name for role in _COLUMNS if role in by_role)
        dtype = _stored(student, names[0]).get_dtype()
        layout = TableLayout(by_role["input"].shape[1], found.tied, "bias" in by_role, dtype)
        return cls(student, vocab_size, names, layout)

    def rows(self) -> Tensor:
        """[V, C] in the student's dtype."""
        parts = [_stored(self.student, name)[:] for name in self.tensors]
        # A bias may be stored as [1, V].
        columns = [part if part.shape[-1] == self.layout.width else part.reshape(-1, 1) for part in parts]
        return torch.cat([column[: self.vocab_size] for column in columns], dim=1)


def _stored(student: Path, name: str) -> Any:
    """A slice object of one stored tensor."""
    for path in sorted(student.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            if name in file.keys():  # noqa: SIM118 (not a dict)
                return file.get_slice(name)
    raise StageError(f"{student} holds no tensor {name}")
