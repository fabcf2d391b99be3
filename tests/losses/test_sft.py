from __future__ import annotations

import pytest
import torch

from losses.chunks import shift_labels, shift_scores
from losses.scores import token_scores
from losses.sft import cross_entropy_loss


def test_equals_the_cross_entropy_of_the_materialised_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    B, T, D, V = 2, 6, 4, 13
    hidden = torch.randn(B, T, D, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64).requires_grad_()
    ids = torch.randint(0, V, (B, T), generator=generator)
    scored = torch.rand(B, T, generator=generator) < 0.7
    scored[:, 0] = False

    scores = token_scores(hidden.flatten(0, 1), weight, shift_labels(ids, scored).flatten())
    loss = cross_entropy_loss(shift_scores(scores.label_logp.view(B, T)), scored)
    labels = ids.masked_fill(~scored, -100)[:, 1:]
    expected = torch.nn.functional.cross_entropy(
        (hidden @ weight.T)[:, :-1].flatten(0, 1), labels.flatten(), reduction="sum"
    )

    assert loss.count == scored.sum()
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss.total, [hidden, weight]), torch.autograd.grad(expected, [hidden, weight])
    )


def test_tokens_that_do_not_count_may_hold_anything() -> None:
    logp = torch.tensor([-1.0, torch.nan, -2.0], requires_grad=True)
    loss = cross_entropy_loss(logp, torch.tensor([True, False, True]))
    loss.total.backward()
    assert loss.total.item() == pytest.approx(3.0)
    assert logp.grad.tolist() == [-1, 0, -1]
