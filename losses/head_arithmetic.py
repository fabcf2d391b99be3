"""What everything that reads an output head shares: matrix products, scale, bias and soft cap.

Products add up in float32 (float64 for float64), whatever the dtype of their operands. Half-precision operands stay as
they are only where their product can be had in float32, on accelerators; the CPU's matmul would round it to half
precision, so there they are cast up first.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# What the tensors of one block of whole rows may occupy together.
_CPU_BLOCK_BYTES = 256 * 2**20
_ACCELERATOR_BLOCK_BYTES = 2 * 2**30

_HAS_MIXED_MATMUL = "dtype" in torch.ops.aten.mm.overloads()  # PyTorch 2.8


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of all arithmetic over the vocabulary: float32, or float64 for float64 hidden states."""
    return torch.promote_types(dtype, torch.float32)


def operand_dtype(hidden: Tensor) -> torch.dtype:
    """Dtype that both operands of a product with ``hidden`` must have."""
    if _HAS_MIXED_MATMUL and hidden.is_cuda and hidden.dtype in (torch.bfloat16, torch.float16):
        return hidden.dtype
    return accumulation_dtype(hidden.dtype)


def matmul(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right`` of two matrices of ``operand_dtype``, in their accumulation dtype."""
    dtype = accumulation_dtype(left.dtype)
    return torch.mm(left, right) if left.dtype == dtype else torch.mm(left, right, out_dtype=dtype)


def add_matmul_(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Add ``left @ right`` to ``total``, which has the accumulation dtype."""
    return total.addmm_(left, right) if left.dtype == total.dtype else total.add_(matmul(left, right))


def finish_logits(products: Tensor, bias: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    """``softcap * tanh(scale * (products + bias) / softcap)``."""
    logits = products if bias is None else products + bias
    if scale != 1.0:
        logits = logits * scale
    return logits if softcap is None else softcap * (logits / softcap).tanh()


def cap_slope(logits: Tensor, softcap: float) -> Tensor:
    """Derivative of the soft cap, from its value."""
    return 1 - (logits / softcap).square()


def row_blocks(num_rows: int, row_bytes: int, device: torch.device) -> Iterator[slice]:
    """All rows, in blocks that fit the memory budget at the top of this module; one empty block if there are none.

    So that what a loss reports beside its value has the same names on a process without any rows.
    """
    budget = _CPU_BLOCK_BYTES if device.type == "cpu" else _ACCELERATOR_BLOCK_BYTES
    size = max(1, budget // row_bytes)
    return (slice(start, start + size) for start in range(0, max(num_rows, 1), size))
