"""A model that reads what its chat template renders."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from alignment.byte_view import ByteView, InexactEncoding
from alignment.encoding import Encoding
from stages.evaluation.text_start import TextStart
from stages.evaluation.token_scorer import TokenScorer

_NOTHING = TextStart(prefix_ids=(), start_ids=(), source="none")


class RenderedScorer(TokenScorer):
    """Reads the string of a special token as that token, and puts none in front: the template has done so.

    Args:
        name, model, view, batch_tokens: as of ``TokenScorer``.
    """

    def __init__(self, name: str, model: nn.Module, view: ByteView, *, batch_tokens: int) -> None:
        super().__init__(name, model, view, _NOTHING, batch_tokens=batch_tokens)

    def _encode(self, texts: Sequence[str]) -> list[Encoding | None]:
        return [self._rendered(text) for text in texts]

    def _rendered(self, text: str) -> Encoding | None:
        try:
            encoding = self._view.encode_rendered(text)
        except InexactEncoding:
            return None
        return encoding if encoding.exact else None
