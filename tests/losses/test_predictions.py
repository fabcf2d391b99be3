"""Next-token distributions from a head and from a few known tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from losses.predictions import LinearHead, TopKPredictions, check_log_probs, top_k_predictions


def make_head(rows: int = 7, dtype: torch.dtype = torch.float64) -> LinearHead:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(*s, generator=generator, dtype=torch.float64).to(dtype) for s in ((rows, 5), (14, 5)))
    bias = torch.randn(14, generator=generator, dtype=torch.float64).to(dtype)
    return LinearHead(hidden, weight, bias, softcap=4.0, scale=0.7, size=12)


def dense(head: LinearHead) -> Tensor:
    logits = 0.7 * (head.hidden.double() @ head.weight.double()[:12].T + head.bias.double()[:12])
    return (4 * torch.tanh(logits / 4)).log_softmax(-1)


def test_a_head_gives_the_log_probabilities_of_any_rows() -> None:
    head = make_head()
    torch.testing.assert_close(head.log_probs(slice(2, 5)), dense(head)[2:5])
    chosen = torch.tensor([6, 0, 0, 3])
    torch.testing.assert_close(head.at(chosen).log_probs(slice(None)), dense(head)[chosen])
    check_log_probs(head.log_probs(slice(None)), complete=True)


def test_half_precision_is_multiplied_in_float32_and_the_weight_cast_once() -> None:
    head = make_head(dtype=torch.bfloat16)
    found = head.log_probs(slice(None))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), dense(head), rtol=1e-5, atol=1e-5)
    _, weight = head.operands(slice(0, 1))
    _, again = head.at(torch.tensor([3])).operands(slice(0, 1))
    assert again.data_ptr() == weight.data_ptr()


def test_heads_that_share_a_cast_keep_their_own_weights() -> None:
    head = make_head(dtype=torch.bfloat16)
    other = replace(head, weight=2 * head.weight)
    for one in (head, other, head):
        torch.testing.assert_close(one.log_probs(slice(None)).double(), dense(one), rtol=1e-5, atol=1e-5)


def test_the_most_probable_tokens_and_the_mass_of_the_others() -> None:
    head = make_head()
    best = top_k_predictions(head, 4)
    order = dense(head).argsort(1, descending=True)
    assert best.ids.tolist() == order[:, :4].tolist()
    torch.testing.assert_close(best.logp, dense(head).gather(1, order[:, :4]))
    torch.testing.assert_close(best.tail_logp, dense(head).gather(1, order[:, 4:]).logsumexp(1))
    assert best.vocab_size == 12
    fewer = top_k_predictions(best, 2)
    torch.testing.assert_close(fewer.logp, best.logp[:, :2])


def test_all_tokens_leave_no_mass() -> None:
    tail = top_k_predictions(make_head(), 12).tail_logp
    assert tail.max() < -30


def test_top_tokens_of_no_rows() -> None:
    best = top_k_predictions(make_head(rows=0), 3)
    assert best.ids.shape == best.logp.shape == (0, 3)


@pytest.mark.parametrize("k", [0, 13])
def test_a_k_out_of_range_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=rf"k is {k}, .* take 1 to 12"):
        top_k_predictions(make_head(), k)


def test_more_tokens_than_a_truncated_teacher_knows_are_refused() -> None:
    with pytest.raises(ValueError, match="take 1 to 4"):
        top_k_predictions(top_k_predictions(make_head(), 4), 5)


@pytest.mark.parametrize(
    ("ids", "logp", "message"),
    [
        ([[0, 5]], [[-1.0, -2.0]], "outside its vocabulary of 5"),
        ([[1, 1]], [[-1.0, -2.0]], "occurs twice"),
        ([[0, 1]], [[-1.0, float("nan")]], "row 0 of the teacher's predictions is no distribution"),
        ([[0, 1], [0, 1]], [[-1.0, -2.0], [-0.1, -0.2]], "row 1 of the teacher's predictions is no distribution"),
        ([[0, 1]], [[0.5, -9.0]], "no distribution"),
        ([[0]], [[-1.0, -2.0]], "one shape"),
    ],
)
def test_what_is_no_distribution_is_refused(ids: list, logp: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TopKPredictions(torch.tensor(ids), torch.tensor(logp), 5)


def test_mass_that_is_missing_is_refused_where_all_of_it_must_be_there() -> None:
    half = torch.full((1, 2), 0.25).log()
    check_log_probs(half, complete=False)
    with pytest.raises(ValueError, match=r"add up to 0\.5"):
        check_log_probs(half, complete=True)
