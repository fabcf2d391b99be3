"""Two vocabularies matched by canonical bytes: which tokens of a source make each token of a target.

Rules and their order: embedding_init.md §0.2 and §0.3.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from enum import IntEnum
from functools import cached_property
from pathlib import Path

import numpy as np

from alignment.byte_models import ByteModel
from alignment.byte_view import ByteView
from alignment.folding import Fold, fold_bytes, folded_index, lower_cases
from alignment.segmentation import ByteSegmenter
from alignment.special_tokens import Roles, same_role, same_string, similar_role
from alignment.token_index import TokenIndex
from alignment.token_table import TokenKind


class Match(IntEnum):
    """How a target token is made from source tokens."""

    NONE = 0  # nothing in the source corresponds to it
    BYTES = 1  # one source token spells the same bytes
    ROLE = 2  # one source token has the same role, or one that stands in for it
    STRING = 3  # one source token has the same string, and at least one of the two is special
    PIECES = 4  # several source tokens spell it together
    OVERRIDE = 5  # the user named the source token
    BYTE_FALLBACK = 6  # one source token spells the same byte, and just one of the two is a byte-fallback token
    FOLDED = 7  # one source token spells the same but for what the user said to overlook


class AlignmentError(ValueError):
    """A vocabulary alignment is damaged or does not fit what it is used with."""


Copies = dict[int, tuple[Match, int]]
"""Target id -> how it was matched and the source id it is a copy of."""


@dataclass(frozen=True)
class VocabAlignment:
    """For each target id the source ids it is made from, as rows of a sparse matrix (CSR).

    V is the target's vocabulary size. ``pieces[offsets[t]:offsets[t + 1]]`` are the source ids of target id t: one
    for a copy, several in text order for a decomposition, none where nothing corresponds.

    Attributes:
        match: int8 [V], a ``Match`` for each target id.
        offsets: int64 [V + 1].
        pieces: int32 [offsets[V]].
        source_size: number of source ids that a piece may have: those of the tokenizer, or those that have a row.
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
        if not np.isin(self.match, list(Match)).all():
            raise AlignmentError(f"match holds kinds that do not exist: {sorted({*self.match.tolist()} - {*Match})}")
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
        return ~np.isin(self.match, (Match.NONE, Match.PIECES))

    @property
    def piece_counts(self) -> np.ndarray:
        """int64 [V]: number of source ids of each target id."""
        return np.diff(self.offsets)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the whole alignment: equal fingerprints make equal rows."""
        digest = hashlib.sha256()
        for array in (self.match, self.offsets, self.pieces):
            digest.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
        digest.update(f"{self.source_size} {self.source_fingerprint} {self.target_fingerprint}".encode())
        return digest.hexdigest()

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
    model: ByteModel | None = None,
    source_roles: Roles | None = None,
    target_roles: Roles | None = None,
    override: Mapping[str, str | int] | None = None,
    fold: Collection[Fold] = (),
    source_rows: int | None = None,
) -> VocabAlignment:
    """Find for every target id the source ids it is made from.

    The first of these that finds something decides (embedding_init.md §0.2): what the user says; for special tokens
    the same role, the same string, then a role that stands in for theirs; for text the same bytes, the same byte as a
    byte-fallback token, the same but for ``fold``, then source tokens whose bytes concatenate to its own. A special
    token is never taken for text. A token of text prefers one of its own kind, so that the byte-fallback token
    ``<0x41>`` and the piece ``A`` both find their own.

    Args:
        model: the source tokenizer's own model on bytes (``byte_model``), for tokens that it cannot encode as text.
        source_roles, target_roles: special tokens by role (``special_roles``).
        override: target token -> source token, each as ``TokenIndex.named`` takes it.
        fold: what to overlook where no token has the same bytes.
        source_rows: rows of the source model's matrix; source ids from there on have no row and are never used.

    Raises:
        AlignmentError: just one tokenizer lower-cases its text, and ``fold`` does not say to overlook case.
        UnknownToken: ``override`` names a token that does not exist.
    """
    _check_case(source, target, fold)
    index = TokenIndex(source, source_rows)
    copies = _match_specials(index, target, source_roles or {}, target_roles or {})
    copies |= _match_bytes(index, target, set(copies))
    if fold:
        copies |= _match_folded(index, target, set(copies), fold)
    copies |= _match_override(index, target, override or {})

    spelled = [token for token in np.flatnonzero(target.byte_lengths).tolist() if token not in copies]
    segmenter = ByteSegmenter(index, model)
    pieces = dict(zip(spelled, segmenter.segment([target.token_bytes(token) or b"" for token in spelled]), strict=True))

    match = np.full(target.vocab_size, Match.NONE, dtype=np.int8)
    rows: list[list[int]] = [[] for _ in range(target.vocab_size)]
    for token, (reason, copied) in copies.items():
        match[token], rows[token] = reason, [copied]
    for token, row in pieces.items():
        match[token], rows[token] = Match.PIECES if row else Match.NONE, row
    return VocabAlignment(
        match=match,
        offsets=np.cumsum([0, *map(len, rows)], dtype=np.int64),
        pieces=np.array([piece for row in rows for piece in row], dtype=np.int32),
        source_size=index.rows,
        source_fingerprint=source.fingerprint,
        target_fingerprint=target.fingerprint,
    )


def _check_case(source: ByteView, target: ByteView, fold: Collection[Fold]) -> None:
    lowers, keeps = (source, target) if lower_cases(source) else (target, source)
    if "case" not in fold and lower_cases(lowers) and not lower_cases(keeps):
        raise AlignmentError(
            f"tokenizer {lowers.name!r} lower-cases all text and {keeps.name!r} does not: its token 'the' also stands "
            "for 'The' and 'THE', so equal bytes are not equal tokens. Say `fold: [case]` to match them all the same."
        )


def _match_specials(index: TokenIndex, target: ByteView, source_roles: Roles, target_roles: Roles) -> Copies:
    roles = same_role(index, target, source_roles, target_roles)
    strings = same_string(index, target)
    stand_ins = similar_role(index, target, source_roles, target_roles)
    reasons = ((Match.ROLE, stand_ins), (Match.STRING, strings), (Match.ROLE, roles))  # the last one written stays
    return {token: (reason, found) for reason, matches in reasons for token, found in matches.items()}


def _match_bytes(index: TokenIndex, target: ByteView, decided: Collection[int]) -> Copies:
    copies: Copies = {}
    occurrences: Counter[tuple[int, bytes]] = Counter()
    kinds = target.kinds.tolist()
    for token in np.flatnonzero(target.byte_lengths).tolist():
        data, kind = target.token_bytes(token) or b"", kinds[token]
        # Of several tokens with the same bytes the second finds the second, so that a vocabulary finds itself.
        occurrence = occurrences[kind, data]
        occurrences[kind, data] += 1
        if token in decided:
            continue
        same_kind = index.of_kind(kind, data)
        if same_kind:
            copies[token] = (Match.BYTES, same_kind[min(occurrence, len(same_kind) - 1)])
        elif (found := index.find(data)) is not None:
            fallback = TokenKind.BYTE_FALLBACK in (kind, index.view.kinds[found])
            copies[token] = (Match.BYTE_FALLBACK if fallback else Match.BYTES, found)
    return copies


def _match_folded(index: TokenIndex, target: ByteView, decided: Collection[int], fold: Collection[Fold]) -> Copies:
    folded_ids = folded_index(index, fold)
    copies: Copies = {}
    for token in np.flatnonzero(np.isin(target.kinds, (TokenKind.TEXT, TokenKind.ADDED))).tolist():
        folded = fold_bytes(target.token_bytes(token) or b"", fold)
        if token not in decided and folded in folded_ids:
            copies[token] = (Match.FOLDED, folded_ids[folded])
    return copies


def _match_override(index: TokenIndex, target: ByteView, override: Mapping[str, str | int]) -> Copies:
    if not override:
        return {}
    target_index = TokenIndex(target)
    return {target_index.named(ours): (Match.OVERRIDE, index.named(theirs)) for ours, theirs in override.items()}
