"""Trained SentencePiece models over the trainer's options, against the offsets that SentencePiece itself reports."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from toy_tokenizers import SPACE

from alignment.byte_view import ByteView, InexactEncoding

RECIPE_DATA = Path(__file__).parents[2] / "recipes" / "data"
FOREIGN = "naïve façade 東京タワー Москва ＡＢＣ １２ ﬁ 한국어"
TEXTS = [
    "Hello world",
    "  two  spaces  here ",
    "a\ttab, and\n\nnew lines end",
    "ﬁne ＡＢＣ １２３ Å e\u0301x n\u0303",
    "東京 tower 世界",
    "👩‍👩‍👧 🙂 ok",
    "▁ a\u00a0b\u3000c \u200bd\ufeffe",
    "a\x07b",
    "İstanbul ß ﷺ",
    "",
    " ",
    " a",
]
# Model type, byte fallback, dummy prefix, normalisation, whether extra white space is removed.
GRID = {
    "llama": ("bpe", True, True, "identity", False),
    "gemma": ("bpe", True, False, "identity", False),
    "bpe nfkc": ("bpe", True, True, "nfkc", True),
    "bpe without bytes": ("bpe", False, False, "nmt_nfkc", False),
    "t5": ("unigram", False, True, "nmt_nfkc", True),
    "unigram with bytes": ("unigram", True, True, "identity", False),
    "unigram nfkc": ("unigram", True, False, "nfkc", False),
}
EXACT = {"llama", "gemma", "unigram with bytes"}


@pytest.fixture(scope="module")
def models(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[ByteView, sentencepiece.SentencePieceProcessor]]:
    """For each point of the grid the view of the converted tokenizer, and SentencePiece itself."""
    from stages.conversion.sentencepiece_model import tokenizer_from_sentencepiece

    documents = [json.loads(line)["text"] for line in sorted(RECIPE_DATA.glob("*.jsonl"))[0].read_text().splitlines()]
    lines = [line[:300] for line in "\n".join(documents).splitlines() if line.strip()][:300] + [FOREIGN] * 3
    views = {}
    for name, (model_type, byte_fallback, dummy_prefix, normalization, collapse) in GRID.items():
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type=model_type,
            byte_fallback=byte_fallback,
            add_dummy_prefix=dummy_prefix,
            normalization_rule_name=normalization,
            remove_extra_whitespaces=collapse,
            vocab_size=450,
            hard_vocab_limit=False,
            character_coverage=0.99,
            num_threads=1,
            minloglevel=9,
        )
        path = tmp_path_factory.mktemp("sentencepiece") / "model.model"
        path.write_bytes(model.getvalue())
        processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        views[name] = (ByteView.from_tokenizer(tokenizer_from_sentencepiece(path)), processor)
    return views


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", GRID)
def test_boundaries_are_those_of_sentencepiece(name: str, text: str, models: dict) -> None:
    view, processor = models[name]
    encoding = view.encode(text, exact=False)
    pieces = processor.encode(text, return_type="proto").pieces
    assert encoding.ids.tolist() == [piece.id for piece in pieces], "the conversion differs from SentencePiece"
    is_fallback = np.isin(encoding.ids, [index for index in range(256 + 3) if processor.is_byte(index)])
    # SentencePiece puts the bytes of a character at its start, and its last byte at its end.
    known = encoding.boundary & ~is_fallback
    expected = np.array([piece.end for piece in pieces], dtype=np.int64)
    assert encoding.byte_ends[known].tolist() == expected[known].tolist()


@pytest.mark.parametrize("name", GRID)
@given(text=st.text(max_size=40) | st.text(alphabet="Hello wrd東é\u0301ﬁ▁\n", max_size=40))
def test_verbatim_tokens_are_the_text(name: str, models: dict, text: str) -> None:
    view, _ = models[name]
    encoding = view.encode(text, exact=False)
    data, start = text.encode(), 0
    for token, (token_id, end) in enumerate(zip(encoding.ids.tolist(), encoding.byte_ends.tolist(), strict=True)):
        if encoding.verbatim[token]:
            spelled = view.token_bytes(token_id) or b""
            assert data[start:end] in (spelled, spelled.removeprefix(b" "))
        start = end
    if name in EXACT and SPACE not in text and "<" not in text:
        assert encoding.exact
        assert b"".join(view.token_bytes(i) or b"" for i in encoding.ids.tolist()) in (data, b" " + data)


def test_only_a_literal_space_mark_is_not_exact(models: dict) -> None:
    assert models["llama"][0].inexact_reasons == ("'▁' in a text is read as a space",)
    with pytest.raises(InexactEncoding, match="from byte 1 of 5"):
        models["gemma"][0].encode("a▁b")


def test_pieces_of_expanded_characters_have_no_boundary(models: dict) -> None:
    encoding = models["t5"][0].encode("a ﷺ a", exact=False)
    inside = np.flatnonzero(~encoding.boundary)
    assert inside.size > 3, "U+FDFA becomes four Arabic words"
    assert (encoding.byte_ends[inside] <= 2).all()
    assert encoding.byte_ends[-1] == len("a ﷺ a".encode())
