"""What a byte-level model gets to remember the tokens by that its student read (alm.md §4.3).

The model that is written reads it with ``modeling_suffix_expansion``, which is saved beside its weights.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from alignment.byte_trie import ByteTrie
from alignment.byte_view import ByteView
from alignment.token_index import TokenIndex
from alignment.token_table import TokenKind
from stages.artifacts import read_json, write_json
from stages.initialisation.suffix_expansion.modeling_suffix_expansion import NO_BYTE
from stages.initialisation.task import Transplant
from stages.model_loading import CONFIG_KEY, MODELING_FILE, auto_map
from stages.stage import StageError


@dataclass(frozen=True)
class SuffixTrie:
    """The reversed tokens of a vocabulary as a trie; see ``modeling_suffix_expansion.longest_suffixes``.

    Attributes:
        edges: int64 [M - 1].
        tokens: int64 [M].
    """

    edges: Tensor
    tokens: Tensor

    @classmethod
    def from_view(cls, view: ByteView) -> SuffixTrie:
        """Of the tokens that spell the same bytes only the one that encoding uses is in it."""
        index = TokenIndex(view)
        spelled = [view.token_bytes(token) or b"" for token in range(view.vocab_size)]
        reversed_tokens = [
            data[::-1] if data and index.find(data) == token else None for token, data in enumerate(spelled)
        ]
        trie = ByteTrie.from_view(ByteView.from_token_bytes(reversed_tokens))
        return cls(torch.from_numpy(trie.key).long(), torch.from_numpy(trie.longest).long())


@dataclass(frozen=True)
class Expansion:
    """Everything that the input embedding of the new model gets beside its own rows.

    Attributes:
        rows: [N, D], the student's input embedding, without padding rows.
        trie: of the student's tokens.
        bytes: int64 [V], the byte of each target id; ``NO_BYTE`` for special tokens.
    """

    rows: Tensor
    trie: SuffixTrie
    bytes: Tensor

    def tensors(self, embedding: str, matrix_rows: int) -> dict[str, Tensor]:
        """What is to be stored with an embedding of so many rows, by name; ``embedding`` is the name of its weight."""
        prefix = embedding.removesuffix("weight")
        padding = self.bytes.new_full((matrix_rows - len(self.bytes),), NO_BYTE)
        return {
            f"{prefix}expansion.weight": self.rows,
            f"{prefix}expansion_edges": self.trie.edges,
            f"{prefix}expansion_tokens": self.trie.tokens,
            f"{prefix}expansion_bytes": torch.cat([self.bytes, padding]),
        }

    def declare(self, directory: Path) -> None:
        """Write into a model directory the code that reads the tensors, and into its ``config.json`` how."""
        shutil.copyfile(MODELING_FILE, directory / MODELING_FILE.name)
        config = read_json(directory / "config.json")
        config["auto_map"] = auto_map(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config["model_type"]])
        config[CONFIG_KEY] = {"tokens": len(self.rows), "nodes": len(self.trie.tokens)}
        write_json(directory / "config.json", config)


def longest_suffix_expansion(transplant: Transplant, rows: Tensor) -> Expansion:
    """The expansion by all of the student's tokens.

    Args:
        rows: [V_source, D], the student's input embedding.

    Raises:
        StageError: the target vocabulary has tokens of more than one byte.
    """
    return Expansion(rows, SuffixTrie.from_view(transplant.source), torch.from_numpy(token_bytes(transplant.target)))


def token_bytes(target: ByteView) -> np.ndarray:
    """int64 [V]: the byte that each token of a byte-level vocabulary is; ``NO_BYTE`` for special tokens.

    Raises:
        StageError: a token that is not special has more than one byte.
    """
    special = np.isin(target.kinds, (TokenKind.SPECIAL, TokenKind.MISSING))
    longer = np.flatnonzero(~special & (target.byte_lengths != 1))
    if len(longer):
        first = target.token_bytes(int(longer[0]))
        raise StageError(
            f"expand_input: longest_suffix is for students that read bytes, but {len(longer):,} tokens of the target "
            f"are not single bytes, first of all {first!r} ({longer[0]}). Write `tokenizer: bytes` under "
            "models.student, or remove expand_input"
        )
    return np.array([NO_BYTE if special[token] else target.token_bytes(token)[0] for token in range(len(special))])
