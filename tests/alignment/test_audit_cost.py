"""The cost estimate against models of known size and sums done by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from alignment.audit.cost import ModelShape, Workload, estimate_cost
from alignment.audit.counts import Statistic
from alignment.audit.slices import overall_slice
from alignment.audit.text_classes import CLASSES

SMOLLM2 = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "hidden_act": "silu",
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
GPT2 = {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "activation_function": "gelu_new"}
TINY = ModelShape(
    layers=1,
    hidden_size=2,
    attention_size=2,
    key_value_size=2,
    feed_forward_size=4,
    feed_forward_matrices=2,
    vocabulary_rows=10,
    tied=True,
)


def _text(*, size: int, teacher_tokens: int, student_tokens: int):
    cells = np.zeros((2, len(CLASSES), len(Statistic)))
    cells[0, 0, [Statistic.BYTES, Statistic.TEACHER_TOKENS, Statistic.STUDENT_TOKENS]] = (
        size,
        teacher_tokens,
        student_tokens,
    )
    return overall_slice(cells)


@pytest.mark.parametrize(("config", "parameters"), [(SMOLLM2, 134_515_008), (GPT2, 124_439_808 - 1024 * 768)])
def test_known_models_have_their_known_size_but_for_norms_and_biases(config, parameters):
    assert ModelShape.from_config(config).parameters == pytest.approx(parameters, rel=1.5e-3)


def test_an_untied_head_is_counted():
    tied, untied = (ModelShape.from_config(SMOLLM2 | {"tie_word_embeddings": value}) for value in (True, False))
    assert untied.parameters - tied.parameters == 49152 * 576


def test_a_text_model_inside_a_multimodal_configuration_is_found():
    assert ModelShape.from_config({"text_config": SMOLLM2, "vocab_size": 1}) == ModelShape.from_config(SMOLLM2)


def test_a_configuration_without_sizes_gives_no_shape():
    assert ModelShape.from_config({"model_type": "mystery", "vocab_size": 10}) is None


def test_a_tiny_model_by_hand():
    # Body: 2*2*2 + 2*2*2 attention, 2*2*4 feed-forward = 32; embedding 20.
    assert TINY.parameters == 52
    # In windows of 8: 2*32 for the body, 2*1*2*8 attention scores, 2*2*10 for the head.
    assert TINY.forward_flops(8) == 64 + 32 + 40
    workload = Workload(TINY, TINY, window_tokens=8, batch_windows=3, head_block_bytes=400)
    cost = estimate_cost(workload, _text(size=100, teacher_tokens=25, student_tokens=50))
    assert cost.teacher.flops_per_byte == 136 * 25 / 100
    assert cost.student.flops_per_byte == (3 * 136 + 40) * 50 / 100
    assert cost.flops == 136 * 25 + 448 * 50
    assert cost.teacher.logits_bytes == 3 * 8 * 10 * 4
    assert cost.teacher.fused_head_bytes == 400
    assert cost.score_cache_bytes == 25 * 8
    assert (cost.teacher.state_bytes, cost.student.state_bytes) == (2 * 52, 16 * 52)


def test_a_batch_smaller_than_a_block_needs_no_whole_block():
    workload = Workload(TINY, TINY, window_tokens=8, batch_windows=3, head_block_bytes=10**9)
    cost = estimate_cost(workload, _text(size=100, teacher_tokens=25, student_tokens=50))
    assert cost.student.fused_head_bytes == cost.student.logits_bytes


def test_a_side_without_configuration_is_left_out():
    workload = Workload(None, TINY, window_tokens=8, batch_windows=3, head_block_bytes=400)
    cost = estimate_cost(workload, _text(size=100, teacher_tokens=25, student_tokens=50))
    assert cost.teacher is None
    assert cost.flops is None
    assert cost.student.tokens == 50


def test_no_text_costs_nothing():
    workload = Workload(TINY, dataclasses.replace(TINY, tied=False), 8, 3, 400)
    cost = estimate_cost(workload, _text(size=0, teacher_tokens=0, student_tokens=0))
    assert cost.flops == cost.score_cache_bytes == 0
