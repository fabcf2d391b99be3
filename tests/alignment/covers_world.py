"""Small tokenizers, and all texts of one length over an alphabet with probabilities of their own, as a token model."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from ideal_models import TokenChain
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from toy_tokenizers import END, fast
from transformers import PreTrainedTokenizerFast

from alignment.byte_view import ByteView
from alignment.covers import Covers, CoverTree
from alignment.token_codecs import byte_alphabet

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def splitting(pattern: str) -> pre_tokenizers.PreTokenizer:
    """A byte-level pre-tokenizer with a pattern of its own."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


GPT_2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
NO_CUTS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def byte_pair(
    alphabet: str,
    merges: Iterable[str],
    pre_tokenizer: pre_tokenizers.PreTokenizer = NO_CUTS,
    *,
    ignore_merges: bool = False,
    extra: Sequence[str] = (),
) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the bytes of an alphabet, with merges written ``a+b`` and an end of text.

    The bytes of a letter are merged first.

    Args:
        extra: entries that no merge makes.
    """
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

    def spell(text: str) -> str:
        return "".join(part for part, _ in byte_level.pre_tokenize_str(text))

    assert set(spell(alphabet)) <= set(byte_alphabet())
    pairs = [
        (spell(letter)[:size], spell(letter)[size]) for letter in alphabet for size in range(1, len(spell(letter)))
    ]
    pairs += [tuple(map(spell, merge.split("+"))) for merge in merges]
    entries = dict.fromkeys([*sorted(set(spell(alphabet))), *(a + b for a, b in pairs), *map(spell, extra)])
    model = models.BPE({entry: token for token, entry in enumerate(entries)}, pairs, ignore_merges=ignore_merges)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    return fast(tokenizer, eos_token=END)


class World:
    """All texts of ``length`` characters, of random probability, as a tokenizer's own sequences with an end.

    Args:
        tokenizer: its view must spell all of them.
        no_leading_space: leave out texts that begin with a space, which some tokenizers read like those without.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, alphabet: str, length: int, *, no_leading_space: bool = False
    ) -> None:
        self.view = ByteView.from_tokenizer(tokenizer)
        self.covers = Covers(tokenizer, self.view)
        self.end = tokenizer.eos_token_id
        texts = ["".join(letters) for letters in itertools.product(alphabet, repeat=length)]
        texts = [text for text in texts if not (text.startswith(" ") and no_leading_space)]
        weights = np.random.default_rng(0).exponential(size=len(texts))
        self.texts = dict(zip((text.encode() for text in texts), (weights / weights.sum()).tolist(), strict=True))
        encodings = self.view.encode_batch(texts)
        sequences = [(*encoding.ids.tolist(), self.end) for encoding in encodings]
        assert all(encoding.exact for encoding in encodings)
        self.chain = TokenChain(dict(zip(sequences, self.texts.values(), strict=True)), self.view.vocab_size)

    def probability(self, prefix: bytes) -> float:
        """Of a text to begin with ``prefix``."""
        return sum(p for text, p in self.texts.items() if text.startswith(prefix))

    def covered(self, prefix: bytes) -> float:
        """The same, summed over coverings."""
        tree = self.covers.tree(prefix, what_next=False)
        return sum(self.chain.probability(ids) for ids in coverings(tree))

    def next_bytes(self, prefix: bytes) -> dict[int | None, float]:
        """Probability of each next byte with ``prefix``, and under None of the text's end, from one tree."""
        tree = self.covers.tree(prefix)
        found: dict[int | None, float] = {}
        spelled = tree.prefix
        for node in tree.nodes:
            path = (*tree.trunk, *node.path)
            begun = b"".join(self.view.token_bytes(token) for token in path)
            tokens = node.lasts if node.following is None else np.flatnonzero(node.following)
            for token in tokens.tolist():
                data = begun + self.view.token_bytes(token)
                if len(data) > len(spelled):
                    byte = data[len(spelled)]
                    found[byte] = found.get(byte, 0.0) + self.chain.probability((*path, token))
            if node.may_end:
                found[None] = found.get(None, 0.0) + self.chain.probability((*path, self.end))
        return {byte: p for byte, p in found.items() if p > 0}

    def true_next_bytes(self, prefix: bytes) -> dict[int | None, float]:
        """The same from the texts themselves."""
        found: dict[int | None, float] = {}
        for text, p in self.texts.items():
            if text.startswith(prefix):
                byte = text[len(prefix)] if len(text) > len(prefix) else None
                found[byte] = found.get(byte, 0.0) + p
        return found

    def prefixes(self, longest: int) -> list[bytes]:
        """All byte prefixes of texts, up to so many bytes."""
        return sorted({text[:size] for text in self.texts for size in range(longest + 1)})


def coverings(tree: CoverTree) -> list[tuple[int, ...]]:
    """All coverings of the tree's prefix, as full sequences."""
    if len(tree.prefix) == tree.start:
        return [tree.trunk]
    return [(*tree.trunk, *node.path, last) for node in tree.nodes for last in node.lasts.tolist()]
