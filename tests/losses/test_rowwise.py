"""Functions of whole rows of logits, against autograd on the materialised logits."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from losses.output import ratio
from losses.predictions import LinearHead
from losses.rowwise import rowwise_loss, rowwise_values

R, D, V, ROWS = 11, 5, 17, 20


def make_head(seed: int, *, softcap: float | None = None, scale: float = 1.0, bias: bool = True) -> LinearHead:
    """A random float64 head with three rows of padding; everything in it wants a gradient."""
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, shift = (
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((R, D), (ROWS, D), (ROWS,))
    )
    return LinearHead(hidden, weight, shift if bias else None, softcap, scale, V)


def dense(head: LinearHead) -> Tensor:
    """All logits, with autograd."""
    logits = head.hidden @ head.weight.T
    if head.bias is not None:
        logits = logits + head.bias
    logits = head.scale * logits[:, :V]
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def tensors(*heads: LinearHead) -> list[Tensor]:
    return [x for head in heads for x in (head.hidden, head.weight, head.bias) if x is not None]


def row_losses(logits: Sequence[Tensor], factor: Tensor) -> Tensor:
    """Something with a gradient in both heads and in a factor of each row."""
    p, q = (z.log_softmax(-1) for z in logits)
    return factor * (p.exp() * (p - q)).sum(-1)


@pytest.mark.parametrize(
    ("softcap", "scale", "bias", "block_rows"),
    list(itertools.product([None, 2.0], [1.0, 0.4], [False, True], [1, 4, None])),
)
def test_total_and_gradients_equal_the_dense_ones(
    softcap: float | None, scale: float, bias: bool, block_rows: int | None
) -> None:
    heads = [make_head(0, softcap=softcap, scale=scale, bias=bias), make_head(1)]
    factor = torch.linspace(1, 2, R, dtype=torch.float64).requires_grad_()

    def losses_of(rows: slice, logits: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        losses = row_losses(logits, inputs[0])
        return losses, {"mean": ratio(losses.sum(), torch.tensor(len(losses)))}

    found = rowwise_loss(losses_of, heads, [factor], block_rows=block_rows)
    expected = row_losses([dense(head) for head in heads], factor).sum()
    torch.testing.assert_close(found.total, expected)
    torch.testing.assert_close(found.metrics["mean"], ratio(expected, torch.tensor(R)))
    inputs = [*tensors(*heads), factor]
    exact = torch.autograd.grad(3 * expected, inputs)
    torch.testing.assert_close(torch.autograd.grad(3 * found.total, inputs, retain_graph=True), exact)
    for tensor, gradient in zip(inputs, exact, strict=True):  # each is also had alone
        torch.testing.assert_close(torch.autograd.grad(3 * found.total, tensor, retain_graph=True)[0], gradient)
    assert exact[1][V:].abs().max() == 0


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_what_is_frozen_gets_no_gradient(frozen: str) -> None:
    head = make_head(0)
    getattr(head, frozen).requires_grad_(False)
    found = rowwise_loss(lambda rows, logits, inputs: (logits[0].square().sum(-1), {}), [head])
    wanted = [x for x in tensors(head) if x.requires_grad]
    expected = torch.autograd.grad(dense(head).square().sum(), wanted)
    torch.testing.assert_close(torch.autograd.grad(found.total, wanted), expected)


def test_without_gradients_there_is_no_graph() -> None:
    with torch.no_grad():
        found = rowwise_loss(lambda rows, logits, inputs: (logits[0].square().sum(-1), {}), [make_head(0)])
        values = rowwise_values(lambda rows, logits: logits[0][:, :2], [make_head(0)])
    assert not found.total.requires_grad
    assert not values.requires_grad


def test_no_rows_are_zero_with_zero_gradient() -> None:
    head = make_head(0)
    found = rowwise_loss(
        lambda rows, logits, inputs: (logits[0].sum(-1), {}), [head.at(torch.empty(0, dtype=torch.int64))]
    )
    assert found.total == 0
    for gradient in torch.autograd.grad(found.total, tensors(head)):
        assert gradient.abs().max() == 0


@pytest.mark.parametrize("block_rows", [1, 4, None])
def test_values_of_every_row_and_their_gradients_equal_the_dense_ones(block_rows: int | None) -> None:
    heads = [make_head(0, softcap=2.0, scale=0.4), make_head(1)]

    def values(logits: Sequence[Tensor]) -> Tensor:
        p, q = (z.log_softmax(-1) for z in logits)
        return torch.stack([p.exp().mul(q).sum(-1), p[:, 3], q.logsumexp(-1)], dim=1)

    found = rowwise_values(lambda rows, logits: values(logits), heads, block_rows=block_rows)
    expected = values([dense(head) for head in heads])
    torch.testing.assert_close(found, expected)
    coefficients = torch.randn(R, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad((coefficients * found).sum(), tensors(*heads)),
        torch.autograd.grad((coefficients * expected).sum(), tensors(*heads)),
    )


def test_values_of_no_rows_have_their_width() -> None:
    head = make_head(0).at(torch.empty(0, dtype=torch.int64))
    assert rowwise_values(lambda rows, logits: logits[0][:, :3], [head]).shape == (0, 3)


def test_bfloat16_operands_are_summed_in_float32() -> None:
    exact = make_head(0)
    half = LinearHead(*(x.detach().bfloat16().requires_grad_() for x in tensors(exact)), size=V)
    wide = LinearHead(*(x.detach().double().requires_grad_() for x in tensors(half)), size=V)

    def losses_of(rows: slice, logits: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return logits[0].logsumexp(-1), {}

    found, expected = (rowwise_loss(losses_of, [head]).total for head in (half, wide))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    for gradient, reference in zip(
        torch.autograd.grad(found, tensors(half)), torch.autograd.grad(expected, tensors(wide)), strict=True
    ):
        assert gradient.dtype == torch.bfloat16
        assert (gradient.double() - reference).abs().max() <= 2**-8 * reference.abs().max()


def test_heads_of_different_lengths_are_refused() -> None:
    short = make_head(1).at(torch.arange(3))
    with pytest.raises(ValueError, match=r"one number of rows, got \[11, 3\]"):
        rowwise_loss(lambda rows, logits, inputs: (logits[0].sum(-1), {}), [make_head(0), short])
    with pytest.raises(ValueError, match=r"one number of rows, got \[11, 3\]"):
        rowwise_values(lambda rows, logits: logits[0], [make_head(0), short])


def test_a_loss_that_is_not_one_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(\); expected \[11\], one a row"):
        rowwise_loss(lambda rows, logits, inputs: (logits[0].sum(), {}), [make_head(0)])
