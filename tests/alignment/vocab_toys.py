"""Toy tokenizers whose vocabularies can be matched by hand."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from alignment.byte_models import byte_model
from alignment.byte_view import ByteView
from alignment.vocab import VocabAlignment, align_vocabularies

ALPHABET = bytes_to_unicode()
WORDS = [
    (b"t", b"h"),
    (b"th", b"e"),
    (b" ", b"the"),
    (b"i", b"n"),
    (b"in", b"g"),
    (b"\xe2", b"\x9c"),
    (b"\xc3", b"\xa9"),
]


def byte_level(
    merges: list[tuple[bytes, bytes]],
    *,
    specials: tuple[str, ...] = (),
    added: tuple[str, ...] = (),
    missing: bytes = b"",
    normalizer: normalizers.Normalizer | None = None,
    pre_tokenizer: pre_tokenizers.PreTokenizer | None = None,
) -> PreTrainedTokenizerFast:
    """Byte-level BPE: id b for byte b (those of ``missing`` are gaps), the merges, the specials, the added tokens."""

    def spell(token: bytes) -> str:
        return "".join(ALPHABET[byte] for byte in token)

    vocabulary = {ALPHABET[byte]: byte for byte in range(256) if byte not in missing}
    vocabulary |= {spell(left + right): 256 + rank for rank, (left, right) in enumerate(merges)}
    backend = Tokenizer(BPE(vocabulary, [(spell(left), spell(right)) for left, right in merges]))
    byte_level_step = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre_tokenizer is None)
    steps = [byte_level_step] if pre_tokenizer is None else [pre_tokenizer, byte_level_step]
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.add_special_tokens([AddedToken(special, normalized=False) for special in specials])
    backend.add_tokens([AddedToken(token, normalized=False) for token in added])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def sentencepiece(pieces: list[str], merges: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """SentencePiece BPE as Llama 2 has it, with a space before every text: 256 byte pieces, ``pieces``, the merges."""
    vocabulary = {"<unk>": 0} | {f"<0x{byte:02X}>": 1 + byte for byte in range(256)}
    vocabulary |= {piece: 257 + index for index, piece in enumerate([*pieces, *map("".join, merges)])}
    backend = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


SOURCE = byte_level(WORDS, specials=("<s>", "</s>"))
SOURCE_VIEW = ByteView.from_tokenizer(SOURCE)
LLAMA_LIKE = sentencepiece(["▁", "A", "i", "n", "g", "é", "日", "\n"], [("i", "n"), ("in", "g"), ("▁", "A")])
LLAMA_LIKE_VIEW = ByteView.from_tokenizer(LLAMA_LIKE)


def aligned(source: PreTrainedTokenizerFast, tokens: list[bytes | None]) -> VocabAlignment:
    """A plain list of tokens made from those of a tokenizer."""
    view = ByteView.from_tokenizer(source)
    return align_vocabularies(view, ByteView.from_token_bytes(tokens), model=byte_model(source, view))


def spelled(source: ByteView, alignment: VocabAlignment, token: int) -> list[bytes | None]:
    """The bytes of each piece of a target token."""
    return [source.token_bytes(piece) for piece in alignment.pieces_of(token).tolist()]
