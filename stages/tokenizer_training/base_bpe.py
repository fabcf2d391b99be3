"""A byte-pair tokenizer opened up, so that merges can be learned behind its own and added to it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import PreTokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from alignment.token_codecs import TokenCodec, codec_for, components
from stages.conversion.errors import ConversionError
from stages.conversion.special_tokens import rewrapped
from stages.tokenizer_training.merges import Merge, Sequences


class BaseBPE:
    """A tokenizer whose model is byte-pair encoding: byte-level, or on characters with a space mark (SentencePiece).

    Attributes:
        byte_level: tokens are written in GPT-2's alphabet of bytes.
        space: how a space is written inside tokens: ``Ġ`` or ``▁``.
        vocabulary: token or special token -> id.
    """

    def __init__(self, base: PreTrainedTokenizerBase) -> None:
        """Open ``base``, which is left as it is.

        Raises:
            ConversionError: it is no byte-pair tokenizer, or one of a kind that cannot be continued.
        """
        backend = getattr(base, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise _refusal(base, f"is a {type(base).__name__}, which runs in Python")
        self._base = base
        self._pipeline: dict[str, Any] = json.loads(backend.to_str())
        model = self._pipeline["model"]
        if model["type"] != "BPE":
            raise _refusal(base, f"has a {model['type']} model")
        if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
            raise _refusal(base, "marks the ends or the insides of words in its tokens")
        codec = codec_for(self._pipeline, backend)
        if not codec.byte_level and len(codec.space_marks) != 1:
            raise _refusal(base, "is neither byte-level nor has a mark for spaces, as SentencePiece has")
        self._codec = codec
        self._tokenizer = Tokenizer.from_str(json.dumps(self._pipeline | {"truncation": None, "padding": None}))
        self.byte_level = codec.byte_level
        self.space = "Ġ" if codec.byte_level else codec.space_marks[0]
        self.vocabulary: dict[str, int] = backend.get_vocab()

    @property
    def pre_tokenizer(self) -> PreTokenizer | None:
        """What cuts normalised text before the merges see it."""
        return self._tokenizer.pre_tokenizer

    @property
    def pre_tokenizer_steps(self) -> list[Mapping[str, Any]]:
        """The same as the steps of a ``tokenizer.json``."""
        return components(self._pipeline, "pre_tokenizer")

    @property
    def codec(self) -> TokenCodec:
        """How its tokens stand for bytes."""
        return self._codec

    @property
    def merges(self) -> list[tuple[str, str]]:
        """Its merges, in the order in which they are tried."""
        return [(left, right) for left, right in self._pipeline["model"]["merges"]]

    def pre_tokens(self, texts: Iterable[str], pre_tokenizer: PreTokenizer | None) -> Counter[str]:
        """How often each pre-token occurs in normalised texts that ``pre_tokenizer`` cuts."""
        normalizer = self._tokenizer.normalizer
        counts: Counter[str] = Counter()
        for text in texts:
            normalized = normalizer.normalize_str(text) if normalizer else text
            if pre_tokenizer is None:
                counts[normalized] += 1
            else:
                counts.update(piece for piece, _ in pre_tokenizer.pre_tokenize_str(normalized))
        return counts

    def symbols(self, pre_token: str) -> list[str]:
        """The tokens of a pre-token, as the vocabulary writes them."""
        return [token.value for token in self._tokenizer.model.tokenize(pre_token)]

    def sequences(self, pre_tokens: Counter[str]) -> Sequences:
        """The tokens of pre-tokens, cut at single bytes of unknown characters: those join nothing."""
        sequences: Counter[tuple[str, ...]] = Counter()
        for pre_token, count in pre_tokens.items():
            for run in runs([token if self._joins(token) else None for token in self.symbols(pre_token)]):
                sequences[run] += count
        return sequences

    def _joins(self, token: str) -> bool:
        return not self._codec.is_byte_fallback(token) and token != self._pipeline["model"].get("unk_token")

    def with_tokens(self, tokens: Sequence[str]) -> BaseBPE:
        """The same with more single symbols, which get the ids behind all others."""
        return BaseBPE(self.extended(tokens, []))

    def extended(
        self, tokens: Sequence[str], merges: Sequence[Merge], *, pre_tokenizer: PreTokenizer | None = None
    ) -> PreTrainedTokenizerFast:
        """The tokenizer with more tokens and merges behind its own; its ids stay what they are.

        Args:
            tokens: in the order of their ids.
            merges: in the order in which they are tried.
            pre_tokenizer: what cuts text from now on; None leaves its own.
        """
        model = self._pipeline["model"]
        first = max(self.vocabulary.values()) + 1
        # Added tokens get their ids from the model's vocabulary: without an entry there they would move behind ours.
        vocabulary = self.vocabulary | {token: first + place for place, token in enumerate(tokens)}
        pairs = [*model["merges"], *([merge.left, merge.right] for merge in merges)]
        tokenizer = Tokenizer.from_str(
            json.dumps(self._pipeline | {"model": model | {"vocab": vocabulary, "merges": pairs}})
        )
        if pre_tokenizer is not None:
            tokenizer.pre_tokenizer = pre_tokenizer
        return rewrapped(tokenizer, self._base)


def pre_tokenizer_of(step: Mapping[str, Any]) -> PreTokenizer:
    """The pre-tokenizer that a ``tokenizer.json`` describes so."""
    pipeline = json.loads(Tokenizer(BPE()).to_str())
    return Tokenizer.from_str(json.dumps(pipeline | {"pre_tokenizer": step})).pre_tokenizer


def runs(symbols: Iterable[str | None]) -> list[tuple[str, ...]]:
    """The stretches between the Nones that are long enough to merge something."""
    found: list[list[str]] = [[]]
    for symbol in symbols:
        if symbol is None:
            found.append([])
        else:
            found[-1].append(symbol)
    return [tuple(run) for run in found if len(run) > 1]


def _refusal(base: PreTrainedTokenizerBase, reason: str) -> ConversionError:
    return ConversionError(
        f"{base.name_or_path} {reason}: only byte-pair encoding (byte-level or SentencePiece's) can be given more "
        "merges. Take `method: bpe` or `unigram` for a tokenizer from scratch"
    )
