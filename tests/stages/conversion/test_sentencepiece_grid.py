"""Converted SentencePiece models against SentencePiece itself, over the options of its trainer and odd text."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from transformers import PreTrainedTokenizerFast

from stages.conversion.control_pieces import find_cuts
from stages.conversion.errors import ConversionError
from stages.conversion.sentencepiece_model import tokenizer_from_sentencepiece
from stages.sources import TokenizerSource
from stages.stage import StageContext

FOREIGN = "naïve façade 東京タワー Москва ＡＢＣ １２ ﬁ 한국어 <s> x </s> <unk> <b> <sep>"
ODD_ALPHABET = " \t\n\r\u00a0\u3000\u200b\x00\x07▁<>/sunk0x4Fabe\u0301é東ﬁ🙂"
TEXT = st.text(max_size=30) | st.text(alphabet=ODD_ALPHABET, max_size=30)
CONTROLS = ["<s>", "</s>", "<unk>", "<0x41>"]

Model = tuple[PreTrainedTokenizerFast, sentencepiece.SentencePieceProcessor, list[str]]


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Model]:
    """(trainer options) -> the converted tokenizer, SentencePiece itself, and what the conversion warned of."""
    data = Path(__file__).parents[3] / "recipes" / "data"
    documents = [json.loads(line)["text"] for line in sorted(data.glob("*.jsonl"))[0].read_text("utf-8").splitlines()]
    lines = [line[:200] for line in "\n".join(documents).splitlines() if line.strip()][:150] + [FOREIGN] * 3

    def make(**options: object) -> Model:
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=420,
            hard_vocab_limit=False,
            character_coverage=0.99,
            num_threads=1,
            minloglevel=9,
            **options,
        )
        path = tmp_path_factory.mktemp("model") / "tokenizer.model"
        path.write_bytes(model.getvalue())
        warnings: list[str] = []
        tokenizer = tokenizer_from_sentencepiece(path, warn=warnings.append)
        return tokenizer, sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()), warnings

    return make


GRID = list(itertools.product(("bpe", "unigram"), (True, False), (True, False), (True, False)))


@pytest.fixture(scope="module")
def identity_models(train: Callable[..., Model]) -> dict[tuple[object, ...], Model]:
    return {
        point: train(
            model_type=point[0],
            byte_fallback=point[1],
            add_dummy_prefix=point[2],
            remove_extra_whitespaces=point[3],
            normalization_rule_name="identity",
        )
        for point in GRID
    }


@pytest.mark.parametrize("point", GRID, ids=str)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXT)
@example(text="a line\n")
@example(text="\u3000 \u00a0x \t\n ▁ ")
@example(text="▁a▁")
@example(text="a<s>b </s><s> <unk>x <0x41>")
def test_without_a_character_map_all_ids_are_those_of_sentencepiece(
    identity_models: dict[tuple[object, ...], Model], point: tuple[object, ...], text: str
) -> None:
    tokenizer, oracle, warnings = identity_models[point]
    assert warnings == []
    assert _ids(tokenizer, text) == oracle.encode(text)


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_string_is_its_token_where_special_tokens_are_read(
    identity_models: dict[tuple[object, ...], Model], control: str
) -> None:
    tokenizer, oracle, _ = identity_models["unigram", True, True, False]
    token = oracle.piece_to_id(control)
    assert token not in oracle.encode(f"x{control}"), "SentencePiece spells it out"
    assert (token in tokenizer(f"x{control}").input_ids) == (control != "<0x41>")


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize("rule", ["nfkc", "nmt_nfkc_cf"])
def test_a_character_map_is_exact_but_for_what_the_warning_says(
    train: Callable[..., Model], model_type: str, rule: str
) -> None:
    tokenizer, oracle, warnings = train(model_type=model_type, normalization_rule_name=rule)
    (warning,) = warnings
    assert f"its map ({rule})" in warning
    assert "combining marks" in warning
    for text in (FOREIGN, "Å e\u0301x n\u0303 ① ﷺ", " a \u3000 b\u200b \n", "İstanbul ß", "<s>", "한"):
        assert _ids(tokenizer, text) == oracle.encode(text), text
    assert _ids(tokenizer, "ﬁ\u0301") != oracle.encode("ﬁ\u0301"), "no warning would be needed"


def test_user_defined_pieces_are_exact_or_warned_of(train: Callable[..., Model]) -> None:
    options = {"normalization_rule_name": "identity", "user_defined_symbols": ["<sep>", "<end>"]}
    plain, oracle, warnings = train(add_dummy_prefix=False, remove_extra_whitespaces=False, **options)
    assert warnings == []
    for text in ("x<sep>y <sep> z<sep>", " <sep> ", "<sep><end>", "<s<sep>>"):
        assert _ids(plain, text) == oracle.encode(text), text
    prefixed, oracle, warnings = train(add_dummy_prefix=True, remove_extra_whitespaces=False, **options)
    assert len(warnings) == 1
    assert "around its user-defined pieces ('<sep>' and 1 more)" in warnings[0]
    assert _ids(prefixed, "x<sep>y") != oracle.encode("x<sep>y"), "no warning would be needed"


def test_a_control_string_that_pieces_span_everywhere_is_warned_of(tmp_path: Path) -> None:
    kind = sentencepiece_model_pb2.ModelProto.SentencePiece.Type
    proto = sentencepiece_model_pb2.ModelProto()
    proto.pieces.add(piece="<unk>", score=0, type=kind.UNKNOWN)
    proto.pieces.add(piece="ab", score=0, type=kind.CONTROL)
    for piece, score in (("a", -2), ("b", -2), ("abb", -3), ("▁", -2)):
        proto.pieces.add(piece=piece, score=score, type=kind.NORMAL)
    proto.trainer_spec.model_type = sentencepiece_model_pb2.TrainerSpec.UNIGRAM
    path = tmp_path / "tokenizer.model"
    path.write_bytes(proto.SerializeToString())
    with pytest.warns(UserWarning, match=r"a control piece \('<unk>' and 1 more\): it becomes that token"):
        tokenizer_from_sentencepiece(path)
    proto.pieces.add(piece="c", score=-2, type=kind.UNUSED)
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ConversionError, match="1 pieces are marked as unused"):
        tokenizer_from_sentencepiece(path)


def test_cuts_lie_where_no_piece_does() -> None:
    pieces = {"<", "s", "s>", "<u", "un", "k>"}
    assert find_cuts(["<s>", "<unk>", "x"], pieces, byte_fallback=True) == {"<s>": 1, "<unk>": 3, "x": None}
    # two unknown characters side by side would be one unknown token
    assert find_cuts(["≪≫"], pieces, byte_fallback=True) == {"≪≫": 1}
    assert find_cuts(["≪≫"], pieces, byte_fallback=False) == {"≪≫": None}


def test_the_stage_shows_the_warnings(tmp_path: Path, train: Callable[..., Model]) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(train(normalization_rule_name="nfkc")[1].serialized_model_proto())
    lines: list[str] = []
    (tmp_path / "out").mkdir()
    config = TokenizerSource.Config(tokenizer=str(path))
    TokenizerSource().run(
        StageContext(config=config, inputs={}, work=tmp_path, out=tmp_path / "out", progress=lines.append)
    )
    assert len(lines) == 1
    assert lines[0].startswith(f"warning: {path}: ids can differ from SentencePiece's")
