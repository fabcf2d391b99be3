"""Data-mixture inference for a tokenizer of a file, given files of text: see ``alignment.mixture``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from alignment.mixture import Category, Mixture, MixtureError, infer_mixture
from stages.auditing.formats import percent
from stages.auditing.section import Column, Section
from stages.cards.reading import OpenedTokenizer
from stages.conversion.errors import ConversionError
from stages.stage import StageError
from stages.tokenizer_training.base_bpe import BaseBPE, runs
from stages.tokenizer_training.extend import word_cutter

SCHEMA_VERSION = 1


def infer(
    opened: OpenedTokenizer,
    texts: Mapping[str, Sequence[str]],
    *,
    max_merges: int | None = None,
    watch: Callable[[str], None] = lambda line: None,
) -> Mixture:
    """The mixture of categories that a byte-pair tokenizer was trained on.

    Args:
        texts: category -> documents.

    Raises:
        StageError: it is no byte-pair tokenizer, or the texts cannot tell anything.
    """
    try:
        base = BaseBPE(opened.tokenizer)
    except ConversionError as error:
        raise StageError(f"{error}. Only the merges of byte-pair encoding tell of a mixture.") from None
    categories = {}
    for name, documents in texts.items():
        watch(f"reading {name}")
        categories[name] = category(base, documents, keep_numbers=opened.view.digit_scheme == "single")
    try:
        return infer_mixture(base.merges, categories, max_merges=max_merges, watch=watch)
    except MixtureError as error:
        raise StageError(str(error)) from None


def category(base: BaseBPE, documents: Iterable[str], *, keep_numbers: bool) -> Category:
    """A sample as the trainer of the tokenizer saw it: words of single symbols.

    Args:
        keep_numbers: digits are cut one by one.
    """
    documents = list(documents)
    words: Counter[tuple[str, ...]] = Counter()
    for pre_token, count in base.pre_tokens(documents, word_cutter(base, keep_numbers=keep_numbers)).items():
        # A character that is no symbol of the tokenizer's was no part of any merge.
        for run in runs(symbol if symbol in base.vocabulary else None for symbol in pre_token):
            words[run] += count
    return Category(words, sum(len(text.encode()) for text in documents))


def to_json(name: str, mixture: Mixture, texts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What ``pipeline mixture --json`` prints."""
    sizes = {category: sum(len(text.encode()) for text in documents) for category, documents in texts.items()}
    return {"schema_version": SCHEMA_VERSION, "tokenizer": name, "text_bytes": sizes, **asdict(mixture)}


def section(mixture: Mixture) -> Section:
    """The shares of the categories, and how far to trust them."""
    left_out = f" {mixture.left_out:,} merges occur in no sample and were left out." if mixture.left_out else ""
    sentences = (
        f"From {mixture.merges:,} merges; before {mixture.contradicted:,} of them the samples, so mixed, have another "
        f"pair that is more frequent.{left_out}",
        f"To explain every merge, {percent(mixture.slack, 2)} to {percent(mixture.slack_bound, 2)} of the pairs would "
        "have to be counted otherwise: 0.00% if the samples are the very text that the tokenizer was trained on.",
        "The ranges are of the mixtures that explain the merges best. They do not tell how well the samples stand for "
        "that text.",
    )
    columns = (
        Column("category", numeric=False),
        Column("bytes", meaning="share of the bytes of the training text"),
        Column("at least"),
        Column("at most"),
        Column("pairs", meaning="share of its pairs of neighbouring symbols before the first merge"),
        Column("pairs, at least"),
        Column("pairs, at most"),
    )
    rows = tuple(
        (
            name,
            *(
                percent(value, 2)
                for part in (mixture.bytes[name], pairs)
                for value in (part.estimate, part.low, part.high)
            ),
        )
        for name, pairs in mixture.pairs.items()
    )
    return Section("mixture", "Inferred mixture of the tokenizer's training text", sentences, (), columns, rows, rows)
