from __future__ import annotations

import pytest
import torch

from losses.balance import gradmag_weights


def test_worked_numbers() -> None:
    gradients = torch.tensor([[3.0, 4.0], [0.0, 0.5]], dtype=torch.float64)
    squared_norms = gradients.square().sum(1)
    assert gradmag_weights(squared_norms, preserve_magnitude=False).tolist() == pytest.approx([0.2, 2.0])
    weights = gradmag_weights(squared_norms)
    assert weights.tolist() == pytest.approx([0.0909, 0.9091], abs=5e-5)
    assert (weights @ gradients).tolist() == pytest.approx([0.27273, 0.81818], abs=5e-6)


def test_weighted_gradients_have_equal_norms_whatever_their_scale() -> None:
    norms = torch.tensor([1e-3, 1.0, 700.0])
    weights = gradmag_weights(norms.square())
    pulls = weights * norms
    assert weights.sum().item() == pytest.approx(1)
    assert pulls.tolist() == pytest.approx([pulls[0].item()] * 3, rel=1e-4)


def test_a_loss_without_gradient_does_not_silence_the_others() -> None:
    assert gradmag_weights(torch.tensor([0.0, 4.0])).tolist() == pytest.approx([0, 1])
    assert gradmag_weights(torch.zeros(2)).tolist() == [0, 0]
