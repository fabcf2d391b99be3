"""What the preflight audit measures, as plain values.

Units, everywhere: a *share* is a number in [0, 1], and None where there was nothing to take a share of. Counts of
bytes, tokens and chunks are weighted, that is multiplied by how often the data's weight has a document read in an
epoch; they are therefore floats. A token that lies in several classes of text counts in each by its share of bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from alignment.audit.text_slice import TextSlice


@dataclass(frozen=True)
class TokenizerFacts:
    """One tokenizer of the pair."""

    name: str
    """What to call it in messages."""
    fingerprint: str
    """sha256 of everything that changes its ids or bytes."""
    vocab_size: int
    """Highest id + 1."""
    digit_scheme: str
    """How it cuts numbers: single, up_to_3_left, up_to_3_right, free, or none if it has no digits."""
    exact: bool
    """Whether its tokens spell every text exactly."""
    inexact_reasons: tuple[str, ...]
    """Why not, one sentence each."""
    longest_token: int
    """Bytes of its longest token of text; 1 for a byte tokenizer."""


@dataclass(frozen=True)
class LongSpan:
    """A long stretch of text that training would treat as one unit."""

    domain: str
    """Where it is."""
    document: int
    """Number of the document in its domain, from 0, as added."""
    start: int
    """Its first byte in the document."""
    bytes: int
    """Its length."""
    teacher_tokens: int
    """Teacher tokens in its chunks."""
    student_tokens: int
    """Student tokens in its chunks."""
    chunks: int
    """1 for a chunk; the chunks joined in a group of the gamma rule."""
    text: str
    """The text, cut to an excerpt, undecodable bytes escaped."""


@dataclass(frozen=True)
class ChunkFacts:
    """The chunks: the smallest spans of text that both tokenizations cut out."""

    chunks: float
    bytes_per_chunk: float | None
    per_teacher_token: float | None
    """Chunks / teacher tokens: 1 means that the teacher's every token ends a chunk."""
    per_student_token: float | None
    shapes: dict[str, float]
    """Share of chunks by shape: ``1:1``, ``1:n`` (one teacher token), ``n:1`` (one student token), ``n:m``."""
    longest: tuple[LongSpan, ...]
    """The chunks of most tokens, longest first."""


@dataclass(frozen=True)
class TokenUse:
    """A token that occurs in the data."""

    id: int
    text: str
    """Its bytes in print: undecodable ones escaped."""
    kind: str
    """What it is, in words: ``number of 3 digits``, ``indentation``, ``word (latin)``."""
    count: float
    """Occurrences."""
    share: float
    """Of all tokens of its side that occur."""


@dataclass(frozen=True)
class VocabularyFacts:
    """How much the two vocabularies have in common, counted once per entry and once per occurrence in the data."""

    identical: bool
    """Whether every id stands for the same bytes, or the same special token, on both sides."""
    common: int
    """Byte strings that are a token on both sides."""
    jaccard: float | None
    """``common`` / byte strings that are a token on either side."""
    share_of_teacher: float | None
    """``common`` / the teacher's byte strings."""
    share_of_student: float | None
    teacher_by_text: float | None
    """Share of the teacher's tokens in the data that have an exact counterpart."""
    student_by_text: float | None
    teacher_uncommon: tuple[TokenUse, ...]
    """Teacher tokens in the data without an exact counterpart, most frequent first."""
    student_uncommon: tuple[TokenUse, ...]


@dataclass(frozen=True)
class DigitFacts:
    """Whether the two tokenizers cut numbers alike (embedding_init.md §0.4)."""

    teacher: str
    student: str
    """The two schemes."""
    verdict: Literal["same", "clash", "unknown"]
    """``unknown`` where a tokenizer cannot encode digits exactly."""
    share_of_bytes: float | None
    """Numerals' share of the text."""
    sentence: str
    """The verdict for a person, with what to do."""


@dataclass(frozen=True)
class SuppressedToken:
    """A student token that GOLD-like losses push down whatever the teacher says."""

    id: int
    text: str
    kind: str
    frequency: float
    """p_j: share of the student's tokens in the data that are this one."""
    gradient: float
    """p_j * M_C, the estimated gradient of the loss by its logit; positive: training lowers the logit."""


@dataclass(frozen=True)
class SuppressedKind:
    """All suppressed tokens of one kind together."""

    kind: str
    tokens: int
    """Different tokens."""
    frequency: float
    """Sum of p_j."""
    gradient: float
    """Sum of p_j * M_C."""
    share_of_kind: float
    """Share of the kind's occurrences in the data that are suppressed tokens."""


@dataclass(frozen=True)
class Suppression:
    """What a loss on the common vocabulary does to the student's other tokens (distillation_losses.md §1.7).

    For a student token j without counterpart the gradient by its logit is p_j * M_C >= 0, with p_j the student's
    probability and M_C the teacher's mass on the common tokens (X-Token, arXiv 2605.21699, Proposition 1).
    """

    method: str
    """How it was estimated, in a sentence."""
    common_teacher_mass: float | None
    """M_C."""
    frequency: float | None
    """Sum of p_j over student tokens without counterpart."""
    gradient: float | None
    """Their sum of p_j * M_C."""
    kinds: tuple[SuppressedKind, ...]
    """By kind of token, most suppressed first."""
    tokens: tuple[SuppressedToken, ...]
    """The most suppressed tokens."""


@dataclass(frozen=True)
class BoundaryFacts:
    """Where ALM's gamma rule would let chunks end (alm.md §1.1, §1.6): before a space, tab, newline or special token.

    Estimated from the text: a chunk counts as fused where the teacher's next token is no such token, since a sure
    teacher then gives boundaries little mass. The end of a document is a boundary.
    """

    fused: float | None
    """Share of chunks joined to the next."""
    chunks_per_group: float | None
    """Mean chunks that end up as one unit of the loss."""
    longest_groups: tuple[LongSpan, ...]
    """The groups of most bytes, longest first."""


@dataclass(frozen=True)
class ContextFacts:
    """What a context of a given length holds, on average over the text."""

    tokens: int
    """Context length."""
    teacher_bytes: float | None
    """Bytes of text in so many teacher tokens."""
    student_bytes: float | None


@dataclass(frozen=True)
class InexactDocument:
    """A document that a tokenizer does not reproduce."""

    domain: str
    document: int
    """Number of the document in its domain, from 0, as added."""
    side: Literal["teacher", "student"]
    offset: int
    """The first byte whose token does not spell the text."""
    bytes: int
    """Bytes of the document that such tokens stand for."""
    text: str
    """The text from there, cut to an excerpt."""


@dataclass(frozen=True)
class Rejections:
    """Text that training cannot use."""

    bytes: float
    """Bytes outside every chunk."""
    share: float | None
    documents: int
    """Documents with such bytes, unweighted."""
    teacher_inexact_documents: int
    """Documents that the teacher's tokenizer does not reproduce, unweighted."""
    student_inexact_documents: int
    teacher_inexact_bytes: float
    """Bytes whose teacher tokens do not spell them."""
    student_inexact_bytes: float
    examples: tuple[InexactDocument, ...]
    """The first few."""


@dataclass(frozen=True)
class Measurements:
    """What was counted."""

    teacher: TokenizerFacts
    student: TokenizerFacts
    documents: int
    """Unweighted."""
    text_bytes: int
    """Unweighted."""
    overall: TextSlice
    domains: tuple[TextSlice, ...]
    """In the order in which they were first added."""
    classes: tuple[TextSlice, ...]
    """Words, numerals by length, white space by kind, punctuation, symbols; those that occur. They add up to all."""
    scripts: tuple[TextSlice, ...]
    """The words by script, largest first."""
    prose_and_code: tuple[TextSlice, ...]
    """Paragraphs that look like prose and like program code."""
    chunks: ChunkFacts
    vocabulary: VocabularyFacts
    digits: DigitFacts
    suppression: Suppression
    boundaries: BoundaryFacts
    contexts: tuple[ContextFacts, ...]
    rejections: Rejections
