"""Unigram language models over pre-tokens written in GPT-2's alphabet of bytes (Kudo 2018)."""

from __future__ import annotations

import io
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import models
from tokenizers.pre_tokenizers import PreTokenizer

from alignment.token_codecs import byte_alphabet

_LONGEST_PIECE = 32
"""In bytes: SentencePiece's 16 characters, of two bytes each."""

_SEED_WORDS = 300_000
_SEEDS = 1_000_000
"""Candidates to start from, as many as SentencePiece starts from, and pre-tokens that they are taken from."""

_UNSEEN = 10.0
"""How much less probable, in nats, a byte is that the text lacks than the least probable piece."""


def unigram(texts: Iterable[str], pre_tokenizer: PreTokenizer, size: int) -> models.Model:
    """A Unigram model with at most ``size`` pieces, all bytes among them, by SentencePiece's trainer.

    Such a model has no unknown characters to fall back from, and a ``▁`` in the text stays one; SentencePiece's own
    models fall back to bytes and read it as a space. The trainer of `tokenizers` gives another model in every run; and
    both trainers, left to find candidates themselves, miss every word that always stands before a cut.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(piece for piece, _ in pre_tokenizer.pre_tokenize_str(text))
    unseen = sorted(byte_alphabet().keys() - set("".join(counts)))
    pieces = _train(counts, size - len(unseen))
    lowest = min(score for _, score in pieces)
    return models.Unigram([*pieces, *((character, lowest - _UNSEEN) for character in unseen)])


def seeds(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """The pieces to start from, with their frequencies: all characters, and what occurs in repeated pre-tokens."""
    frequent = sorted((word for word in counts if counts[word] > 1), key=lambda word: (-counts[word], word))
    found: Counter[str] = Counter()
    for word in frequent[:_SEED_WORDS]:
        for start in range(len(word)):
            for end in range(start + 2, min(len(word), start + _LONGEST_PIECE) + 1):
                found[word[start:end]] += counts[word]
    characters: Counter[str] = Counter()
    for word, count in counts.items():
        for character in word:
            characters[character] += count
    best = sorted(found.items(), key=lambda seed: (-seed[1] * len(seed[0]), seed[0]))
    return [*sorted(characters.items()), *best[:_SEEDS]]


def _train(counts: Mapping[str, int], size: int) -> list[tuple[str, float]]:
    """Pieces with their log-probabilities, the most probable first."""
    written = io.BytesIO()
    with tempfile.TemporaryDirectory() as directory:
        words = _write_table(Path(directory) / "words.tsv", sorted(counts.items()))
        candidates = _write_table(Path(directory) / "seeds.tsv", seeds(counts))
        SentencePieceTrainer.train(
            input=words,
            input_format="tsv",
            seed_sentencepieces_file=candidates,
            model_writer=written,
            model_type="unigram",
            vocab_size=size + 1,  # its <unk> is left out
            hard_vocab_limit=False,
            character_coverage=1.0,
            max_sentencepiece_length=_LONGEST_PIECE,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_by_whitespace=False,
            split_by_unicode_script=False,
            split_by_number=False,
            bos_id=-1,
            eos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    processor = SentencePieceProcessor(model_proto=written.getvalue())
    ids = [index for index in range(processor.get_piece_size()) if not processor.is_unknown(index)]
    return [(processor.id_to_piece(index), processor.get_score(index)) for index in ids]


def _write_table(path: Path, rows: Iterable[tuple[str, int]]) -> str:
    """A table as SentencePiece reads it; no character of the alphabet of bytes is white space."""
    path.write_text("".join(f"{text}\t{count}\n" for text, count in rows), encoding="utf-8")
    return str(path)
