"""The audit's tokenizers as bytes, and how the student's own becomes the target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer

from alignment.byte_models import byte_model
from alignment.byte_view import ByteView
from alignment.special_tokens import special_roles
from alignment.token_codecs import UnsupportedTokenizer
from alignment.vocab import AlignmentError, align_vocabularies
from alignment.vocab_report import describe
from stages.stage import StageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Side:
    """A tokenizer, and the same as bytes."""

    tokenizer: PreTrainedTokenizerBase
    view: ByteView


def load_side(directory: Path, name: str) -> Side:
    """The tokenizer in ``directory``, called ``name`` in reports, which must not depend on where it lies.

    Raises:
        StageError: its bytes cannot be derived.
    """
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.name_or_path = name
    try:
        return Side(tokenizer, ByteView.from_tokenizer(tokenizer))
    except UnsupportedTokenizer as error:
        raise StageError(str(error)) from None


def initialisation_report(own: Side, target: Side) -> dict[str, Any]:
    """What the target's tokens would be made from, given the student's own vocabulary.

    Returns:
        ``alignment.vocab_report.describe``; where the vocabularies cannot be aligned, ``{"error": why}``.
    """
    roles = special_roles(target.tokenizer)
    try:
        alignment = align_vocabularies(
            own.view,
            target.view,
            model=byte_model(own.tokenizer, own.view),
            source_roles=special_roles(own.tokenizer),
            target_roles=roles,
        )
    except AlignmentError as error:
        return {"error": str(error)}
    return describe(alignment, own.view, target.view, target_roles=roles)
