"""tiktoken rank files as Hugging Face tokenizers.

A rank file lists byte strings by rank and nothing else: the pre-tokenization regex and the special tokens have to
be given. tiktoken merges whatever pair makes the token of lowest rank; a ``tokenizer.json`` lists its merges.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from stages.conversion.errors import ConversionError


def read_ranks(path: Path) -> dict[bytes, int]:
    """Read a tiktoken rank file, gzipped or not: one base64 token and its rank a line.

    Raises:
        ConversionError: a line is malformed, a token or rank occurs twice, or a single byte is missing.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(_content(path).splitlines(), start=1):
        if not line:
            continue
        try:
            encoded, rank = line.split()
            token, value = base64.b64decode(encoded, validate=True), int(rank)
        except (ValueError, binascii.Error):
            raise ConversionError(f"{path}:{number}: expected a base64 token and a rank, found {line[:60]!r}") from None
        if token in ranks:
            raise ConversionError(f"{path}:{number}: the token {token!r} is there a second time")
        ranks[token] = value
    check_ranks(path, ranks)
    return ranks


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ConversionError(f"{path}: not a whole gzip file: {error}") from None


def check_ranks(path: Path, ranks: Mapping[bytes, int]) -> None:
    """Check that ``ranks``, read from ``path``, can encode every text in one way.

    Raises:
        ConversionError: a rank occurs twice, or a single byte is missing.
    """
    if len(set(ranks.values())) != len(ranks):
        raise ConversionError(f"{path}: two tokens share one rank")
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise ConversionError(f"{path}: {len(missing)} of the 256 single bytes are missing, first 0x{missing[0]:02x}")


def merge_below(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """The parts that byte-pair encoding leaves of ``token`` when only tokens of lower rank than its own exist."""
    limit = ranks[token]
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 1:
        best_rank, best = min((ranks.get(parts[i] + parts[i + 1], limit), i) for i in range(len(parts) - 1))
        if best_rank >= limit:
            break
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts


def recover_merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The ordered merges that make byte-pair encoding by pair equal to byte-pair encoding by rank.

    A token that its own bytes never merge into under lower ranks (678 of Llama 3's) can still arise from parts of
    higher rank, so each of its two-way splits becomes a merge.
    """
    merges = []
    for token in sorted((token for token in ranks if len(token) > 1), key=ranks.__getitem__):
        parts = merge_below(token, ranks)
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
            continue
        splits = ((token[:i], token[i:]) for i in range(1, len(token)))
        merges.extend((left, right) for left, right in splits if left in ranks and right in ranks)
    return merges


def tokenizer_from_ranks(
    path: Path,
    *,
    pattern: str,
    special_tokens: Mapping[str, int],
    normalization: Literal["nfc"] | None = None,
) -> PreTrainedTokenizerFast:
    """Build the exact equivalent of a tiktoken encoding.

    Args:
        path: the rank file.
        pattern: pre-tokenization regex.
        special_tokens: special token -> id; they are given their ids explicitly because encodings have id gaps.
        normalization: the Unicode normal form that the encoder brings text to first; none by default.

    Raises:
        ConversionError: the file is malformed, or an id of ``special_tokens`` is also a rank.
    """
    ranks = read_ranks(path)
    taken = set(ranks.values())
    clashes = [f"{name}={number}" for name, number in special_tokens.items() if number in taken]
    if clashes:
        raise ConversionError(f"{path}: special token ids that ordinary tokens already have: {', '.join(clashes)}")
    tokenizer = byte_pair_tokenizer(ranks, pattern=pattern, special_tokens=special_tokens)
    if normalization == "nfc":
        tokenizer.normalizer = normalizers.NFC()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=list(special_tokens))


def byte_pair_tokenizer(ranks: Mapping[bytes, int], *, pattern: str, special_tokens: Mapping[str, int]) -> Tokenizer:
    """Byte-pair encoding by rank as a ``tokenizers`` pipeline; the ranks are the ids.

    Args:
        ranks: token -> rank, with all 256 single bytes.
        pattern: pre-tokenization regex.
        special_tokens: special token -> id.
    """
    alphabet = bytes_to_unicode()

    def spell(token: bytes) -> str:
        return "".join(alphabet[byte] for byte in token)

    vocabulary = {spell(token): rank for token, rank in ranks.items()} | dict(special_tokens)
    merges = [(spell(left), spell(right)) for left, right in recover_merges(ranks)]
    # tiktoken looks a whole piece up before it merges anything: that is ignore_merges.
    tokenizer = Tokenizer(BPE(vocabulary, merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special_tokens])
    return tokenizer
