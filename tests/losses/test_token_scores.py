from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from losses import fused_head
from losses.scores import TokenScores, token_scores

CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


def materialised(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    boundary_mask: Tensor,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    vocab_size: int | None = None,
) -> TokenScores:
    """The definition, one full log-softmax and one log-sum-exp, for autograd to differentiate."""
    logits = hidden @ weight.T
    if bias is not None:
        logits = logits + bias
    logits = scale * logits
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    padding = torch.arange(len(weight)) >= (len(weight) if vocab_size is None else vocab_size)
    logits = logits.masked_fill(padding, -torch.inf)
    logp = logits.log_softmax(-1)
    scored = labels != -100
    label_logp = logp[torch.arange(len(labels)), labels.clamp(min=0)]
    boundary = logp.masked_fill(~boundary_mask, -torch.inf).logsumexp(-1)
    return TokenScores(label_logp * scored, boundary)


def head(R: int, D: int, V: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Random hidden states, weight, labels with two unscored rows, and boundary mask."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(R, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    labels = torch.randint(0, V - 3, (R,), generator=generator)
    labels[1] = labels[-1] = -100
    return hidden, weight, labels, torch.rand(V, generator=generator) < 0.4


def gradients(scores: TokenScores, wanted: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of a fixed random combination of both scores over the wanted boundary rows; keeps the graph."""
    generator = torch.Generator().manual_seed(7)
    coefficients = torch.randn(2, len(wanted), generator=generator, dtype=torch.float64).to(scores.label_logp)
    total = (coefficients[0] * scores.label_logp).sum()
    total = total + (coefficients[1] * scores.boundary_logp)[wanted].sum()
    return torch.autograd.grad(total, inputs, retain_graph=True)


@pytest.mark.parametrize(
    ("softcap", "scale", "with_bias", "vocab_size", "tile"),
    list(itertools.product([None, 2.0], [1.0, 0.3], [False, True], [None, 26], [(1, 1), (3, 7), (None, None)])),
)
def test_values_and_gradients_equal_the_materialised_head(
    softcap: float | None, scale: float, with_bias: bool, vocab_size: int | None, tile: tuple[int | None, int | None]
) -> None:
    hidden, weight, labels, mask = head(R=11, D=5, V=29)
    bias = torch.linspace(-1, 1, 29, dtype=torch.float64).requires_grad_() if with_bias else None
    wanted = torch.arange(11) % 3 == 1  # includes the unscored row 1
    options = {"bias": bias, "softcap": softcap, "scale": scale, "vocab_size": vocab_size}
    inputs = [hidden, weight] if bias is None else [hidden, weight, bias]

    expected = materialised(hidden, weight, labels, mask, **options)
    chunks = dict(zip(("chunk_rows", "chunk_columns"), tile, strict=True))
    actual = token_scores(hidden, weight, labels, boundary_mask=mask, boundary_rows=wanted, **chunks, **options)

    torch.testing.assert_close(actual.label_logp, expected.label_logp, rtol=0, atol=1e-12)
    torch.testing.assert_close(actual.boundary_logp[wanted], expected.boundary_logp[wanted], rtol=0, atol=1e-12)
    assert actual.boundary_logp[~wanted].isnan().all()
    exact = gradients(expected, wanted, inputs)
    torch.testing.assert_close(gradients(actual, wanted, inputs), exact, rtol=0, atol=1e-12)
    for tensor, gradient in zip(inputs, exact, strict=True):  # each is also had alone
        torch.testing.assert_close(gradients(actual, wanted, [tensor]), (gradient,), rtol=0, atol=1e-12)


def test_gradcheck_against_finite_differences() -> None:
    hidden, weight, labels, mask = head(R=5, D=3, V=8)
    bias = torch.zeros(8, dtype=torch.float64, requires_grad=True)

    def scores(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        found = token_scores(
            hidden, weight, labels, boundary_mask=mask, bias=bias, softcap=3.0, scale=1.5, chunk_rows=2
        )
        return found.label_logp, found.boundary_logp[labels != -100]

    assert torch.autograd.gradcheck(scores, (hidden, weight, bias))


def test_without_a_mask_only_labels_are_scored() -> None:
    hidden, weight, labels, mask = head(R=6, D=4, V=12)
    scores = token_scores(hidden, weight, labels, vocab_size=10, chunk_rows=4)
    expected = materialised(hidden, weight, labels, mask, vocab_size=10)

    assert scores.boundary_logp is None
    torch.testing.assert_close(scores.label_logp, expected.label_logp)
    assert scores.label_logp[labels == -100].eq(0).all()
    torch.testing.assert_close(
        torch.autograd.grad(scores.label_logp.sum(), [hidden, weight]),
        torch.autograd.grad(expected.label_logp.sum(), [hidden, weight]),
    )


def test_hand_worked_probabilities() -> None:
    probabilities = torch.tensor([[0.05, 0.5, 0.45], [0.1, 0.25, 0.65]])
    scores = token_scores(
        probabilities.log(), torch.eye(3), torch.tensor([1, 2]), boundary_mask=torch.tensor([True, False, True])
    )
    torch.testing.assert_close(scores.label_logp.exp(), torch.tensor([0.5, 0.65]))
    torch.testing.assert_close(scores.boundary_logp.exp(), torch.tensor([0.5, 0.75]))


# Inputs in half precision are exact numbers, so values are good to float32; gradients come back rounded.
DTYPES = [
    (torch.float32, 2e-5, 1e-5),
    (torch.bfloat16, 2e-5, 1e-2),
    (torch.float16, 2e-5, 2e-3),
]


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize(("dtype", "value_tolerance", "gradient_tolerance"), DTYPES)
def test_vocabulary_arithmetic_is_float32_for_every_dtype(
    device: str, dtype: torch.dtype, value_tolerance: float, gradient_tolerance: float
) -> None:
    hidden, weight, labels, mask = head(R=37, D=64, V=301, dtype=dtype)
    wide_hidden, wide_weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    wanted = labels != -100
    expected = materialised(wide_hidden, wide_weight, labels, mask)
    on_device = [x.detach().to(device).requires_grad_() for x in (hidden, weight)]
    actual = token_scores(*on_device, labels.to(device), boundary_mask=mask.to(device), chunk_rows=10, chunk_columns=64)

    assert actual.label_logp.dtype == torch.float32
    torch.testing.assert_close(
        actual.label_logp.cpu().double(), expected.label_logp, rtol=value_tolerance, atol=value_tolerance
    )
    torch.testing.assert_close(
        actual.boundary_logp.cpu().double()[wanted],
        expected.boundary_logp[wanted],
        rtol=value_tolerance,
        atol=value_tolerance,
    )
    found = torch.autograd.grad(actual.label_logp.sum() + actual.boundary_logp[wanted.to(device)].sum(), on_device)
    reference = torch.autograd.grad(
        expected.label_logp.sum() + expected.boundary_logp[wanted].sum(), [wide_hidden, wide_weight]
    )
    for gradient, exact in zip(found, reference, strict=True):
        assert gradient.dtype == dtype
        error = (gradient.cpu().double() - exact).abs().max() / exact.abs().max()
        assert error < gradient_tolerance


@pytest.mark.parametrize("chunk_columns", [1, None])
def test_a_boundary_mass_below_the_smallest_float_keeps_its_logarithm_and_gradient(chunk_columns: int | None) -> None:
    hidden = torch.tensor([[200.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [0.0], [0.5]], requires_grad=True)
    mask = torch.tensor([False, True, False])
    scores = token_scores(hidden, weight, torch.tensor([1]), boundary_mask=mask, chunk_columns=chunk_columns)
    assert scores.boundary_logp.item() == pytest.approx(-200, rel=1e-6)
    assert scores.label_logp.item() == pytest.approx(-200, rel=1e-6)
    # log p = h w_1 - log sum exp(h w), and all mass is on token 0.
    in_hidden, in_weight = torch.autograd.grad(scores.boundary_logp, [hidden, weight], retain_graph=True)
    torch.testing.assert_close(in_hidden, torch.tensor([[-1.0]]))
    torch.testing.assert_close(in_weight, torch.tensor([[-200.0], [200.0], [0.0]]))
    torch.testing.assert_close(torch.autograd.grad(scores.label_logp, hidden)[0], in_hidden)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_logits_far_apart_in_any_order_of_the_tiles(order: list[int]) -> None:
    # The running maximum jumps by more than float32's range of exponents, upwards or not at all.
    logits = torch.tensor([-1e4, 0.0, 1e4])[order]
    hidden = torch.ones(1, 1, requires_grad=True)
    scores = token_scores(
        hidden, logits[:, None], torch.tensor([0]), boundary_mask=logits < 1, chunk_rows=1, chunk_columns=1
    )
    expected = materialised(
        torch.ones(1, 1).double(), logits[:, None].double(), torch.tensor([0]), boundary_mask=logits < 1
    )
    torch.testing.assert_close(scores.label_logp.double(), expected.label_logp)
    torch.testing.assert_close(scores.boundary_logp.double(), expected.boundary_logp)
    (gradient,) = torch.autograd.grad(scores.boundary_logp, hidden)
    torch.testing.assert_close(gradient, torch.tensor([[-1e4]]))


def test_no_score_is_above_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = 30 * torch.randn(200, 8, generator=generator)
    weight = torch.randn(50, 8, generator=generator)
    likeliest = (hidden @ weight.T).argmax(1)
    scores = token_scores(hidden, weight, likeliest, boundary_mask=torch.ones(50, dtype=torch.bool))
    assert scores.label_logp.max() <= 0
    assert scores.boundary_logp.abs().max() == 0  # all tokens begin a pre-token: certain


class LargestTensor(TorchDispatchMode):
    """Records the largest tensor that any operation makes, and the rows and multiplications of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0
        self.product_rows: list[int] = []
        self.product_size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numel = max(self.numel, result.numel())
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_):
            self.product_rows.append(args[-2].shape[0])
            self.product_size += args[-2].shape[0] * args[-1].numel()
        return result


def test_no_tensor_of_rows_times_vocabulary_is_made_or_kept() -> None:
    R, D, V = 120, 4, 500
    hidden, weight, labels, mask = head(R, D, V, dtype=torch.float32)
    saved: list[int] = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x),
        LargestTensor() as largest,
    ):
        scores = token_scores(hidden, weight, labels, boundary_mask=mask, softcap=5.0, chunk_rows=16, chunk_columns=100)
        (scores.label_logp.sum() + scores.boundary_logp.nansum()).backward()

    assert hidden.grad is not None
    assert largest.numel == V * D  # the weight and its gradient, and nothing above them
    assert max(saved) == V * D


def test_rows_without_any_use_cost_no_product_and_touch_nothing() -> None:
    hidden, weight, labels, mask = head(R=9, D=4, V=20)
    labels[:] = -100
    labels[2] = 3
    boundary_rows = torch.zeros(9, dtype=torch.bool)
    boundary_rows[5] = True
    with torch.no_grad():
        hidden[[0, 1, 3, 4, 6, 7, 8]] = torch.nan
    with LargestTensor() as largest:
        scores = token_scores(hidden, weight, labels, boundary_mask=mask, boundary_rows=boundary_rows)
        scores.label_logp.sum().backward()

    assert largest.product_rows[0] == 2
    assert scores.label_logp.isfinite().all()
    assert scores.boundary_logp.isfinite().nonzero().flatten().tolist() == [5]
    assert weight.grad.isfinite().all()
    assert hidden.grad.abs().sum(1).nonzero().flatten().tolist() == [2]


def test_a_batch_with_nothing_to_score_has_zero_gradient() -> None:
    hidden, weight, labels, mask = head(R=4, D=3, V=7)
    scores = token_scores(hidden, weight, torch.full_like(labels, -100), boundary_mask=mask)
    scores.label_logp.sum().backward()
    assert scores.label_logp.eq(0).all()
    assert hidden.grad.eq(0).all()
    assert weight.grad.eq(0).all()


@pytest.mark.parametrize("trained", [("hidden", "weight"), ("hidden",), ("weight",), ()])
def test_what_needs_no_gradient_costs_nothing(trained: tuple[str, ...]) -> None:
    hidden, weight, labels, mask = head(R=6, D=4, V=20)
    labels = labels.clamp(min=0)
    exact = materialised(hidden, weight, labels, mask).label_logp.sum()
    inputs = {"hidden": hidden, "weight": weight}
    wanted = [inputs[name] for name in trained]
    expected = torch.autograd.grad(exact, wanted) if wanted else ()
    for name, tensor in inputs.items():
        tensor.requires_grad_(name in trained)

    one_pass = 6 * 4 * 20
    with LargestTensor() as forward:
        total = token_scores(hidden, weight, labels, boundary_mask=mask).label_logp.sum()
    assert forward.product_size == one_pass * (2 if "hidden" in trained else 1)
    assert total.requires_grad == bool(trained)
    if trained:
        with LargestTensor() as backward:
            found = torch.autograd.grad(total, wanted)
        assert backward.product_size == one_pass * (2 if "weight" in trained else 0)
        torch.testing.assert_close(found, expected)


def test_each_loss_has_its_gradient_in_the_hidden_states_without_a_pass_over_the_vocabulary() -> None:
    hidden, weight, labels, mask = head(R=6, D=4, V=20)
    scores = token_scores(hidden, weight, labels, boundary_mask=mask)
    losses = [scores.label_logp.sum(), scores.boundary_logp.nansum(), scores.label_logp[0] * 3]
    with LargestTensor() as separate:
        found = [torch.autograd.grad(loss, hidden, retain_graph=True)[0] for loss in losses]
    assert separate.product_rows == []
    exact = materialised(hidden, weight, labels, mask)
    expected = [exact.label_logp.sum(), exact.boundary_logp[labels >= 0].sum(), exact.label_logp[0] * 3]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, torch.autograd.grad(other, hidden, retain_graph=True)[0])


def test_a_weight_that_is_an_expression_passes_its_gradient_on() -> None:
    """A low-rank adapter on a frozen head: base + B @ A."""
    hidden, base, labels, mask = head(R=6, D=4, V=20)
    base.requires_grad_(False)
    generator = torch.Generator().manual_seed(5)
    down, up = (
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in ((2, 4), (20, 2))
    )
    found = token_scores(hidden, base + up @ down, labels, boundary_mask=mask, vocab_size=18)
    expected = materialised(hidden, base + up @ down, labels, mask, vocab_size=18)
    inputs = [hidden, down, up]
    torch.testing.assert_close(
        gradients(found, labels >= 0, inputs), gradients(expected, labels >= 0, inputs), rtol=0, atol=1e-12
    )


def test_a_tied_weight_adds_both_gradients() -> None:
    _, weight, labels, mask = head(R=6, D=4, V=20)
    ids = torch.tensor([3, 1, 4, 1, 5, 9])
    found = token_scores(weight[ids].tanh(), weight, labels, boundary_mask=mask)
    expected = materialised(weight[ids].tanh(), weight, labels, mask)
    torch.testing.assert_close(gradients(found, labels >= 0, [weight]), gradients(expected, labels >= 0, [weight]))


def test_without_gradients_nothing_is_saved() -> None:
    hidden, weight, labels, mask = head(R=6, D=4, V=20)
    with torch.no_grad():
        scores = token_scores(hidden, weight, labels, boundary_mask=mask)
    assert scores.label_logp.grad_fn is None
    assert scores.boundary_logp.grad_fn is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0, 9, 0])}, "label 9 at row 1 is no id of a vocabulary of 9 tokens"),
        ({"labels": torch.tensor([0, -1, 0])}, "label -1 at row 1"),
        ({"labels": torch.tensor([0, 1])}, r"labels have shape \(2,\); expected \[3\]"),
        ({"boundary_mask": torch.zeros(10, dtype=torch.bool)}, "marks no token"),
        ({"boundary_mask": torch.ones(5, dtype=torch.bool)}, "one entry for each of the 10 weight rows"),
        ({"boundary_rows": torch.ones(3, dtype=torch.bool)}, "without a boundary_mask"),
        ({"vocab_size": 11}, "the vocabulary has 11 tokens, but the head's weight 10 rows"),
        ({"bias": torch.zeros(9)}, r"bias has shape \(9,\); expected \[10\]"),
        ({"softcap": 0.0}, "must be positive"),
        ({"softcap": float("nan")}, "must be positive"),
        ({"scale": 0.0}, "must be positive and finite"),
        ({"chunk_rows": 0}, "chunk_rows is 0; it must be at least 1"),
        ({"chunk_columns": 0}, "chunk_columns is 0; it must be at least 1"),
        ({"hidden": torch.zeros(3, 5)}, "with one D"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change: dict[str, object], message: str) -> None:
    arguments = {
        "hidden": torch.zeros(3, 4),
        "weight": torch.zeros(10, 4),
        "labels": torch.tensor([0, 1, 2]),
        "vocab_size": 9,
    }
    with pytest.raises(ValueError, match=message):
        token_scores(**(arguments | change))


def test_the_compiled_arithmetic_of_accelerators_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, labels, mask = head(R=40, D=16, V=301, dtype=torch.float32)
    wanted = labels >= 0
    options = {"boundary_mask": mask, "softcap": 5.0, "chunk_rows": 16, "chunk_columns": 64}
    plain = token_scores(hidden, weight, labels, **options)
    plain_gradients = gradients(plain, wanted, [hidden, weight])
    compile_options = {"dynamic": True, "fullgraph": True, "backend": "aot_eager"}  # traced, without a C++ compiler
    monkeypatch.setattr(fused_head, "_arithmetic", lambda function, hidden: torch.compile(function, **compile_options))
    compiled = token_scores(hidden, weight, labels, **options)
    torch.testing.assert_close(compiled.label_logp, plain.label_logp)
    torch.testing.assert_close(compiled.boundary_logp[wanted], plain.boundary_logp[wanted])
    torch.testing.assert_close(gradients(compiled, wanted, [hidden, weight]), plain_gradients, rtol=1e-5, atol=1e-5)
