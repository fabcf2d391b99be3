"""Two vocabularies matched by canonical bytes: which tokens of a source make each token of a target.

Rules and their order: embedding_init.md §0.2 and §0.3.
"""

from __future__ import annotations

import zipfile
from dataclasses import asdict, dataclass, fields
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np

from alignment.byte_view import ByteView
from alignment.segmentation import ByteSegmenter, Merges
from alignment.token_table import TokenKind

Roles = dict[str, int]
"""Role of a special token (``eos``, ``bos``, ``pad``, ``unk``) -> its id, the most telling role first."""


class Match(IntEnum):
    """How a target token is made from source tokens."""

    NONE = 0  # nothing in the source corresponds to it
    BYTES = 1  # one source token spells the same bytes
    ROLE = 2  # one source token has the same role
    STRING = 3  # one special source token has the same string
    PIECES = 4  # several source tokens spell it together


class AlignmentError(ValueError):
    """A vocabulary alignment is damaged or does not fit what it is used with."""


@dataclass(frozen=True)
class VocabAlignment:
    """For each target id the source ids it is made from, as rows of a sparse matrix (CSR).

    V is the target's vocabulary size. ``pieces[offsets[t]:offsets[t + 1]]`` are the source ids of target id t: one
    for a copy, several in text order for a decomposition, none where nothing corresponds.

    Attributes:
        match: int8 [V], a ``Match`` for each target id.
        offsets: int64 [V + 1].
        pieces: int32 [offsets[V]].
        source_size: highest source id + 1.
        source_fingerprint, target_fingerprint: ``ByteView.fingerprint`` of the two tokenizers.

    Raises:
        AlignmentError: the arrays contradict each other.
    """

    match: np.ndarray
    offsets: np.ndarray
    pieces: np.ndarray
    source_size: int
    source_fingerprint: str
    target_fingerprint: str

    def __post_init__(self) -> None:
        if self.offsets.shape != (self.target_size + 1,) or self.offsets[0] != 0:
            raise AlignmentError(f"offsets have shape {self.offsets.shape}, expected ({self.target_size + 1},) from 0")
        counts = self.piece_counts
        copied = self.copied
        expected = np.where(copied, counts == 1, np.where(self.match == Match.PIECES, counts > 1, counts == 0))
        if not expected.all():
            token = int(np.argmin(expected))
            found = f"{Match(self.match[token]).name} with {counts[token]} pieces"
            raise AlignmentError(f"target id {token} is {found}: a copy has 1, a decomposition more, others none")
        if len(self.pieces) != self.offsets[-1]:
            raise AlignmentError(f"{len(self.pieces)} pieces are stored, the offsets end at {self.offsets[-1]}")
        if len(self.pieces) and not 0 <= self.pieces.min() <= self.pieces.max() < self.source_size:
            raise AlignmentError(f"piece ids must be in [0, {self.source_size}), found up to {self.pieces.max()}")

    @property
    def target_size(self) -> int:
        """V, the highest target id + 1."""
        return len(self.match)

    @property
    def copied(self) -> np.ndarray:
        """bool [V]: target ids that correspond to exactly one source id."""
        return np.isin(self.match, (Match.BYTES, Match.ROLE, Match.STRING))

    @property
    def piece_counts(self) -> np.ndarray:
        """int64 [V]: number of source ids of each target id."""
        return np.diff(self.offsets)

    def pieces_of(self, target_id: int) -> np.ndarray:
        """int32: the source ids of one target id."""
        return self.pieces[self.offsets[target_id] : self.offsets[target_id + 1]]

    def save(self, path: Path) -> None:
        """Write an ``.npz`` file; the same alignment gives the same bytes."""
        np.savez(path, **asdict(self))

    @classmethod
    def load(cls, path: Path) -> VocabAlignment:
        """Read what ``save`` wrote.

        Raises:
            AlignmentError: the file is not an alignment, or a damaged one.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                values = {field.name: file[field.name] for field in fields(cls)}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise AlignmentError(f"{path} is no vocabulary alignment: {error}. Run the align stage again.") from None
        return cls(**{name: value if value.ndim else value.item() for name, value in values.items()})


def align_vocabularies(
    source: ByteView,
    target: ByteView,
    *,
    merges: Merges | None = None,
    source_roles: Roles | None = None,
    target_roles: Roles | None = None,
) -> VocabAlignment:
    """Find for every target id the source ids it is made from.

    A special token is matched by role, then by string; it is never taken for text. A token of text is matched by its
    bytes, then decomposed into source tokens whose bytes concatenate to its own. Where a special token has several
    roles that the source gives to different tokens, its first role decides.

    Args:
        merges: the source's byte-pair merges (``merges_of``), for tokens that the source cannot encode as text;
            without them such tokens become single bytes.
        source_roles, target_roles: special tokens by role.
    """
    segmenter = ByteSegmenter(source, merges or {})
    special = _match_specials(source, target, source_roles or {}, target_roles or {})
    match = np.full(target.vocab_size, Match.NONE, dtype=np.int8)
    rows: list[list[int]] = []
    for token in range(target.vocab_size):
        found, row = special.get(token) or _match_text(segmenter, target.token_bytes(token))
        match[token] = found
        rows.append(row)
    return VocabAlignment(
        match=match,
        offsets=np.cumsum([0, *map(len, rows)], dtype=np.int64),
        pieces=np.array([piece for row in rows for piece in row], dtype=np.int32),
        source_size=source.vocab_size,
        source_fingerprint=source.fingerprint,
        target_fingerprint=target.fingerprint,
    )


def _match_text(segmenter: ByteSegmenter, token_bytes: bytes | None) -> tuple[Match, list[int]]:
    """The match of a token of text; special tokens and gaps in the ids have no bytes and match nothing here."""
    if not token_bytes:
        return Match.NONE, []
    same = segmenter.lookup(token_bytes)
    if same is not None:
        return Match.BYTES, [same]
    pieces = segmenter.segment(token_bytes)
    return (Match.PIECES, pieces) if pieces else (Match.NONE, [])


def _match_specials(
    source: ByteView, target: ByteView, source_roles: Roles, target_roles: Roles
) -> dict[int, tuple[Match, list[int]]]:
    """The matches of the target's special tokens. The best reason is written last."""
    source_ids = {string: token for token, string in source.special_tokens.items()}
    matches = {
        token: (Match.STRING, [source_ids[string]])
        for token, string in target.special_tokens.items()
        if string in source_ids
    }
    for role, token in reversed(target_roles.items()):
        if role in source_roles and token in target.special_tokens:
            matches[token] = (Match.ROLE, [source_roles[role]])
    return matches


def describe(alignment: VocabAlignment, source: ByteView, target: ByteView) -> dict[str, Any]:
    """What a person wants to know of an alignment, as plain JSON values."""
    counts = {match.name.lower(): int((alignment.match == match).sum()) for match in Match}
    present = target.kinds != TokenKind.MISSING
    decomposed = alignment.piece_counts[alignment.match == Match.PIECES]
    unmatched = np.flatnonzero(present & (alignment.match == Match.NONE))
    return {
        "source_size": alignment.source_size,
        "target_size": alignment.target_size,
        "target_tokens": int(present.sum()),
        "matches": counts,
        "coverage": 1.0 - len(unmatched) / max(int(present.sum()), 1),
        "mean_pieces": float(decomposed.mean()) if len(decomposed) else 0.0,
        "unmatched_tokens": {token: _spelling(target, token) for token in unmatched.tolist()},
        "digit_scheme": {"source": source.digit_scheme, "target": target.digit_scheme},
        "digit_schemes_clash": source.digit_scheme != target.digit_scheme,
        "source_fingerprint": alignment.source_fingerprint,
        "target_fingerprint": alignment.target_fingerprint,
    }


def _spelling(view: ByteView, token: int) -> str:
    """A token in print: the string of a special one, otherwise its text with undecodable bytes escaped."""
    return view.special_tokens.get(token) or (view.token_bytes(token) or b"").decode(errors="backslashreplace")
