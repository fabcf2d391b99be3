"""The stage that matches the student's own vocabulary with the one it shall get."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from stages.artifacts import AlignmentArtifact, Artifact, ModelArtifact, TokenizerArtifact, write_json
from stages.stage import Input, StageConfig, StageContext, StageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_ROLES = ("eos", "bos", "pad", "unk")
"""The most telling role first: where one token ends a text and also begins it, the row that was trained as an output
is the better one."""


class AlignConfig(StageConfig):
    """Nothing to choose: bytes decide."""


class Align:
    """Student vocabulary and target vocabulary -> ``alignment.npz`` and ``report.json``."""

    VERSION: ClassVar[int] = 1
    Config: ClassVar[type[StageConfig]] = AlignConfig
    inputs: ClassVar[dict[str, Input]] = {
        "student": Input(ModelArtifact, source="student"),
        "tokenizer": Input(TokenizerArtifact, source="tokenizer"),
    }
    output: ClassVar[type[Artifact]] = AlignmentArtifact

    def run(self, ctx: StageContext) -> None:
        """Write the alignment, its report, and the report's numbers as metrics.

        Raises:
            StageError: the bytes of one of the tokenizers cannot be derived.
        """
        from transformers import AutoTokenizer

        from alignment.byte_view import ByteView
        from alignment.segmentation import merges_of
        from alignment.token_codecs import UnsupportedTokenizer
        from alignment.vocab import align_vocabularies, describe

        source_tokenizer = AutoTokenizer.from_pretrained(ctx.input("student"))
        target_tokenizer = AutoTokenizer.from_pretrained(ctx.input("tokenizer"))
        try:
            source = ByteView.from_tokenizer(source_tokenizer)
            target = ByteView.from_tokenizer(target_tokenizer)
        except UnsupportedTokenizer as error:
            raise StageError(str(error)) from None
        alignment = align_vocabularies(
            source,
            target,
            merges=merges_of(source_tokenizer),
            source_roles=_roles(source_tokenizer),
            target_roles=_roles(target_tokenizer),
        )
        report = describe(alignment, source, target)
        alignment.save(ctx.out / "alignment.npz")
        write_json(ctx.out / "report.json", report)
        write_json(ctx.out / "metrics.json", _metrics(report))
        for line in _summary(report):
            ctx.progress(line)


def _roles(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    ids = {role: getattr(tokenizer, f"{role}_token_id") for role in _ROLES}
    return {role: token for role, token in ids.items() if token is not None}


def _metrics(report: dict[str, Any]) -> dict[str, float]:
    shares = {name: count / report["target_tokens"] for name, count in report["matches"].items()}
    return {
        "target_tokens": float(report["target_tokens"]),
        "coverage": report["coverage"],
        "exact_share": shares["bytes"],
        "decomposed_share": shares["pieces"],
        "mean_pieces": report["mean_pieces"],
        "digit_schemes_clash": float(report["digit_schemes_clash"]),
    }


def _summary(report: dict[str, Any]) -> list[str]:
    matches, tokens = report["matches"], report["target_tokens"]
    unmatched = len(report["unmatched_tokens"])
    lines = [
        f"{matches['bytes']:,} of {tokens:,} target tokens are tokens of the student, {matches['pieces']:,} are made "
        f"of {report['mean_pieces']:.1f} of them on average, {matches['role'] + matches['string']:,} special tokens "
        f"correspond, {unmatched:,} have no counterpart"
    ]
    if report["digit_schemes_clash"]:
        source, target = report["digit_scheme"]["source"], report["digit_scheme"]["target"]
        lines.append(
            f"warning: the student cuts numbers {source!r}, the target {target!r}: arithmetic suffers most from such a "
            "change; prefer a target tokenizer that cuts them alike"
        )
    return lines
