from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoTokenizer

from stages.conversion.errors import ConversionError
from stages.conversion.sentencepiece_model import tokenizer_from_sentencepiece
from stages.conversion.tokenizer import write_tokenizer

DATA = Path(__file__).parents[3] / "recipes" / "data"
TEXTS = (
    "",
    "x",
    "The quick brown fox jumps over the lazy dog.",
    "  two leading and trailing spaces  ",
    "def f(x):\n    if x:\n            return 1\n\treturn  2\n",
    "naïve façade, 東京 and Москва, 🙂 at 3.14159",
    *(" " * width + "return" + " " * (width + 3) + "x" for width in range(2, 30)),
    "<0x41> is text and not a byte",
)


def _texts(pattern: str) -> list[str]:
    files = sorted(DATA.glob(pattern))
    return [json.loads(line)["text"] for file in files for line in file.read_text("utf-8").splitlines()]


def _train(path: Path, **options: object) -> Path:
    model = io.BytesIO()
    sentences = [line for text in _texts("train-*.jsonl")[::4] for line in text.splitlines() if line]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        minloglevel=2,
        num_threads=1,
        **{"normalization_rule_name": "identity", "remove_extra_whitespaces": False, **options},
    )
    path.write_bytes(model.getvalue())
    return path


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"model_type": "bpe", "vocab_size": 900, "byte_fallback": True}, id="bpe-bytes"),
        pytest.param(
            {"model_type": "bpe", "vocab_size": 900, "byte_fallback": True, "allow_whitespace_only_pieces": True},
            id="bpe-indentation",
        ),
        pytest.param(
            {"model_type": "bpe", "vocab_size": 900, "byte_fallback": True, "add_dummy_prefix": False}, id="no-prefix"
        ),
        pytest.param({"model_type": "unigram", "vocab_size": 500}, id="unigram"),
        pytest.param(
            {
                "model_type": "unigram",
                "vocab_size": 500,
                "normalization_rule_name": "nmt_nfkc",
                "remove_extra_whitespaces": True,
            },
            id="unigram-nfkc",
        ),
    ],
)
def test_ids_are_those_of_sentencepiece(tmp_path: Path, options: dict[str, object]) -> None:
    path = _train(tmp_path / "tokenizer.model", **options)
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(path))
    write_tokenizer(path, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in (*TEXTS, *_texts("eval-*.jsonl")[:20]):
        ids = tokenizer(text).input_ids
        assert ids == oracle.encode(text), text
        # the surface that SentencePiece gives unknown characters, against the name of the piece
        assert tokenizer.decode(ids) == oracle.decode(ids).replace(" ⁇ ", "<unk>")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (oracle.bos_id(), oracle.eos_id())
    assert set(tokenizer.all_special_ids) == {oracle.unk_id(), oracle.bos_id(), oracle.eos_id()}


def test_pieces_of_equal_score_merge_in_the_order_of_sentencepiece(tmp_path: Path) -> None:
    # Runs of spaces with one score are common; transformers' own order differs from 17 spaces on.
    kind = sentencepiece_model_pb2.ModelProto.SentencePiece.Type
    proto = sentencepiece_model_pb2.ModelProto()
    proto.pieces.add(piece="<unk>", score=0, type=kind.UNKNOWN)
    proto.pieces.add(piece="<s>", score=0, type=kind.CONTROL)
    proto.pieces.add(piece="</s>", score=0, type=kind.CONTROL)
    for width in range(1, 17):
        proto.pieces.add(piece="▁" * width, score=0, type=kind.NORMAL)
    proto.pieces.add(piece="x", score=0, type=kind.NORMAL)
    proto.trainer_spec.model_type = sentencepiece_model_pb2.TrainerSpec.BPE
    proto.normalizer_spec.add_dummy_prefix = False
    proto.normalizer_spec.remove_extra_whitespaces = False
    path = tmp_path / "tokenizer.model"
    path.write_bytes(proto.SerializeToString())

    oracle = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokenizer = tokenizer_from_sentencepiece(path)
    for width in range(60):
        text = " " * width + "x"
        assert tokenizer(text).input_ids == oracle.encode(text)


def test_a_file_that_is_no_sentencepiece_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"not a model")
    with pytest.raises(ConversionError, match="not a SentencePiece model"):
        tokenizer_from_sentencepiece(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "word", "vocab_size": 300}, "type WORD is not supported"),
        (
            {"model_type": "bpe", "vocab_size": 600, "user_defined_symbols": ["▁▁", "▁▁▁"]},
            "user-defined pieces that hold spaces .*'▁▁' and 1 more.*tokenizer.json",
        ),
        ({"model_type": "bpe", "vocab_size": 600, "treat_whitespace_as_suffix": True}, "spaces as suffixes"),
    ],
)
def test_what_would_not_be_exact_is_refused(tmp_path: Path, options: dict[str, object], message: str) -> None:
    path = _train(tmp_path / "tokenizer.model", **options)
    with pytest.raises(ConversionError, match=message):
        tokenizer_from_sentencepiece(path)
