"""What the models' attention looks at: which kernel computes it, and windows of one row that do not see each other.

transformers keeps packed windows apart by their positions, which start again at 0: full, sliding and chunked masks
alike. A model with layers that know nothing of positions (recurrences, convolutions, attention of its own) mixes them,
without a word; so every model that is to read packed rows has to prove first that it does not.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stages.model_loading import CONFIG_KEY
from stages.stage import StageError
from stages.training.data.batch import SideBatch

FLASH = "flash_attention_2"

_ROWS = ((9, 7, 4), (6, 14))
"""Lengths of the windows of the rows that models prove themselves on; more rows than one, as FlashAttention flattens
them, and windows longer than the kernels of usual convolutions."""
_TOLERANCES = {torch.float32: 1e-3}
_TOLERANCE = 0.1
"""Largest distance, relative to its norm, of a window's hidden states in a packed row from those alone. Another kernel
rounds otherwise (bf16 has 8 bits, and a deep model adds them up); wrong positions move them by about their norm."""


def check_attention(attention: str, device: torch.device) -> None:
    """Refuse a kernel that cannot run here, before anything is loaded.

    Raises:
        StageError: FlashAttention is not installed, or there is no GPU for it.
    """
    if attention != FLASH:
        return
    if device.type != "cuda":
        raise StageError(f"attention: {FLASH} needs a GPU, and there is none here; use attention: sdpa")
    if importlib.util.find_spec("flash_attn") is None:
        raise StageError(
            f"attention: {FLASH} needs the package flash-attn, which is not installed: `pip install flash-attn`, or "
            "use attention: sdpa"
        )


def use_attention(model: nn.Module, attention: str) -> str:
    """Make a model that was loaded without wishes use this attention.

    Returns:
        What it uses: ``eager`` in place of ``sdpa`` where its architecture has no other.

    Raises:
        StageError: it has no such attention, or it is not held in the type that FlashAttention computes in.
    """
    given = model.config._attn_implementation
    if attention == FLASH and model.dtype != torch.bfloat16:
        raise StageError(
            f"attention: {FLASH} computes in bf16, but {model.name_or_path} is held in {str(model.dtype)[6:]}; use "
            "attention: sdpa"
        )
    if attention in (given, "sdpa"):
        return given
    reason = ""
    try:
        model.set_attn_implementation(attention)
    except (ValueError, ImportError) as error:
        reason = f": {error}"
    if model.config._attn_implementation != attention:
        raise StageError(f"{model.name_or_path} has no {attention} attention; use attention: {given}{reason}")
    return attention


def attention_inputs(batch: SideBatch, attention: str) -> dict[str, Any]:
    """What a model's forward pass takes beside token ids so that every token sees its own window up to itself."""
    if not batch.packed:
        return {"attention_mask": batch.attention}
    # With a mask, even one of ones, transformers would not look for windows in the positions.
    inputs: dict[str, Any] = {"position_ids": batch.positions}
    if attention == FLASH:
        ends = window_ends(batch.positions)
        longest = int(ends.diff(prepend=ends.new_zeros(1)).max())
        ends = nn.functional.pad(ends, (1, 0)).to(torch.int32)
        inputs |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
    return inputs


def window_ends(positions: Tensor) -> Tensor:
    """Where each window ends in the rows [B, T] laid one after the other, padding counted to the window before it:
    int64, ascending."""
    flat = positions.flatten()
    starts = (flat == 0).nonzero().squeeze(1)
    return torch.cat([starts[1:], starts.new_tensor([len(flat)])])


def check_packing(model: nn.Module) -> None:
    """Let a model in evaluation mode prove on a few tokens that it keeps the windows of a packed row apart.

    Two proofs. The gradient of a window's hidden states in the embeddings of all other tokens is zero: exactly, in any
    dtype, because what a mask hides has the weight 0. And the hidden states are those of the window alone: its
    positions are its own.

    Raises:
        StageError: it does not.
    """
    if hasattr(model.config, CONFIG_KEY):
        raise _cannot_pack(model, "reads a token by the bytes before it, those of other windows too")
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        raise _cannot_pack(model, "takes no position_ids")
    vocabulary = model.get_input_embeddings().num_embeddings
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (len(_ROWS), sum(_ROWS[0])), generator=draw)
    batch = _side_batch(ids, _ROWS, model.device)
    hidden, embedded = _read_with_embeddings(model, batch)
    tolerance = _TOLERANCES.get(hidden.dtype, _TOLERANCE)
    ends = window_ends(batch.positions).tolist()
    for start, end in zip([0, *ends], ends, strict=False):
        own = torch.zeros(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        own.view(-1)[start:end] = True
        weight = torch.randn(hidden[own].shape, generator=draw).to(hidden)
        (gradient,) = torch.autograd.grad((hidden[own] * weight).sum(), embedded, retain_graph=True)
        if gradient[~own].any():
            raise _cannot_pack(model, "mixes the windows of a packed row")
        alone = _side_batch(batch.ids[own][None], [(end - start,)], model.device)
        with torch.no_grad():
            expected = _read(model, alone)[0]
        if torch.dist(hidden[own].detach().float(), expected.float()) > tolerance * expected.float().norm():
            raise _cannot_pack(model, "reads a window in a packed row otherwise than alone")


def _cannot_pack(model: nn.Module, reason: str) -> StageError:
    return StageError(f"{model.name_or_path} ({type(model).__name__}) {reason}; set packing: false")


def _side_batch(ids: Tensor, rows: Sequence[Sequence[int]], device: torch.device) -> SideBatch:
    """Packed rows without padding or anything to score."""
    ids = ids.to(device)
    positions = torch.cat([torch.arange(length) for row in rows for length in row]).view(ids.shape).to(device)
    unused = torch.full_like(ids, -1)
    return SideBatch(ids, torch.ones_like(ids), unused, unused, unused >= 0, unused, positions, packed=True)


def _read(model: nn.Module, batch: SideBatch) -> Tensor:
    inputs = attention_inputs(batch, model.config._attn_implementation)
    return model.base_model(input_ids=batch.ids, **inputs, use_cache=False).last_hidden_state


def _read_with_embeddings(model: nn.Module, batch: SideBatch) -> tuple[Tensor, Tensor]:
    """Hidden states [B, T, D], and the embeddings that they come from."""
    embedded: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[0]

    handle = model.get_input_embeddings().register_forward_hook(keep)
    try:
        with torch.enable_grad():
            return _read(model, batch), embedded[0]
    finally:
        handle.remove()
