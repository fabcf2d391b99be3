"""SentencePiece models (BPE and unigram) as Hugging Face tokenizers.

transformers converts a SentencePiece file by the family of its model; here only the file itself speaks, and what
would not be exact is refused, or said where only rare text is concerned.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers
from tokenizers.models import BPE, Unigram
from transformers import PreTrainedTokenizerFast

from stages.conversion.control_pieces import cutting_pre_tokenizer, find_cuts
from stages.conversion.errors import ConversionError

SPACE = "▁"
_TYPE = sentencepiece_model_pb2.ModelProto.SentencePiece.Type
_MODEL_TYPE = sentencepiece_model_pb2.TrainerSpec.ModelType


def tokenizer_from_sentencepiece(path: Path, *, warn: Callable[[str], None] = warnings.warn) -> PreTrainedTokenizerFast:
    """Build the equivalent of a SentencePiece model; its roles (bos, eos, unk, pad) come from the file.

    As SentencePiece itself does, the tokenizer adds no begin or end token. As SentencePiece does too, it spells out the
    string of a control piece in a text, if called with ``split_special_tokens=True``.

    Args:
        warn: called for each kind of text whose ids can differ from SentencePiece's.

    Raises:
        ConversionError: the file is no SentencePiece model, or has a feature that cannot be carried over exactly.
    """
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError:
        raise ConversionError(
            f"{path}: not a SentencePiece model; if it is a tiktoken rank file (Llama 3's tokenizer.model is one), "
            "give its 'pattern' and 'special_tokens'"
        ) from None
    _refuse_inexact(path, proto)
    tokenizer = Tokenizer(_model(proto))
    tokenizer.normalizer = _normalizer(proto.normalizer_spec)
    cuts = _control_cuts(proto)
    if (cutting := cutting_pre_tokenizer(cuts)) is not None:
        tokenizer.pre_tokenizer = cutting
    for difference in _differences(proto, cuts):
        warn(f"{path}: ids can differ from SentencePiece's {difference}")
    tokenizer.decoder = _decoder(proto)
    # Control pieces never come from text; user-defined ones do, before anything else is matched.
    tokenizer.add_tokens(
        [
            AddedToken(piece.piece, normalized=False, special=piece.type != _TYPE.USER_DEFINED)
            for piece in proto.pieces
            if piece.type in (_TYPE.CONTROL, _TYPE.UNKNOWN, _TYPE.USER_DEFINED)
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_roles(proto))


def _differences(proto: Any, cuts: Mapping[str, int | None]) -> list[str]:
    """The texts for which `tokenizers` has no means to do as SentencePiece does."""
    spec = proto.normalizer_spec
    found = []
    if spec.precompiled_charsmap:
        found.append(
            f"where a character that its map ({spec.name or 'without a name'}) rewrites is part of a longer grapheme: "
            "before combining marks or jamo, in CR LF; and in a text of which the map leaves nothing"
        )
    user_defined = [piece.piece for piece in proto.pieces if piece.type == _TYPE.USER_DEFINED]
    if user_defined and (spec.add_dummy_prefix or spec.remove_extra_whitespaces):
        found.append(
            f"around its user-defined pieces ({user_defined[0]!r} and {len(user_defined) - 1} more): what "
            "SentencePiece does to the ends of a text is done to each part between them"
        )
    kept = [control for control, place in cuts.items() if place is None]
    if kept:
        found.append(
            f"where a text reads a control piece ({kept[0]!r} and {len(kept) - 1} more): it becomes that token"
        )
    return found


def _refuse_inexact(path: Path, proto: Any) -> None:
    if not proto.pieces:
        raise ConversionError(f"{path}: not a SentencePiece model: it has no pieces")
    if proto.trainer_spec.model_type not in (_MODEL_TYPE.BPE, _MODEL_TYPE.UNIGRAM):
        name = _MODEL_TYPE.Name(proto.trainer_spec.model_type)
        raise ConversionError(f"{path}: SentencePiece model type {name} is not supported; expected BPE or UNIGRAM")
    if not proto.normalizer_spec.escape_whitespaces or proto.trainer_spec.treat_whitespace_as_suffix:
        raise ConversionError(f"{path}: unescaped spaces and spaces as suffixes cannot be carried over exactly")
    unused = sum(piece.type == _TYPE.UNUSED for piece in proto.pieces)
    if unused:
        raise ConversionError(f"{path}: {unused} pieces are marked as unused, which cannot be carried over exactly")
    spaced = [piece.piece for piece in proto.pieces if piece.type == _TYPE.USER_DEFINED and SPACE in piece.piece]
    if spaced:
        raise ConversionError(
            f"{path}: user-defined pieces that hold spaces cannot be carried over exactly ({spaced[0]!r} and "
            f"{len(spaced) - 1} more); name the model's tokenizer.json instead"
        )


def _model(proto: Any) -> BPE | Unigram:
    trainer = proto.trainer_spec
    if trainer.model_type == _MODEL_TYPE.UNIGRAM:
        pieces = [(piece.piece, piece.score) for piece in proto.pieces]
        return Unigram(pieces, unk_id=trainer.unk_id, byte_fallback=trainer.byte_fallback)
    return BPE(
        {piece.piece: index for index, piece in enumerate(proto.pieces)},
        _merges(proto),
        unk_token=proto.pieces[trainer.unk_id].piece,
        fuse_unk=True,
        byte_fallback=trainer.byte_fallback,
    )


def _control_cuts(proto: Any) -> dict[str, int | None]:
    """Where to cut the strings that the model must not take for a piece; merges cannot make one."""
    if proto.trainer_spec.model_type != _MODEL_TYPE.UNIGRAM:
        return {}
    text = {piece.piece for piece in proto.pieces if piece.type in (_TYPE.NORMAL, _TYPE.USER_DEFINED)}
    return find_cuts(
        [piece.piece for piece in proto.pieces if piece.piece not in text],
        text,
        byte_fallback=proto.trainer_spec.byte_fallback,
    )


def _merges(proto: Any) -> list[tuple[str, str]]:
    """All two-way splits of all pieces, best piece first; among equal scores the longer left part first.

    Ordered by id instead, runs of spaces in indented code come out differently while still decoding correctly.
    """
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == _TYPE.NORMAL}
    splits = [
        (-score, -cut, cut - len(piece), piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return [(left, right) for *_, left, right in sorted(splits, key=lambda split: split[:3])]


def _normalizer(spec: Any) -> normalizers.Sequence:
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        # Nothing but spaces, and at the end also what reads as a space already. In these regexes ^ and $ are of lines.
        steps += [normalizers.Replace(Regex(rf"\A +|[ {SPACE}]+\z| +(?= )"), "")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])


def _decoder(proto: Any) -> decoders.Sequence:
    steps: list[decoders.Decoder] = [decoders.Replace(SPACE, " ")]
    if proto.trainer_spec.byte_fallback:
        steps.append(decoders.ByteFallback())
    steps.append(decoders.Fuse())
    if proto.normalizer_spec.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)


def _roles(proto: Any) -> dict[str, str]:
    trainer = proto.trainer_spec
    ids = {
        "bos_token": trainer.bos_id,
        "eos_token": trainer.eos_id,
        "unk_token": trainer.unk_id,
        "pad_token": trainer.pad_id,
    }
    return {role: proto.pieces[index].piece for role, index in ids.items() if 0 <= index < len(proto.pieces)}
