"""The stage that gives the student the target vocabulary, with rows made from those it has."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from stages.artifacts import AlignmentArtifact, Artifact, ModelArtifact, TokenizerArtifact, write_json
from stages.stage import Input, StageConfig, StageContext, StageError, StageInterrupted

if TYPE_CHECKING:
    from alignment.vocab import VocabAlignment
    from stages.initialisation import VocabularyTensors


_TOKENIZER_CHOICE = (
    "Beside a model of some types AutoTokenizer loads only a tokenizer.json: a target tokenizer without one needs a "
    "student of another type."
)


class InitConfig(StageConfig):
    """How the new rows are made."""

    method: Literal["fvt"] = "fvt"
    """``fvt``: copy the row of the same token, else the mean of the rows of its pieces, else the mean row."""

    pad_to_multiple_of: int = Field(1, ge=1)
    """Round the number of matrix rows up to a multiple of this, for faster matrix products (64 or 128 on GPUs)."""


class Init:
    """Student, target tokenizer and their alignment -> the student with the target's vocabulary."""

    VERSION: ClassVar[int] = 1
    Config: ClassVar[type[StageConfig]] = InitConfig
    inputs: ClassVar[dict[str, Input]] = {
        "student": Input(ModelArtifact, source="student"),
        "tokenizer": Input(TokenizerArtifact, source="tokenizer"),
        "alignment": Input(AlignmentArtifact),
    }
    output: ClassVar[type[Artifact]] = ModelArtifact

    def run(self, ctx: StageContext) -> None:
        """Write an ordinary Hugging Face directory, ``init.json`` (how every row was made) and metrics.

        Raises:
            StageError: the alignment belongs to other tokenizers, the student's tokenizer has ids without a row, the
                model has vocabulary tensors of unknown meaning, or the result does not work when loaded afresh.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from alignment.initializers import load_initializer
        from alignment.vocab import VocabAlignment
        from stages import initialisation
        from stages.reload_check import inspect_tokenizer

        alignment = VocabAlignment.load(ctx.input("alignment") / "alignment.npz")
        _check_tokenizers(alignment, ctx.input("student"), ctx.input("tokenizer"))
        model = AutoModelForCausalLM.from_pretrained(ctx.input("student"))
        _check_rows(alignment, initialisation.vocabulary_tensors(model), ctx.input("student"))
        _stop_if_asked(ctx)

        method = load_initializer(ctx.config.method)
        tensors = initialisation.replace_rows(
            model, lambda rows: method(rows, alignment), multiple=ctx.config.pad_to_multiple_of
        )
        tokenizer = AutoTokenizer.from_pretrained(ctx.input("tokenizer"))
        initialisation.set_special_ids(model, tokenizer)
        _stop_if_asked(ctx)

        model.save_pretrained(ctx.out)
        tokenizer.save_pretrained(ctx.out)
        manifest = _manifest(ctx.config, alignment, tensors)
        facts = ("matrix_rows", "tokenizer_size", "tied")
        expected = inspect_tokenizer(tokenizer) | {name: manifest[name] for name in facts}
        del model, tensors  # the check loads a second copy
        _stop_if_asked(ctx)
        _check_reloaded(ctx.out, expected)

        write_json(ctx.out / "init.json", manifest)
        write_json(ctx.out / "metrics.json", {name: float(count) for name, count in manifest["rows"].items()})
        ctx.progress(_summary(manifest))


def _check_tokenizers(alignment: VocabAlignment, student: Path, tokenizer: Path) -> None:
    from alignment.byte_view import ByteView

    for role, directory, expected in (
        ("student", student, alignment.source_fingerprint),
        ("target", tokenizer, alignment.target_fingerprint),
    ):
        if ByteView.from_tokenizer(directory).fingerprint != expected:
            raise StageError(
                f"the alignment was made for another {role} tokenizer than the one in {directory}: "
                "name the align stage that takes the same models under `needs`"
            )


def _check_rows(alignment: VocabAlignment, tensors: VocabularyTensors, student: Path) -> None:
    rows = min(len(tensors.embedding), len(tensors.head))
    if alignment.source_size > rows:
        raise StageError(
            f"the tokenizer in {student} has ids up to {alignment.source_size - 1}, the model has only {rows} rows: "
            "the last ids have no embedding. Use the tokenizer that the model was trained with."
        )


def _stop_if_asked(ctx: StageContext) -> None:
    if ctx.should_stop():
        raise StageInterrupted


def _manifest(config: InitConfig, alignment: VocabAlignment, tensors: VocabularyTensors) -> dict[str, Any]:
    from alignment.vocab import Match

    matrix_rows = len(tensors.embedding)
    copied = int(alignment.copied.sum())
    decomposed = int((alignment.match == Match.PIECES).sum())
    return {
        "method": config.method,
        "rows": {
            "copied": copied,
            "mean_of_pieces": decomposed,
            "mean_row": alignment.target_size - copied - decomposed,
            "padding": matrix_rows - alignment.target_size,
        },
        "tokenizer_size": alignment.target_size,
        "matrix_rows": matrix_rows,
        "tied": tensors.tied,
        "bias": tensors.bias is not None,
        "dtype": str(tensors.embedding.dtype).removeprefix("torch."),
        "sha256": tensors.digest,
        "source_fingerprint": alignment.source_fingerprint,
        "target_fingerprint": alignment.target_fingerprint,
    }


def _check_reloaded(directory: Path, expected: dict[str, Any]) -> None:
    """Load the result in a process of its own and compare it with what was meant.

    Raises:
        StageError: it does not load, or is not what was expected.
    """
    from stages.reload_check import differences, inspect_in_fresh_process

    try:
        found = inspect_in_fresh_process(directory)
    except subprocess.CalledProcessError as error:
        raise StageError(
            f"the model just written to {directory} does not load. {_TOKENIZER_CHOICE}\n{error.stderr}"
        ) from None
    wrong = differences(found, expected)
    if wrong:
        raise StageError(
            f"the model just written to {directory} is not what was meant: {'; '.join(wrong)}. "
            f"Check that the student gives finite logits. {_TOKENIZER_CHOICE}"
        )


def _summary(manifest: dict[str, Any]) -> str:
    rows = manifest["rows"]
    tie = "tied" if manifest["tied"] else "untied"
    padding = f", {rows['padding']:,} of padding" if rows["padding"] else ""
    return (
        f"{manifest['matrix_rows']:,} {tie} {manifest['dtype']} rows: {rows['copied']:,} copied, "
        f"{rows['mean_of_pieces']:,} means of pieces, {rows['mean_row']:,} mean rows{padding}"
    )
