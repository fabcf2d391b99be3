from __future__ import annotations

import torch
from torch import Tensor

from losses.predictions import LinearHead
from losses.ranked_probabilities import log_probs_at, most_probable_tokens, read_log_probs

SEQUENCE = torch.tensor([0, 0, 2, 2, 2])


def head_with(*, dtype: torch.dtype = torch.float64, **options) -> LinearHead:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((5, 4), (9, 4), (9,)))
    return LinearHead(hidden.to(dtype), weight.to(dtype), bias.to(dtype), **options)


def test_tokens_are_ranked_by_their_probability_over_a_sequence():
    head = head_with(size=8)
    probs = (head.hidden @ head.weight[:8].T + head.bias[:8]).softmax(-1)
    found = most_probable_tokens(head, SEQUENCE, 3, 4)
    assert found.shape == (3, 4)
    for sequence, rows in ((0, slice(0, 2)), (2, slice(2, 5))):
        assert found[sequence].tolist() == probs[rows].sum(0).topk(4).indices.tolist()


def test_of_equally_probable_tokens_the_smaller_id_comes_first():
    head = LinearHead(torch.zeros(2, 1), torch.ones(40, 1))
    assert most_probable_tokens(head, torch.tensor([0, 0]), 1, 5).tolist() == [[0, 1, 2, 3, 4]]


def test_values_and_gradients_are_those_of_a_dense_softmax():
    head = head_with(softcap=3.0, scale=0.5, size=8)
    tokens = torch.tensor([[0, 7], [3, 1], [2, 5], [6, 6], [4, 0]])
    inputs = [tensor.requires_grad_() for tensor in (head.hidden, head.weight, head.bias)]

    def dense(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        logits = 3 * torch.tanh(0.5 * (hidden @ weight[:8].T + bias[:8]) / 3)
        return logits.log_softmax(-1).gather(1, tokens)

    found, expected = log_probs_at(head, tokens), dense(*inputs)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(read_log_probs(head, tokens), expected.detach())
    weights = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = [torch.autograd.grad((values * weights).sum(), inputs) for values in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_half_precision_gradients_have_their_tensors_dtype_and_a_frozen_weight_gets_none():
    head = head_with(dtype=torch.bfloat16)
    head.hidden.requires_grad_()
    values = log_probs_at(head, torch.zeros(5, 2, dtype=torch.int64))
    assert values.dtype == torch.float32
    values.sum().backward()
    assert head.hidden.grad.dtype == torch.bfloat16
    assert head.weight.grad is None


def test_more_rows_than_fit_one_block_are_all_read():
    generator = torch.Generator().manual_seed(0)
    head = LinearHead(torch.randn(40, 2, generator=generator), torch.randn(500_000, 2, generator=generator))
    dense = head.log_probs(slice(None))
    found = most_probable_tokens(head, torch.arange(40) // 39, 2, 3)
    assert found[0].tolist() == dense[:39].exp().double().sum(0).topk(3).indices.tolist()
    assert found[1].tolist() == dense[39].topk(3).indices.tolist()
    tokens = torch.arange(40)[:, None] * 1000
    torch.testing.assert_close(read_log_probs(head, tokens), dense.gather(1, tokens))
