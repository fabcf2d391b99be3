"""The card of a tokenizer: what its vocabulary holds and what it makes of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from alignment.byte_models import byte_model
from alignment.byte_view import ByteView
from alignment.card.efficiency import ALPHA, renyi_efficiency, renyi_entropy
from alignment.card.lexicon import Lexicon, LexiconUse, lexicon_use
from alignment.card.reachability import reachability
from alignment.card.taxonomy import Taxonomy, language_shares, taxonomy
from alignment.card.usage import Usage, usage
from alignment.special_tokens import special_roles
from alignment.token_flags import token_flags
from alignment.token_table import TokenKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SCHEMA_VERSION = 1
EXAMPLES = 20
"""Unreachable tokens that a card names."""


@dataclass(frozen=True)
class SpecialToken:
    """A control token: its id, its string, and the roles that the tokenizer's configuration gives it."""

    id: int
    string: str
    roles: tuple[str, ...]


@dataclass(frozen=True)
class Inventory:
    """What is in the vocabulary beside ordinary tokens, and what of it is of no use.

    Attributes:
        vocab_size: highest id + 1.
        missing: ids below that do not exist.
        special: all control tokens, by id.
        reserved: tokens named as unused or reserved.
        added: tokens added to the vocabulary that are not special.
        byte_fallback: single bytes that stand in where no other token fits.
        single_bytes: how many of the 256 bytes are a token; of 256, any text is spelled.
        parts_of_characters: tokens that are no valid UTF-8.
        longest_token: in bytes.
        unreachable: tokens of text that no encoding of their text gives; ``unreachable_examples`` are the first.
        unreachable_parts: parts of characters that the merges never make.
        reachability_tested: how many tokens ``unreachable`` and ``unreachable_parts`` are out of.
    """

    vocab_size: int
    missing: int
    special: tuple[SpecialToken, ...]
    reserved: int
    added: int
    byte_fallback: int
    single_bytes: int
    parts_of_characters: int
    longest_token: int
    unreachable: int
    unreachable_parts: int
    reachability_tested: int
    unreachable_examples: tuple[str, ...]


@dataclass(frozen=True)
class TextReport:
    """What the tokenizer makes of one text, or of all of them.

    Attributes:
        counts: documents, bytes, characters, words, tokens, ... of ``TextUse``.
        measures: its quotients by name; None where there is nothing to divide by.
        vocabulary_used: share of the vocabulary's tokens of text that occur.
        renyi_entropy: in bits, of order 2.5.
        renyi_efficiency: of the vocabulary's tokens of text; None, as the entropy, of no token.
    """

    counts: Mapping[str, int]
    measures: Mapping[str, float | None]
    vocabulary_used: float
    renyi_entropy: float | None
    renyi_efficiency: float | None


@dataclass(frozen=True)
class Card:
    """All of it.

    Attributes:
        digit_scheme: how it cuts numbers.
        exact: every text is spelled by its tokens; if not, ``inexact_reasons`` say why.
        text: of all texts together; ``texts`` of each by name.
        bytes_per_token_by_script: of the words of all texts.
        language_shares: name of a text -> share of the vocabulary that occurs in the texts, a token in equal parts for
            the texts that it occurs in.
        lexicon: None where no lexicon was given, or no word.
    """

    name: str
    fingerprint: str
    digit_scheme: str
    exact: bool
    inexact_reasons: tuple[str, ...]
    inventory: Inventory
    taxonomy: Taxonomy
    text: TextReport
    texts: Mapping[str, TextReport]
    bytes_per_token_by_script: Mapping[str, float]
    language_shares: Mapping[str, float]
    lexicon: LexiconUse | None

    def to_json(self) -> dict[str, Any]:
        """Plain containers, fields named as here."""
        return asdict(self) | {"script_shares": self.taxonomy.script_shares}


def make_card(
    tokenizer: PreTrainedTokenizerBase,
    view: ByteView,
    texts: Mapping[str, Sequence[str]],
    *,
    lexicon: Lexicon | None = None,
) -> Card:
    """The card of a tokenizer.

    Args:
        view: the same tokenizer as bytes; its name is the card's.
        texts: name (a language, a domain) -> documents.
        lexicon: what the tokens of all texts are looked up in.

    Raises:
        InexactEncoding: a text has lone surrogates and thus no bytes.
    """
    used = {name: usage(view, documents) for name, documents in texts.items()}
    total = sum(used.values(), start=usage(view, []))
    return Card(
        name=view.name,
        fingerprint=view.fingerprint,
        digit_scheme=view.digit_scheme,
        exact=view.exact,
        inexact_reasons=tuple(view.inexact_reasons),
        inventory=_inventory(tokenizer, view),
        taxonomy=taxonomy(view),
        text=text_report(view, total),
        texts={name: text_report(view, part) for name, part in used.items()},
        bytes_per_token_by_script=total.bytes_per_token_by_script,
        language_shares=_language_shares(used),
        lexicon=None if lexicon is None else _lexicon_use(view, total.frequencies, lexicon),
    )


def text_report(view: ByteView, used: Usage) -> TextReport:
    """The numbers of a text that was counted."""
    text_tokens = int((view.byte_lengths > 0).sum())
    counts = used.frequencies[view.byte_lengths > 0]
    counted = bool(counts.any())
    return TextReport(
        counts=asdict(used.use),
        measures=used.use.measures,
        vocabulary_used=np.count_nonzero(counts) / max(text_tokens, 1),
        renyi_entropy=renyi_entropy(counts, ALPHA) if counted else None,
        renyi_efficiency=renyi_efficiency(counts, text_tokens, ALPHA) if counted else None,
    )


def _inventory(tokenizer: PreTrainedTokenizerBase, view: ByteView) -> Inventory:
    roles: dict[int, list[str]] = {}
    for role, token in special_roles(tokenizer).items():
        roles.setdefault(token, []).append(role)
    flags = token_flags(view)
    reached = reachability(view, _merging_model(tokenizer, view))
    unreachable = [*reached.unreachable.tolist(), *reached.unreachable_parts.tolist()]
    single = {view.token_bytes(token) for token in np.flatnonzero(view.byte_lengths == 1).tolist()}
    return Inventory(
        vocab_size=view.vocab_size,
        missing=len(view.missing_ids),
        special=tuple(
            SpecialToken(token, string, tuple(roles.get(token, ()))) for token, string in view.special_tokens.items()
        ),
        reserved=int(flags.reserved.sum()),
        added=int(flags.added.sum()),
        byte_fallback=int(flags.byte_fallback.sum()),
        single_bytes=len(single),
        parts_of_characters=int((flags.partial_utf8 & (view.kinds != TokenKind.BYTE_FALLBACK)).sum()),
        longest_token=int(view.byte_lengths.max(initial=0)),
        unreachable=len(reached.unreachable),
        unreachable_parts=len(reached.unreachable_parts),
        reachability_tested=reached.tested,
        unreachable_examples=tuple(_shown(view, token) for token in unreachable[:EXAMPLES]),
    )


def _merging_model(tokenizer: PreTrainedTokenizerBase, view: ByteView) -> Any:
    """The tokenizer's merges on bytes; None where it is no byte-pair encoding."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return byte_model(tokenizer, view) if type(getattr(backend, "model", None)).__name__ == "BPE" else None


def _language_shares(used: Mapping[str, Usage]) -> dict[str, float]:
    if not used:
        return {}
    occurs = np.stack([part.frequencies > 0 for part in used.values()])
    names = list(used)
    tokens = np.flatnonzero(occurs.any(axis=0)).tolist()
    return language_shares([names[row] for row in np.flatnonzero(occurs[:, token])] for token in tokens)


def _lexicon_use(view: ByteView, frequencies: np.ndarray, lexicon: Lexicon) -> LexiconUse | None:
    counts: Counter[str] = Counter()
    for token in np.flatnonzero(frequencies).tolist():
        # A part of a character is no word of any lexicon, whatever stands for its bytes.
        counts[(view.token_bytes(token) or b"").decode(errors="backslashreplace")] += int(frequencies[token])
    return lexicon_use(counts, lexicon)


def _shown(view: ByteView, token: int) -> str:
    return f"{token} {(view.token_bytes(token) or b'').decode(errors='backslashreplace')!r}"
