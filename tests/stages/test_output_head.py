"""The output heads of real model classes, against their own logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from stages.output_head import OutputHead, output_matrix
from stages.stage import StageError

VOCABULARY, ROWS = 40, 48
SIZES = {
    "vocab_size": ROWS,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "initializer_range": 1.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT_J = {"n_embd": 16, "n_layer": 1, "n_head": 2, "rotary_dim": 4}
HEADS = {
    "plain": ("llama", {}, {}),
    "tied": ("llama", {"tie_word_embeddings": True}, {}),
    "with a bias": ("gptj", GPT_J, {}),
    "soft cap": ("gemma2", {"final_logit_softcapping": 3.0, "head_dim": 8}, {"softcap": 3.0}),
    "factor": ("cohere", {"logit_scale": 0.25}, {"scale": 0.25}),
    "divisor": ("granite", {"logits_scaling": 8.0}, {"scale": 0.125}),
    "factor named like the divisor": ("hyperclovax", {"logits_scaling": 8.0}, {"scale": 8.0}),
}


def make(kind: str, options: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(SIZES | options))
    model = AutoModelForCausalLM.from_config(config).eval()
    layer = model.get_output_embeddings()
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    return model


@pytest.mark.parametrize("name", HEADS)
def test_our_logits_are_the_models_own(name: str) -> None:
    kind, options, expected = HEADS[name]
    model = make(kind, options)
    head = OutputHead.of(model, VOCABULARY)
    assert (head.softcap, head.scale) == (expected.get("softcap"), expected.get("scale", 1.0))
    ids = torch.tensor([[5, 9, 2, 39]])
    head.check(model, ids)
    with torch.no_grad():
        states = model.base_model(input_ids=ids).last_hidden_state[0]
        theirs = model(input_ids=ids).logits[0, :, :VOCABULARY]
    ours = head.on(states, *output_matrix(model)).logits(slice(None))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_model_that_does_more_is_refused() -> None:
    model = make("llama", {})
    model.config.logit_scale = 0.5  # which Llama does not apply
    with pytest.raises(StageError, match=r"does more than multiply hidden states by a matrix.*differ"):
        OutputHead.of(model, VOCABULARY).check(model, torch.tensor([[5, 9]]))


def test_weights_that_are_not_finite_are_refused() -> None:
    model = make("llama", {})
    model.lm_head.weight.data[3] = float("nan")
    with pytest.raises(StageError, match="not finite"):
        OutputHead.of(model, VOCABULARY).check(model, torch.tensor([[5, 9]]))


def test_more_ids_than_rows_are_refused() -> None:
    with pytest.raises(StageError, match="ids up to 48, the model has only 48 output rows"):
        OutputHead.of(make("llama", {}), ROWS + 1)


class Adapted(nn.Module):
    """A linear layer with a low-rank term that its weight does not show."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        self.down, self.up = nn.Linear(16, 2, bias=False), nn.Linear(2, ROWS, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(hidden, self.weight) + self.up(self.down(hidden))


def test_an_adapter_that_the_weight_does_not_show_is_refused() -> None:
    model = make("llama", {})
    model.lm_head = Adapted(model.lm_head)
    with pytest.raises(StageError, match=r"parameters beside weight and bias \(down.weight, up.weight\)"):
        OutputHead.of(model, VOCABULARY)


def test_a_parametrised_weight_is_what_its_parameters_make_it() -> None:
    class LowRank(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = (nn.Parameter(torch.randn(*shape)) for shape in ((2, 16), (ROWS, 2)))

        def forward(self, base: torch.Tensor) -> torch.Tensor:
            return base + self.up @ self.down

    model = make("llama", {})
    nn.utils.parametrize.register_parametrization(model.lm_head, "weight", LowRank())
    head = OutputHead.of(model, VOCABULARY)
    head.check(model, torch.tensor([[5, 9]]))
    weight, _ = output_matrix(model)
    weight.sum().backward()
    assert model.lm_head.parametrizations.weight[0].down.grad.abs().sum() > 0
