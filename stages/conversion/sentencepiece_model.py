"""SentencePiece models (BPE and unigram) as Hugging Face tokenizers.

transformers converts a SentencePiece file by the family of its model; here only the file itself speaks, and what
would not be exact is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers
from tokenizers.models import BPE, Unigram
from transformers import PreTrainedTokenizerFast

from stages.conversion.errors import ConversionError

SPACE = "▁"
_TYPE = sentencepiece_model_pb2.ModelProto.SentencePiece.Type
_MODEL_TYPE = sentencepiece_model_pb2.TrainerSpec.ModelType


def tokenizer_from_sentencepiece(path: Path) -> PreTrainedTokenizerFast:
    """Build the exact equivalent of a SentencePiece model; its roles (bos, eos, unk, pad) come from the file.

    As SentencePiece itself does, the tokenizer adds no begin or end token.

    Raises:
        ConversionError: the file is no SentencePiece model, or has a feature that cannot be carried over exactly.
    """
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError:
        raise ConversionError(f"{path}: not a SentencePiece model") from None
    _refuse_inexact(path, proto)
    tokenizer = Tokenizer(_model(proto))
    tokenizer.normalizer = _normalizer(proto.normalizer_spec)
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


def _refuse_inexact(path: Path, proto: Any) -> None:
    if not proto.pieces:
        raise ConversionError(f"{path}: not a SentencePiece model: it has no pieces")
    if proto.trainer_spec.model_type not in (_MODEL_TYPE.BPE, _MODEL_TYPE.UNIGRAM):
        name = _MODEL_TYPE.Name(proto.trainer_spec.model_type)
        raise ConversionError(f"{path}: SentencePiece model type {name} is not supported; expected BPE or UNIGRAM")
    if not proto.normalizer_spec.escape_whitespaces or proto.trainer_spec.treat_whitespace_as_suffix:
        raise ConversionError(f"{path}: unescaped spaces and spaces as suffixes cannot be carried over exactly")
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
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
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
