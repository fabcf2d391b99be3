"""What a model reads before a text that nothing stands before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from alignment.byte_view import ByteView

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Source = Literal["added", "bos", "eos", "none"]


@dataclass(frozen=True)
class TextStart:
    """The special tokens that a text's first token is conditioned on.

    A tokenizer that adds a prefix of its own has it before every text. Where it adds none, there is none before a text
    with a context, and before one without it stands the BOS, else the EOS, which in training stood between documents;
    with neither, the first token has no probability (evaluation.md §2, trap 6).

    Attributes:
        prefix_ids: before every text.
        start_ids: before a text without context.
        source: where ``start_ids`` come from.
    """

    prefix_ids: tuple[int, ...]
    start_ids: tuple[int, ...]
    source: Source

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, view: ByteView) -> TextStart:
        """The policy for ``tokenizer``, of which ``view`` is the byte view."""
        if view.prefix_ids:
            return cls(tuple(view.prefix_ids), tuple(view.prefix_ids), "added")
        for source, token in (("bos", tokenizer.bos_token_id), ("eos", tokenizer.eos_token_id)):
            if token is not None:
                return cls((), (token,), source)
        return cls((), (), "none")

    def describe(self, view: ByteView) -> str:
        """The policy in words, for the report."""
        tokens = " ".join(view.special_tokens.get(token, str(token)) for token in self.start_ids)
        return {
            "added": f"{tokens}, which the tokenizer adds, once before every text",
            "bos": f"{tokens} (BOS, which the tokenizer does not add) before texts without context alone",
            "eos": f"{tokens} (EOS; there is no BOS) before texts without context alone",
            "none": "no token could begin a text: texts without context are not scored",
        }[self.source]
