"""The stage that gives the student the target vocabulary, with rows made from those it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from stages.artifacts import (
    AlignmentArtifact,
    Artifact,
    DocumentsArtifact,
    HypernetArtifact,
    ModelArtifact,
    TokenizerArtifact,
    write_json,
)
from stages.initializers import Chain
from stages.initializers.refiners import RefinerEntry
from stages.initializers.steps import AnchorOptions, PostOptions, VerifyOptions
from stages.resume_points import newest_checkpoint
from stages.stage import Input, StageConfig, StageContext


class InitConfig(StageConfig):
    """How the new rows are made. Tokens that the student has keep their rows bit by bit, whatever the method."""

    input: Chain = Field("piece_mean", validate_default=True)
    """Methods for the input embedding, in order: what one cannot make the next one tries, and at last ``mean``."""
    output: Chain | None = None
    """Methods for the output embedding of a model that does not tie it to the input; None: those of ``input``."""
    bias: Literal["output", "mean", "zero"] = "output"
    """Values of an output bias: by the weights of the output rows (the mean where a method has none), the mean, 0."""
    other: Chain = Field("piece_mean", validate_default=True)
    """Methods for further tensors with a row for each token, such as embeddings that every layer reads."""
    copy_exact: bool = True
    """False: copy special tokens only, and make the rows of all others by the methods, as WECHSEL does."""
    max_norm: float | None = Field(3.0, gt=0)
    """Rows longer than so many times the 99.9 % quantile of the old rows' norms go to the next method."""
    anchors: AnchorOptions = AnchorOptions()
    """Which shared tokens the methods may work through."""
    post: PostOptions = PostOptions()
    """What is done to new rows after they were made."""
    refine: tuple[RefinerEntry, ...] = ()
    """What improves new rows at last, in order."""
    override: dict[str, str | int | tuple[str | int, ...]] = Field(default_factory=dict)
    """Target token -> the source token, or tokens, whose (mean) row it gets, whatever else was said."""
    pad_to_multiple_of: int = Field(1, ge=1)
    """Round the number of matrix rows up to a multiple of this, for faster matrix products (64 or 128 on GPUs)."""
    padding: Literal["mean", "zero"] = "mean"
    """Padding rows: the mean of the new matrix, or 0, whose logit of 0 may beat those of real tokens."""
    expand_input: Literal["none", "longest_suffix"] = "none"
    """``longest_suffix``, for byte-level targets: the input embedding of a byte also gets the student's own row of the
    longest of its tokens that ends there."""
    tie: Literal["keep", "untie"] = "keep"
    """``untie`` gives a model that ties output and input an output matrix of its own."""
    verify: VerifyOptions = VerifyOptions()
    """The check of the finished model."""
    seed: int = Field(0, ge=0)
    """Of what methods draw."""

    @field_validator("input", "output", "other")
    @classmethod
    def _each_method_may_be_asked(cls, chain: Chain | None) -> Chain | None:
        names = [options.method for options in chain or ()]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"names {', '.join(repeated)} twice: what it could not make once it cannot make again")
        if "mean" in names[:-1]:
            raise ValueError(f"mean makes every row: {names[names.index('mean') + 1]} after it would never be asked")
        return chain

    @model_validator(mode="after")
    def _override_names_tokens(self) -> InitConfig:
        if empty := [token for token, names in self.override.items() if names == ()]:
            raise ValueError(f"override names no source token for {', '.join(map(repr, empty))}")
        return self

    @model_validator(mode="after")
    def _distilled_rows_are_read_as_they_were_trained(self) -> InitConfig:
        if self.expand_input != "none" and any(entry.method == "token_distill" for entry in self.refine):
            raise ValueError("token_distill trains rows without the expansion: use it, or expand_input, not both")
        return self

    @property
    def wanted_inputs(self) -> frozenset[str]:
        """What the methods need beside the student and the tokenizer."""
        entries = (*self.input, *(self.output or ()), *self.other, *self.refine)
        wanted = frozenset[str]().union(*(entry.wanted_inputs for entry in entries))
        return wanted | ({"eval"} if self.verify.text == "eval" else set())


class Init:
    """Student, target tokenizer and their alignment -> the student with the target's vocabulary."""

    VERSION: ClassVar[int] = 2
    Config: ClassVar[type[StageConfig]] = InitConfig
    inputs: ClassVar[dict[str, Input]] = {
        "student": Input(ModelArtifact, source="student"),
        "tokenizer": Input(TokenizerArtifact, source="tokenizer", replaceable=True),
        "alignment": Input(AlignmentArtifact),
        "donor": Input(ModelArtifact, source="donor", optional=True),
        "documents": Input(DocumentsArtifact, source="train", replaceable=True, optional=True),
        "hypernet": Input(HypernetArtifact, optional=True),
        "eval": Input(DocumentsArtifact, source="eval", optional=True),
    }
    output: ClassVar[type[Artifact]] = ModelArtifact

    @staticmethod
    def resume_point(work: Path) -> str | None:
        """Only the training of rows is worth keeping."""
        point = newest_checkpoint(work, "token_distill/*")
        return f"{point} of token_distill" if point else None

    def run(self, ctx: StageContext) -> None:
        """Write an ordinary Hugging Face directory, ``init.json``, ``rows.npz`` (how every row was made) and metrics.

        Raises:
            StageError: inputs do not belong together, a method cannot work, or the result does not work when loaded
                afresh.
        """
        from stages.initialisation.run import give_vocabulary

        manifest = give_vocabulary(ctx)
        write_json(ctx.out / "init.json", manifest)
        write_json(ctx.out / "metrics.json", _metrics(manifest))
        ctx.progress(_summary(manifest))


def _input_rows(manifest: dict[str, Any]) -> dict[str, int]:
    return _rows_of(manifest, "input")[0]


def _rows_of(manifest: dict[str, Any], role: str) -> list[dict[str, int]]:
    """Method -> number of rows, for each tensor of a role."""
    return [tensor["rows"] for tensor in manifest["tensors"].values() if tensor["role"] == role]


def _metrics(manifest: dict[str, Any]) -> dict[str, float]:
    verification = manifest["verification"]
    probe = verification["probe"]
    values = {f"rows.{method}": count for method, count in _input_rows(manifest).items()}
    values |= {
        "rows.padding": manifest["padding_rows"],
        "bits_per_byte": probe["bits_per_byte"],
        "student_bits_per_byte": verification["student_probe"]["bits_per_byte"],
    }
    for part in ("copied", "new"):
        if probe[part]["tokens"]:
            values[f"{part}_tokens.nats_per_token"] = probe[part]["nats_per_token"]
    return {name: float(value) for name, value in values.items()}


def _summary(manifest: dict[str, Any]) -> str:
    counts = [_input_rows(manifest), *_rows_of(manifest, "output")]
    made = [", ".join(f"{count:,} {method}" for method, count in rows.items() if count) for rows in counts]
    made = "; output: ".join(dict.fromkeys(made))
    probe, before = manifest["verification"]["probe"], manifest["verification"]["student_probe"]
    tie = "tied" if manifest["tied"] else "untied"
    padding = f", {manifest['padding_rows']:,} padding" if manifest["padding_rows"] else ""
    return (
        f"{manifest['matrix_rows']:,} {tie} rows: {made}{padding}; {probe['bits_per_byte']:.3f} bits per byte of the "
        f"check's text, the student {before['bits_per_byte']:.3f}"
    )
