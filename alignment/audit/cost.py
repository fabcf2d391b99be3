"""What one epoch will cost, from configuration facts alone: no weights, no device, no timing.

Parameters of a model of L layers, width D, attention width A, key-value width K, feed-forward width F and V
vocabulary rows, with G = 3 matrices in a gated feed-forward block and 2 in a plain one (biases and norms left out):

    body = L * (2*D*A + 2*D*K + G*D*F)        embeddings = V*D, twice if the head is not tied

Floating-point operations, a multiply and an add counted as two, for windows of T tokens (causal attention sees T/2
positions on average):

    forward, a token      = 2*body + 2*L*A*T + 2*D*V
    teacher               = forward
    student               = 3 * forward + 2*D*V       (backward is twice forward; the fused head recomputes its logits)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alignment.audit.report import Cost, ModelCost
from alignment.audit.text_slice import TextSlice

_LOGIT_BYTES = 4  # float32
_SCORES_A_TOKEN = 2  # label log-probability and boundary log-probability
_TEACHER_BYTES = 2  # bf16 weights
_STUDENT_BYTES = 16  # bf16 weights and gradients; float32 master weights and two Adam moments
_ASSUMPTIONS = (
    "One epoch; every byte is read once by either model in windows of {window_tokens} tokens, {batch_windows} to a "
    "batch; bf16 weights, AdamW with float32 state; activations, padding and the prefix of each window are left out."
)


@dataclass(frozen=True)
class ModelShape:
    """The facts of a model's configuration that decide its cost, named by the letters of the module docstring."""

    layers: int
    hidden_size: int
    attention_size: int
    key_value_size: int
    feed_forward_size: int
    feed_forward_matrices: int
    vocabulary_rows: int
    tied: bool

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape | None:
        """Read a parsed ``config.json``; None if it does not say how many layers of what width the model has.

        A configuration that names no feed-forward width (GPT-2) has a plain block of four times the hidden size.
        """
        config = config.get("text_config") or config
        layers = config.get("num_hidden_layers") or config.get("n_layer")
        hidden = config.get("hidden_size") or config.get("n_embd") or config.get("d_model")
        rows = config.get("vocab_size")
        if not (layers and hidden and rows):
            return None
        heads = config.get("num_attention_heads") or config.get("n_head") or 1
        head_size = config.get("head_dim") or hidden // heads
        inner = config.get("intermediate_size")
        return cls(
            layers=layers,
            hidden_size=hidden,
            attention_size=heads * head_size,
            key_value_size=(config.get("num_key_value_heads") or heads) * head_size,
            feed_forward_size=inner or config.get("n_inner") or 4 * hidden,
            feed_forward_matrices=3 if inner and _is_gated(config) else 2,
            vocabulary_rows=rows,
            tied=config.get("tie_word_embeddings", True),
        )

    @property
    def body(self) -> int:
        """Parameters of all layers."""
        attention = 2 * self.hidden_size * (self.attention_size + self.key_value_size)
        feed_forward = self.feed_forward_matrices * self.hidden_size * self.feed_forward_size
        return self.layers * (attention + feed_forward)

    @property
    def parameters(self) -> int:
        """Body, embedding and head."""
        return self.body + (1 if self.tied else 2) * self.vocabulary_rows * self.hidden_size

    @property
    def head_flops(self) -> int:
        """One token's logits."""
        return 2 * self.hidden_size * self.vocabulary_rows

    def forward_flops(self, window_tokens: int) -> int:
        """One token's forward pass in a window of so many."""
        return 2 * self.body + 2 * self.layers * self.attention_size * window_tokens + self.head_flops


@dataclass(frozen=True)
class Workload:
    """The training to estimate.

    Attributes:
        teacher, student: the models' shapes; None where the configuration is not known.
        window_tokens: T, longest window in tokens.
        batch_windows: B, windows in a batch.
        head_block_bytes: what the fused head may hold of the logits at a time.
    """

    teacher: ModelShape | None
    student: ModelShape | None
    window_tokens: int
    batch_windows: int
    head_block_bytes: int


def estimate_cost(workload: Workload, text: TextSlice) -> Cost:
    """The cost of one epoch over the text."""
    teacher = student = None
    if workload.teacher is not None:
        forward = workload.teacher.forward_flops(workload.window_tokens)
        teacher = _model_cost(workload.teacher, workload, text.teacher_tokens, forward, _TEACHER_BYTES, text.bytes)
    if workload.student is not None:
        passes = 3 * workload.student.forward_flops(workload.window_tokens) + workload.student.head_flops
        student = _model_cost(workload.student, workload, text.student_tokens, passes, _STUDENT_BYTES, text.bytes)
    both = (teacher, student)
    return Cost(
        teacher=teacher,
        student=student,
        flops=None if None in both else sum(model.flops_per_byte * text.bytes for model in both),
        score_cache_bytes=_SCORES_A_TOKEN * 4 * text.teacher_tokens,
        assumptions=_ASSUMPTIONS.format(window_tokens=workload.window_tokens, batch_windows=workload.batch_windows),
    )


def _model_cost(
    shape: ModelShape, workload: Workload, tokens: float, flops_a_token: int, bytes_a_parameter: int, text_bytes: float
) -> ModelCost:
    logits_bytes = workload.batch_windows * workload.window_tokens * shape.vocabulary_rows * _LOGIT_BYTES
    return ModelCost(
        parameters=shape.parameters,
        flops_per_token=shape.forward_flops(workload.window_tokens),
        flops_per_byte=flops_a_token * tokens / text_bytes if text_bytes else 0.0,
        tokens=tokens,
        logits_bytes=logits_bytes,
        fused_head_bytes=min(logits_bytes, workload.head_block_bytes),
        state_bytes=bytes_a_parameter * shape.parameters,
    )


def _is_gated(config: Mapping[str, Any]) -> bool:
    """Whether the feed-forward block multiplies by a gate: the field's usual activations tell."""
    activation = str(config.get("hidden_act") or config.get("hidden_activation") or config.get("activation_function"))
    return activation in {"silu", "swish", "swiglu", "gelu_pytorch_tanh", "geglu"}
