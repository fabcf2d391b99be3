"""Rows made of the rows of similar tokens, by their vectors in an auxiliary space (embedding_init.md §1.5 to §1.9)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from stages.initializers.base import InitializerOptions, WantedInput
from stages.stage import reference


class ClpOptions(InitializerOptions):
    """All shared tokens, weighted by their cosines in a donor's matrix over the sum of these (CLP-Transfer)."""

    method: Literal["clp"]
    wanted_inputs: ClassVar[frozenset[WantedInput]] = frozenset({"donor"})


class ClpPlusOptions(InitializerOptions):
    """The most similar shared tokens, weighted by sparsemax of their cosines in a donor's matrix (CLP+)."""

    method: Literal["clp_plus"]
    wanted_inputs: ClassVar[frozenset[WantedInput]] = frozenset({"donor"})


class FocusOptions(InitializerOptions):
    """The most similar shared tokens, weighted by sparsemax of the cosines of token vectors trained on text (FOCUS)."""

    method: Literal["focus"]
    vectors: str | None = reference(None)
    """Token vectors in word2vec's text format, in which words are tokens as the vocabulary of the target spells them
    (``Ġthe``, ``▁the``); unless given they are trained on ``data.train``."""
    dimensions: int = Field(100, ge=1)
    """Length of a trained vector."""
    epochs: int = Field(3, ge=1)
    """Passes over the text."""
    min_count: int = Field(10, ge=1)
    """Tokens that occur less often get no vector: they are made by the next method, and nothing is made of them."""
    negative: int = Field(10, ge=1)
    """Tokens drawn for each one that is to be told from them."""
    window: int = Field(5, ge=1)
    """Tokens on either side that a token is told from."""

    @property
    def wanted_inputs(self) -> frozenset[WantedInput]:
        """Text, unless there are vectors already."""
        return frozenset() if self.vectors else frozenset({"documents"})


class _WordVectorOptions(InitializerOptions):
    """What methods on static word vectors have in common."""

    k: int = Field(10, ge=1)
    """How many source tokens a row is made of."""
    temperature: float = Field(0.1, gt=0)
    """Of the softmax of their cosines."""
    max_words: int | None = Field(None, ge=1)
    """Read only so many word vectors, from the start of a file; all unless given."""


class WechselOptions(_WordVectorOptions):
    """The most similar source tokens by static word vectors of the two languages (WECHSEL)."""

    method: Literal["wechsel"]
    source_vectors: str = reference()
    """Word vectors of the student's language in word2vec's text format (.vec, .vec.gz), the most frequent first."""
    target_vectors: str = reference()
    """Word vectors of the target's language; the same file where both speak one language."""
    dictionary: str | None = reference(None)
    """Pairs of words (a line each: source, tab, target) by which the source's vectors are rotated into the target's
    space; none where the two files share one space already."""


class OfaOptions(_WordVectorOptions):
    """The most similar source tokens by multilingual word vectors (OFA)."""

    method: Literal["ofa"]
    vectors: str = reference()
    """Word vectors of both languages in one space, in word2vec's text format (.vec, .vec.gz)."""
    factorise: int | None = Field(None, ge=1)
    """Make new rows of the old matrix's best approximation of this rank; of the old rows themselves unless given."""
