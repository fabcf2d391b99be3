"""Cards and inferred mixtures, from files to what is printed: text for people, a page, plain values for programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.byte_view import InexactEncoding
from alignment.card.card import make_card
from stages.auditing.formats import size
from stages.auditing.page import render_page
from stages.auditing.table import render_text
from stages.cards import mixtures, sections
from stages.cards.reading import open_tokenizer, read_lexicon, read_texts
from stages.cards.samples import SAMPLES
from stages.stage import StageError

Say = Callable[[str], None]


@dataclass(frozen=True)
class CardReport:
    """The same findings three times: as text, as an HTML page, as plain JSON values."""

    text: str
    page: str
    values: dict[str, Any]


def card_report(
    tokenizers: Mapping[str, Path], *, before: str | None, texts: Mapping[str, Path], lexicon: Path | None, say: Say
) -> CardReport:
    """The cards of tokenizers side by side.

    Args:
        tokenizers: name -> its directory or file.
        before: the one that the others are compared with.
        texts: name -> file or directory; none for the built-in samples.
        lexicon: see ``stages.cards.reading.read_lexicon``.
        say: told what is going on.

    Raises:
        StageError: something cannot be read or understood.
    """
    documents = read_texts(texts) if texts else SAMPLES
    words = None if lexicon is None else read_lexicon(lexicon)
    cards = []
    for name, path in tokenizers.items():
        say(f"reading {name}")
        opened = open_tokenizer(path, name)
        try:
            cards.append(make_card(opened.tokenizer, opened.view, documents, lexicon=words))
        except InexactEncoding as error:  # lone surrogates
            raise StageError(str(error)) from None
    parts = sections.sections(cards, before=before, built_in=not texts)
    heading = f"Tokenizers: {', '.join(tokenizers)}, on {_amount(documents)}"
    return CardReport(
        text=render_text(heading, parts, page="the page (--html)"),
        page=render_page(f"Card: {', '.join(tokenizers)}", heading, sections.figures(cards), parts),
        values=sections.to_json(cards, before=before, built_in=not texts),
    )


def mixture_report(name: str, path: Path, categories: Mapping[str, Path], *, max_merges: int, say: Say) -> CardReport:
    """The mixture of text that a tokenizer was trained on.

    Args:
        name, path: of the tokenizer.
        categories: name -> file or directory of a sample.
        max_merges: use its first so many merges.
        say: told what is going on.

    Raises:
        StageError: something cannot be read or understood, or the samples cannot tell anything.
    """
    documents = read_texts(categories)
    mixture = mixtures.infer(open_tokenizer(path, name), documents, max_merges=max_merges, watch=say)
    heading = f"Mixture of {name}, from {_amount(documents)}"
    parts = [mixtures.section(mixture)]
    shares = [(category, f"{share.estimate:.1%} of the bytes") for category, share in mixture.bytes.items()]
    return CardReport(
        text=render_text(heading, parts),
        page=render_page(f"Mixture: {name}", heading, shares, parts),
        values=mixtures.to_json(name, mixture, documents),
    )


def _amount(texts: Mapping[str, Any]) -> str:
    total = sum(len(document.encode(errors="replace")) for documents in texts.values() for document in documents)
    return f"{size(total)} in {len(texts)} text{'' if len(texts) == 1 else 's'}"
