"""What improves new rows once the methods have made them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from stages.initializers.base import InitializerOptions, WantedInput


class NormCalibrationOptions(InitializerOptions):
    """Give new rows the median length of copied rows; their directions stay ("Beyond Initialization Loss")."""

    method: Literal["norm_calibration"]
    target: Literal["script", "global"] = "script"
    """Median over the copied tokens of the same script, or over all of them."""
    roles: tuple[Literal["input", "output"], ...] = ("input",)
    """Matrices whose new rows change. A tied model has one matrix for both, and is better left as it is."""
    fewest: int = Field(20, ge=1)
    """Scripts with fewer copied tokens take the median of all."""

    @field_validator("roles")
    @classmethod
    def _some_roles_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError("name input, output, or each of them once")
        return value


class TokenDistillOptions(InitializerOptions):
    """Train new rows until the student's hidden states are those that it has on its own tokens (AweDist)."""

    method: Literal["token_distill"]
    wanted_inputs: ClassVar[frozenset[WantedInput]] = frozenset({"documents"})

    max_tokens: int = Field(2500, ge=1)
    """How many tokens are trained, the most frequent of ``data.train`` first; the others keep their rows."""
    snippets: int = Field(25, ge=1)
    """Snippets of ``data.train`` for each token; one that holds several tokens counts for all of them."""
    snippet_tokens: int = Field(50, ge=8)
    """Longest snippet, in tokens of either tokenizer."""
    layer: int = -1
    """Compared hidden states, an index into transformers' ``hidden_states``: -1 the final norm's output."""
    output: Literal["cross_entropy", "keep"] = "cross_entropy"
    """Output rows of a model that has its own: learned by predicting the snippets, or left as they are."""
    epochs: int = Field(1, ge=1)
    """Passes over all snippets."""
    batch_snippets: int = Field(4, ge=1)
    """Snippets in one optimiser step; fewer make more steps of the same text."""
    learning_rate: float = Field(1e-4, gt=0)
    """Learning rate of AdamW, the same for all steps. Rows of norm 1 and more want a larger one."""

    @field_validator("layer")
    @classmethod
    def _not_the_embedding(cls, value: int) -> int:
        if value == 0:
            raise ValueError("layer 0 is the embedding itself, which no other token reaches; name a later layer")
        return value


def _as_mapping(value: Any) -> Any:
    """``token_distill`` means ``{method: token_distill}``."""
    return {"method": value} if isinstance(value, str) else value


RefinerEntry = Annotated[
    Annotated[NormCalibrationOptions | TokenDistillOptions, Field(discriminator="method")],
    BeforeValidator(_as_mapping),
]
"""One refiner with its options."""
