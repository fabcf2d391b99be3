"""What must hold of a model before its numbers mean anything, and which numbers a failed check falsifies.

Every check is made of every model and recorded. A failed one denies the model what it falsifies: those sections list
the model as skipped, with the reason; the others are made all the same (evaluation.md §16).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from alignment.byte_view import ByteView, InexactEncoding
from stages.evaluation.core import ABILITIES, Ability
from stages.evaluation.windows import Document
from stages.stage import StageError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from stages.evaluation.text_start import TextStart

MOST_CROSSINGS = 0.5
"""Share of word ends inside a token from which most continuations of ordinary prompts have no score."""

_SCORING: frozenset[Ability] = frozenset({"score_texts", "score_continuations"})


@dataclass(frozen=True)
class Check:
    """One check of one model.

    Attributes:
        found: what was found, plain data.
        falsifies: what the model could not be asked any more if the check had failed.
        failed: why it failed; None if it passed.
    """

    name: str
    found: Mapping[str, Any]
    falsifies: tuple[Ability, ...]
    failed: str | None = None


@dataclass(frozen=True)
class Preflight:
    """All checks of one model."""

    checks: tuple[Check, ...]

    def denied(self, relies_on: frozenset[Ability]) -> str | None:
        """Why a section that relies on these abilities must not be asked of the model; None if it may be."""
        reasons = [
            f"preflight, {check.name}: {check.failed}"
            for check in self.checks
            if check.failed is not None and relies_on & set(check.falsifies)
        ]
        return "; ".join(reasons) or None

    def to_json(self) -> dict[str, Any]:
        """Plain containers."""
        return {check.name: {k: v for k, v in asdict(check).items() if k != "name"} for check in self.checks}

    @classmethod
    def from_json(cls, value: Mapping[str, Mapping[str, Any]]) -> Self:
        """What ``to_json`` gave."""
        return cls(
            tuple(
                Check(name, check["found"], tuple(check["falsifies"]), check["failed"]) for name, check in value.items()
            )
        )


def changed_documents(view: ByteView, documents: Sequence[Document]) -> dict[str, str]:
    """Ids of the documents that a tokenizer does not spell, and where it departs from them."""
    found = {}
    for document in documents:
        try:
            view.encode(document.text)
        except InexactEncoding as error:
            found[document.id] = str(error)
    return found


def lost_domains(documents: Sequence[Document], changed: Mapping[str, str]) -> list[str]:
    """Domains more than half of whose documents a tokenizer changes.

    A model that loses none is compared with the others on the documents that all of them spell. One that loses some
    would take those domains from everybody, so it is not scored on texts.
    """
    domains = dict.fromkeys(document.domain for document in documents)
    members = {domain: [document for document in documents if document.domain == domain] for domain in domains}
    return [domain for domain, texts in members.items() if 2 * sum(text.id in changed for text in texts) > len(texts)]


def examine(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    view: ByteView,
    start: TextStart,
    documents: Sequence[Document],
    changed: Mapping[str, str],
) -> Preflight:
    """All checks of one model on the evaluation texts; ``changed`` is what ``changed_documents`` found."""
    return Preflight(
        (
            round_trip(view, documents, changed),
            text_start(tokenizer, view, start),
            boundary_crossings(view, [document.text for document in documents if document.id not in changed]),
            special_tokens(model, view),
            vocabulary(view),
            *embedding_rows(model, view, start),
        )
    )


def round_trip(view: ByteView, documents: Sequence[Document], changed: Mapping[str, str]) -> Check:
    """Tokens spell the evaluation texts: else nats are of other bytes than those they are divided by."""
    lost = lost_domains(documents, changed)
    failed = f"the tokenizer changes more than half of the documents of {', '.join(lost)}" if lost else None
    found = {"documents": len(documents), "changed": len(changed), "may change": list(view.inexact_reasons)}
    return Check("round trip", found, ("score_texts",), failed)


def text_start(tokenizer: PreTrainedTokenizerBase, view: ByteView, start: TextStart) -> Check:
    """What stands before and after a text: a doubled BOS is a context that the model has never seen."""
    ids = tokenizer("a")["input_ids"]
    behind = []
    while ids and ids[-1] in view.special_tokens:
        behind.insert(0, view.special_tokens[ids.pop()])
    found = {"before": start.describe(view), "tokenizer adds behind": behind, "counted as text": "neither"}
    doubled = len(set(start.prefix_ids)) < len(start.prefix_ids)
    failed = f"the tokenizer puts {start.describe(view)}: the same token twice" if doubled else None
    return Check("text start", found, tuple(sorted(ABILITIES)), failed)


def boundary_crossings(view: ByteView, texts: Sequence[str]) -> Check:
    """How many word ends lie inside a token: a continuation that starts at one has no score of its own."""
    words = inside = 0
    for text in texts:
        ends = np.array(_word_ends(text), dtype=np.int64)
        words += len(ends)
        inside += int((~np.isin(ends, view.encode(text).byte_ends)).sum())
    failed = None
    if words and inside > MOST_CROSSINGS * words:
        failed = f"{inside} of {words} word ends lie inside a token, so most continuations have no score of their own"
    return Check("boundary crossings", {"word ends": words, "inside a token": inside}, ("score_continuations",), failed)


def _word_ends(text: str) -> list[int]:
    """Byte positions at which a word ends before white space."""
    ends = []
    position = 0
    for before, after in pairwise(text):
        position += len(before.encode())
        if after.isspace() and not before.isspace():
            ends.append(position)
    return ends


def special_tokens(model: nn.Module, view: ByteView) -> Check:
    """The inventory of special tokens, and whether the model's end of text is one: else generation runs past it."""
    declared = model.config.get_text_config().eos_token_id
    ends = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    unknown = [token for token in ends if token not in view.special_tokens]
    found = {
        "count": len(view.special_tokens),
        "tokens": list(view.special_tokens.values()),
        "end of text": [view.special_tokens.get(token, f"id {token}") for token in ends],
    }
    failed = None
    if unknown:
        failed = f"the model ends texts with id {unknown[0]}, which is no special token of its tokenizer"
    return Check("special tokens", found, ("generate",), failed)


def vocabulary(view: ByteView) -> Check:
    """Which vocabulary it is: rows with one hash read the same tokens. Nothing can fail."""
    found = {"size": view.vocab_size, "missing ids": len(view.missing_ids), "hash": view.fingerprint}
    return Check("vocabulary", found, ())


def embedding_rows(model: nn.Module, view: ByteView, start: TextStart) -> tuple[Check, ...]:
    """A row for every id, and an output head that we compute as the model does."""
    from stages.evaluation.scoring import checked_head

    rows = {
        "input rows": model.get_input_embeddings().weight.shape[0],
        "output rows": model.get_output_embeddings().weight.shape[0],
    }
    short = [f"{count} {name}" for name, count in rows.items() if count < view.vocab_size]
    failed = f"the tokenizer has {view.vocab_size} ids, the model only {' and '.join(short)}" if short else None
    found = {**rows, "ids": view.vocab_size}
    enough = Check("embedding rows", found, tuple(sorted(ABILITIES)), failed)
    if failed:
        return (enough,)
    try:
        checked_head(model, view.vocab_size, [*start.start_ids, *view.encode(" the 1", exact=False).ids.tolist()])
    except StageError as error:
        return enough, Check("output head", {}, tuple(sorted(_SCORING)), str(error))
    return enough, Check("output head", {"logits": "as the model's own"}, tuple(sorted(_SCORING)))
