"""Packed windows do not see each other; a model that mixes them, or a kernel that is not there, is found out early."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers
from made_windows import window
from torch import nn

from stages.stage import StageError
from stages.training.attention import (
    FLASH,
    attention_inputs,
    check_attention,
    check_packing,
    use_attention,
    window_ends,
)
from stages.training.data.batch import SideBatch, collate, collate_packed

COMMON = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = COMMON | {"num_key_value_heads": 2}
SLIDING = GROUPED | {"head_dim": 8, "sliding_window": 5}
KEEPS_APART: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "gemma3": lambda: transformers.Gemma3TextConfig(**SLIDING, layer_types=["sliding_attention", "full_attention"]),
    "gemma2": lambda: transformers.Gemma2Config(**SLIDING),
    "mistral": lambda: transformers.MistralConfig(**GROUPED, sliding_window=5),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED, head_dim=8),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**COMMON),
    "mixtral": lambda: transformers.MixtralConfig(**GROUPED, num_local_experts=4),
}
MIXES = {
    "mamba2": lambda: transformers.Mamba2Config(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8, num_heads=4, head_dim=16, n_groups=1
    ),
    # Attention beside a recurrence whose share in the sum is tiny with random weights.
    "falcon_h1": lambda: transformers.FalconH1Config(
        **GROUPED, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1
    ),
    # Attention that makes its mask without a look at the positions.
    "opt": lambda: transformers.OPTConfig(
        vocab_size=64, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32
    ),
    "bloom": lambda: transformers.BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4),
}
LENGTHS = ((13, 3, 9), (1, 17))
"""Tokens of the windows of two rows; some are longer than the sliding window."""


def build(config: transformers.PretrainedConfig, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()
    model.name_or_path = "the student"
    return model


def read(model: nn.Module, batch: SideBatch) -> torch.Tensor:
    inputs = attention_inputs(batch, model.config._attn_implementation)
    with torch.no_grad():
        return model.base_model(input_ids=batch.ids % 64, **inputs, use_cache=False).last_hidden_state


@pytest.mark.parametrize("name", KEEPS_APART)
def test_packed_rows_have_the_hidden_states_of_padded_ones(name):
    model = build(KEEPS_APART[name]())
    rows = [[window(10 * row + number, size) for number, size in enumerate(sizes)] for row, sizes in enumerate(LENGTHS)]
    packed, alone = collate_packed(rows).student, collate([each for row in rows for each in row]).student
    assert packed.ids.shape == (2, 25)
    found, expected = read(model, packed), read(model, alone)
    for number in range(5):
        torch.testing.assert_close(
            found[packed.window == number], expected[alone.window == number], rtol=1e-4, atol=2e-5
        )


@pytest.mark.parametrize("name", KEEPS_APART)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_models_that_keep_windows_apart_pass(name, dtype):
    check_packing(build(KEEPS_APART[name](), dtype))


@pytest.mark.parametrize("name", MIXES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_models_that_mix_windows_are_refused(name, dtype):
    with pytest.raises(StageError, match=r"the student \(\w+ForCausalLM\) .*; set packing: false"):
        check_packing(build(MIXES[name](), dtype))


def test_a_model_whose_embedding_looks_back_is_refused():
    model = build(KEEPS_APART["llama"]())
    model.config.suffix_expansion = {"tokens": 3, "nodes": 5}
    with pytest.raises(StageError, match="reads a token by the bytes before it, those of other windows too"):
        check_packing(model)


def test_positions_that_go_on_over_a_row_are_found_out():
    model = build(KEEPS_APART["gpt2"]())
    table = model.transformer.wpe

    def ignore_positions(module: nn.Module, inputs: tuple) -> tuple:
        return (torch.arange(inputs[0].shape[-1]).expand(inputs[0].shape),)

    check_packing(model)
    with table.register_forward_pre_hook(ignore_positions), pytest.raises(StageError, match="otherwise than alone"):
        check_packing(model)


def test_the_proof_leaves_no_trace():
    model = build(KEEPS_APART["llama"]())
    check_packing(model)
    assert not model.get_input_embeddings()._forward_hooks
    assert all(parameter.grad is None for parameter in model.parameters())


def test_flash_attention_is_told_where_windows_end():
    batch = collate_packed([[window(0, 4), window(1, 3)], [window(2, 5)]]).student
    inputs = attention_inputs(batch, FLASH)
    # The second row's padding counts to its window: nothing that is scored comes after it.
    assert inputs["cu_seq_lens_q"].tolist() == inputs["cu_seq_lens_k"].tolist() == [0, 4, 7, 14]
    assert inputs["cu_seq_lens_q"].dtype == torch.int32
    assert (inputs["max_length_q"], inputs["max_length_k"]) == (7, 7)
    assert torch.equal(inputs["position_ids"], batch.positions)
    assert window_ends(batch.positions).tolist() == [4, 7, 14]


def test_flash_attention_is_refused_where_it_cannot_run():
    with pytest.raises(StageError, match="attention: flash_attention_2 needs a GPU"):
        check_attention(FLASH, torch.device("cpu"))
    try:
        import flash_attn  # noqa: F401
    except ImportError:
        with pytest.raises(StageError, match="needs the package flash-attn, which is not installed"):
            check_attention(FLASH, torch.device("cuda"))
    check_attention("eager", torch.device("cpu"))


def test_a_model_uses_the_attention_that_was_asked_for_or_says_what_it_has():
    llama, mamba = build(KEEPS_APART["llama"]()), build(MIXES["mamba2"]())
    assert use_attention(llama, "sdpa") == llama.config._attn_implementation == "sdpa"
    assert use_attention(llama, "eager") == llama.config._attn_implementation == "eager"
    assert use_attention(mamba, "sdpa") == "eager"
    with pytest.raises(StageError, match="the student has no flash_attention_2 attention; use attention: eager"):
        use_attention(mamba.bfloat16(), FLASH)
    with pytest.raises(StageError, match="flash_attention_2 computes in bf16, but the student is held in float32"):
        use_attention(llama, FLASH)
