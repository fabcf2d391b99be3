"""Cards of tokenizers side by side as sections of sentences and tables, which the text and the page both show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from alignment.card.card import SCHEMA_VERSION, Card, TextReport
from alignment.card.efficiency import ALPHA
from alignment.card.taxonomy import TOKEN_CLASSES
from stages.auditing.formats import NOTHING, count, number, percent
from stages.auditing.section import Column, Row, Section

_DIGITS = {
    "single": "every digit",
    "up_to_3_left": "threes from the left",
    "up_to_3_right": "threes from the right",
    "free": "as merged",
    "none": "cannot encode digits",
}
_BRIEF_SHARE = 0.001
"""Scripts with less of every vocabulary than this are left to the page."""
_BRIEF_EXAMPLES = 8


def sections(cards: Sequence[Card], *, before: str | None, built_in: bool) -> tuple[Section, ...]:
    """All sections, in the order in which they are read.

    Args:
        before: the card that the others are compared with: what a model had before its tokenizer was changed.
        built_in: the texts are the small ones that are shipped.
    """
    return (
        _vocabulary(cards),
        _specials(cards),
        _classes(cards),
        _scripts(cards, before),
        _texts(cards, built_in),
        _text_scripts(cards),
        _languages(cards),
        _lexicon(cards),
    )


def figures(cards: Sequence[Card]) -> list[tuple[str, str]]:
    """What is looked for first."""
    return [(f"{card.name}: bytes per token", number(card.text.measures["bytes_per_token"], 3)) for card in cards]


def to_json(cards: Sequence[Card], *, before: str | None, built_in: bool) -> dict[str, Any]:
    """What ``pipeline card --json`` prints."""
    return {
        "schema_version": SCHEMA_VERSION,
        "against": before,
        "built_in_texts": built_in,
        "cards": [card.to_json() for card in cards],
        "script_share_changes": {
            card.name: _changes(_named(cards, before), card) for card in cards if before not in (None, card.name)
        },
    }


def _named(cards: Sequence[Card], name: str | None) -> Card:
    return next(card for card in cards if card.name == name)


def _changes(before: Card, after: Card) -> dict[str, float]:
    """Script -> how much its share of the vocabulary grew."""
    old, new = before.taxonomy.script_shares, after.taxonomy.script_shares
    return {script: new.get(script, 0.0) - old.get(script, 0.0) for script in dict.fromkeys([*old, *new])}


def _vocabulary(cards: Sequence[Card]) -> Section:
    facts: dict[str, Callable[[Card], str]] = {
        "ids": lambda card: count(card.inventory.vocab_size),
        "ids that do not exist": lambda card: count(card.inventory.missing),
        "special tokens": lambda card: count(len(card.inventory.special)),
        "reserved or unused by name": lambda card: count(card.inventory.reserved),
        "added tokens": lambda card: count(card.inventory.added),
        "byte-fallback tokens": lambda card: count(card.inventory.byte_fallback),
        "single bytes, of 256": lambda card: count(card.inventory.single_bytes),
        "parts of characters": lambda card: count(card.inventory.parts_of_characters),
        "longest token, bytes": lambda card: count(card.inventory.longest_token),
        "unreachable tokens": lambda card: count(card.inventory.unreachable + card.inventory.unreachable_parts),
        "numbers are cut": lambda card: _DIGITS[card.digit_scheme],
        "spells every text": lambda card: "yes" if card.exact else "no",
    }
    sentences = [
        f"{card.name} does not spell every text: {'; '.join(card.inexact_reasons)}." for card in cards if not card.exact
    ]
    for card in cards:
        if examples := card.inventory.unreachable_examples:
            more = ", ..." if len(examples) > _BRIEF_EXAMPLES else ""
            sentences.append(
                f"Encoding their own text never gives these tokens of {card.name}: "
                f"{', '.join(examples[:_BRIEF_EXAMPLES])}{more}."
            )
    rows = [(name, *(fact(card) for card in cards)) for name, fact in facts.items()]
    return _section("vocabulary", "Vocabulary", "measure", cards, rows, sentences)


def _specials(cards: Sequence[Card]) -> Section:
    details = tuple(
        f"{card.name}: "
        + (
            ", ".join(
                f"{token.string} {token.id}" + (f" ({', '.join(token.roles)})" if token.roles else "")
                for token in card.inventory.special
            )
            or "no special tokens"
        )
        for card in cards
    )
    return Section("specials", "Special tokens", (), details)


def _classes(cards: Sequence[Card]) -> Section:
    rows = [
        (name, *(percent(card.taxonomy.classes[name] / card.taxonomy.entries, 2) for card in cards))
        for name in TOKEN_CLASSES
    ]
    return _section("classes", "Classes of tokens (Qtok), of the vocabulary", "class", cards, rows)


def _scripts(cards: Sequence[Card], before: str | None) -> Section:
    shares = {card.name: card.taxonomy.script_shares for card in cards}
    scripts = _by_size(shares.values())
    changed = [card for card in cards if before not in (None, card.name)]
    columns = (*_columns("script", cards), *(Column(f"{card.name} change") for card in changed))
    changes = {card.name: _changes(_named(cards, before), card) for card in changed}
    rows = {
        script: (
            script,
            *(percent(shares[card.name].get(script, 0.0), 2) for card in cards),
            *(f"{100 * changes[card.name].get(script, 0.0):+.2f}" for card in changed),
        )
        for script in scripts
    }
    brief = tuple(row for script, row in rows.items() if scripts[script] >= _BRIEF_SHARE)
    sentences = ("Tokens of letters of one script alone. Changes are in percentage points.",) if changed else ()
    title = "Scripts, of the vocabulary"
    return Section("scripts", title, sentences, (), columns, tuple(rows.values()), brief)


def _texts(cards: Sequence[Card], built_in: bool) -> Section:
    columns = (
        Column("text", numeric=False),
        Column("tokenizer", numeric=False),
        Column("bytes"),
        Column("bytes per token"),
        Column("tokens per byte", meaning="forward passes per byte that a model writes"),
        Column("characters per token", brief=False),
        Column("fertility", meaning="tokens per word; a word is a run of letters and digits"),
        Column("whole words", meaning="share of the words that are one token (STRR)"),
        Column("coverage", meaning="share of the bytes that tokens spell as they are"),
        Column("Rényi efficiency", meaning=f"Rényi entropy of order {ALPHA} over that of equally frequent tokens"),
        Column("vocabulary used", meaning="share of the tokens of text that occur", brief=False),
    )
    rows = [_text(name, card.name, card.texts[name]) for name in cards[0].texts for card in cards]
    rows += [_text("all", card.name, card.text) for card in cards] if len(cards[0].texts) > 1 else []
    sentences = (
        ("The texts are the built-in samples, a few lines each: give your own with --text to compare languages.",)
        if built_in
        else ()
    )
    return Section("text", "What the tokenizers make of text", sentences, (), columns, tuple(rows), tuple(rows))


def _text(name: str, tokenizer: str, report: TextReport) -> Row:
    measures = report.measures
    return (
        name,
        tokenizer,
        count(report.counts["bytes"]),
        number(measures["bytes_per_token"], 3),
        number(measures["tokens_per_byte"], 3),
        number(measures["characters_per_token"], 3),
        number(measures["fertility"], 2),
        percent(measures["single_token_retention"]),
        percent(measures["coverage"], 2),
        number(report.renyi_efficiency, 3),
        percent(report.vocabulary_used),
    )


def _text_scripts(cards: Sequence[Card]) -> Section:
    found = [card.bytes_per_token_by_script for card in cards]
    rows = [
        (script, *(number(values.get(script), 3) for values in found))
        for script in dict.fromkeys(script for values in found for script in values)
    ]
    return _section("text-scripts", "Bytes per token of words, by script", "script", cards, rows)


def _languages(cards: Sequence[Card]) -> Section:
    shares = [card.language_shares for card in cards]
    rows = [(name, *(percent(values.get(name, 0.0), 2) for values in shares)) for name in _by_size(shares)]
    sentences = ("Of the tokens that occur in the texts, each in equal parts for the texts that it occurs in.",)
    return _section("languages", "Vocabulary by text", "text", cards, rows, sentences)


def _lexicon(cards: Sequence[Card]) -> Section:
    if not any(card.lexicon for card in cards):
        return Section("lexicon", "Tokens that are words or morphemes")
    facts = {
        "different tokens": lambda use: count(use.types),
        "in the lexicon, of different tokens": lambda use: percent(use.valid_types, 2),
        "in the lexicon, of all tokens": lambda use: percent(use.valid_tokens, 2),
        "roots and affixes, of different tokens": lambda use: percent(use.pure_types, 2),
        "roots and affixes, of all tokens": lambda use: percent(use.pure_tokens, 2),
    }
    rows = [
        (name, *(fact(card.lexicon) if card.lexicon else NOTHING for card in cards)) for name, fact in facts.items()
    ]
    sentences = ("For information alone: over published tokenizers neither goes with a model's quality.",)
    return _section("lexicon", "Tokens that are words or morphemes", "measure", cards, rows, sentences)


def _by_size(shares: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Name -> its greatest share anywhere, the greatest first."""
    greatest: dict[str, float] = {}
    for values in shares:
        for name, share in values.items():
            greatest[name] = max(share, greatest.get(name, 0.0))
    return dict(sorted(greatest.items(), key=lambda item: (-item[1], item[0])))


def _columns(first: str, cards: Sequence[Card]) -> tuple[Column, ...]:
    return (Column(first, numeric=False), *(Column(card.name) for card in cards))


def _section(
    identity: str, title: str, first: str, cards: Sequence[Card], rows: Sequence[Row], sentences: Sequence[str] = ()
) -> Section:
    """A table with a column for each tokenizer."""
    return Section(identity, title, tuple(sentences), (), _columns(first, cards), tuple(rows), tuple(rows))
