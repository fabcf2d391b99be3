"""The stage that matches the student's own vocabulary with the one it shall get."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from stages.artifacts import AlignmentArtifact, Artifact, ModelArtifact, TokenizerArtifact, write_json
from stages.stage import Input, StageConfig, StageContext, StageError

if TYPE_CHECKING:
    from alignment.byte_view import ByteView

_WAYS_OUT = """There are three ways out:
  1. choose a target tokenizer that cuts numbers as the student's own does (models.student.tokenizer);
  2. if this target cuts numbers less than the student's own, make one of it that cuts them alike: add the stage \
`digits: {uses: tokenizer, make: keep_digits}` and list it under `needs` of this stage and of init;
  3. if numbers do not matter, write `digits: warn` under this stage."""


class AlignConfig(StageConfig):
    """What bytes alone do not decide."""

    override: dict[str, str | int] = Field(default_factory=dict)
    """Target token -> the student's token whose row it gets, before any other rule. A special token is written as its
    string, any other as its text; the student's token also as an id."""

    fold: tuple[Literal["case", "nfkc", "space"], ...] = ()
    """What to overlook between tokens that have no equal: letter case, Unicode compatibility forms (NFKC), a space at
    the start. Needed (``case``) where only one of the tokenizers lower-cases its text."""

    digits: Literal["refuse", "warn", "ignore"] = "refuse"
    """What to do if the tokenizers cut numbers differently. Where that cannot be found out, ``refuse`` only warns."""


class Align:
    """Student vocabulary and target vocabulary -> ``alignment.npz`` and ``report.json``."""

    VERSION: ClassVar[int] = 2
    Config: ClassVar[type[StageConfig]] = AlignConfig
    inputs: ClassVar[dict[str, Input]] = {
        "student": Input(ModelArtifact, source="student"),
        "tokenizer": Input(TokenizerArtifact, source="tokenizer", replaceable=True),
    }
    output: ClassVar[type[Artifact]] = AlignmentArtifact

    def run(self, ctx: StageContext) -> None:
        """Write the alignment, its report (``alignment.vocab_report.describe``), and the report's numbers as metrics.

        Raises:
            StageError: the bytes of a tokenizer cannot be derived, an overriding token does not exist, only one
                tokenizer lower-cases, the digit schemes are refused, or the student's model lacks rows.
        """
        from transformers import AutoTokenizer

        from alignment.byte_models import byte_model
        from alignment.byte_view import ByteView
        from alignment.chat import special_roles_and_turns
        from alignment.token_codecs import UnsupportedTokenizer
        from alignment.token_index import UnknownToken
        from alignment.vocab import AlignmentError, align_vocabularies
        from alignment.vocab_report import describe

        source_tokenizer = AutoTokenizer.from_pretrained(ctx.input("student"))
        target_tokenizer = AutoTokenizer.from_pretrained(ctx.input("tokenizer"))
        source_tokenizer.name_or_path, target_tokenizer.name_or_path = "student", "target"  # as messages call them
        target_roles = special_roles_and_turns(target_tokenizer)
        tensors, rows = _vocab_tensors(ctx)
        try:
            source = ByteView.from_tokenizer(source_tokenizer)
            target = ByteView.from_tokenizer(target_tokenizer)
            _check_rows(source, rows)
            alignment = align_vocabularies(
                source,
                target,
                model=byte_model(source_tokenizer, source),
                source_roles=special_roles_and_turns(source_tokenizer),
                target_roles=target_roles,
                override=ctx.config.override,
                fold=ctx.config.fold,
                source_rows=rows,
            )
        except (UnsupportedTokenizer, UnknownToken, AlignmentError) as error:
            raise StageError(str(error)) from None
        report = describe(alignment, source, target, target_roles=target_roles) | {"vocabulary_tensors": tensors}
        _apply_digit_policy(ctx, report["digits"])
        alignment.save(ctx.out / "alignment.npz")
        write_json(ctx.out / "report.json", report)
        write_json(ctx.out / "metrics.json", _metrics(report))
        ctx.progress(_summary(report))


def _vocab_tensors(ctx: StageContext) -> tuple[dict[str, Any], int | None]:
    """The student's vocabulary tensors for the report, and its number of rows; None where they cannot be told."""
    from alignment.vocab_tensors import VocabTensorError, read_vocab_tensors

    try:
        tensors = read_vocab_tensors(Path(ctx.input("student")))
    except VocabTensorError as error:
        ctx.progress(f"warning: the student's vocabulary tensors are not known: {error}")
        return {"unknown_because": str(error)}, None
    return tensors.to_json(), tensors.matrix_rows


def _check_rows(source: ByteView, rows: int | None) -> None:
    """Refuse a model with fewer rows than its tokenizer's own vocabulary; added tokens without a row are common."""
    import numpy as np

    from alignment.token_table import TokenKind

    own = np.flatnonzero(source.kinds == TokenKind.TEXT)
    if rows is not None and len(own) and own[-1] >= rows:
        raise StageError(
            f"the student's tokenizer has ids up to {own[-1]}, its model has only {rows} rows: the last ids have no "
            "embedding. Use the tokenizer that the model was trained with."
        )


def _apply_digit_policy(ctx: StageContext, digits: dict[str, str]) -> None:
    if digits["verdict"] == "same" or ctx.config.digits == "ignore":
        return
    if ctx.config.digits == "refuse" and digits["verdict"] == "clash":
        raise StageError(f"{digits['sentence']}. {_WAYS_OUT}")
    ctx.progress(f"warning: {digits['sentence']}")


def _metrics(report: dict[str, Any]) -> dict[str, float]:
    tokens = report["target"]["tokens"]
    return {
        "target_tokens": float(tokens),
        "coverage": report["coverage"],
        "exact_share": report["shared"],
        "decomposed_share": report["matches"]["pieces"] / tokens,
        "mean_pieces": report["mean_pieces"],
        "anchors": float(report["anchors"]),
        "digit_schemes_clash": float(report["digits"]["verdict"] == "clash"),
    }


def _summary(report: dict[str, Any]) -> str:
    matches = report["matches"]
    others = {
        "byte-fallback tokens": matches["byte_fallback"],
        "tokens but for what `fold` overlooks": matches["folded"],
        "tokens by `override`": matches["override"],
    }
    other = "".join(f", {count:,} {name}" for name, count in others.items() if count)
    return (
        f"{matches['bytes']:,} of {report['target']['tokens']:,} target tokens are tokens of the student, "
        f"{matches['pieces']:,} are made of {report['mean_pieces']:.1f} of them on average, "
        f"{matches['role'] + matches['string']:,} special tokens correspond{other}, "
        f"{report['unmatched']['count']:,} have no counterpart"
    )
