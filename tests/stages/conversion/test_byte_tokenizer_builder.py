"""The byte tokenizer: every text exactly, the special tokens of another tokenizer, and nothing of ours to load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from alignment.byte_view import ByteView
from alignment.special_tokens import special_roles
from stages.conversion.byte_tokenizer import byte_tokenizer
from stages.conversion.errors import ConversionError
from stages.sources import ModelSource, TokenizerSource
from stages.stage import StageContext

CHAT = [{"role": "user", "content": "Who is the user?"}, {"role": "assistant", "content": "assistant"}]
TEXTS = ["", "\x00", "a\x00b\x7f", "🙂👩‍👩‍👧", "é e\u0301 ﬁ", "東京\r\n\t ", "<|turn|> user", "Ġ▁Ċ", "\U0010ffff\ud7ff"]


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Characters with a space mark, byte fallback, and a begin token in front of every text."""
    entries = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b"]
    model = BPE({entry: index for index, entry in enumerate(entries)}, [], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    tokenizer.add_special_tokens([AddedToken("<img>", normalized=False, rstrip=True)])
    tokenizer.add_tokens(["<think>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", image_token="<img>"
    )


@pytest.fixture(scope="module")
def chat_bytes(
    tiny_chat_dirs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
    """A tokenizer with a chat template, and its byte tokenizer as it is loaded again."""
    base = AutoTokenizer.from_pretrained(tiny_chat_dirs[0])
    directory = tmp_path_factory.mktemp("bytes")
    byte_tokenizer(base).save_pretrained(directory)
    return base, AutoTokenizer.from_pretrained(directory)


def test_ids_are_the_bytes_and_then_the_special_tokens_in_their_order(chat_bytes: Any) -> None:
    base, made = chat_bytes
    view, base_view = ByteView.from_tokenizer(made), ByteView.from_tokenizer(base)
    assert [view.token_bytes(byte) for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    assert list(view.special_tokens.values()) == list(base_view.special_tokens.values())
    assert list(view.special_tokens) == list(range(256, view.vocab_size))
    assert view.exact
    assert view.digit_scheme == "single"


@pytest.mark.parametrize("text", TEXTS)
def test_hostile_texts_are_their_bytes_and_come_back(chat_bytes: Any, text: str) -> None:
    _, made = chat_bytes
    ids = ByteView.from_tokenizer(made).encode(text).ids.tolist()
    assert ids == list(text.encode())
    assert made.decode(ids) == text


@given(st.text())
def test_every_text_is_its_bytes(text: str) -> None:
    assert VIEW.encode(text).ids.tolist() == list(text.encode())


def test_control_tokens_of_the_template_are_single_and_its_words_are_bytes(chat_bytes: Any) -> None:
    base, made = chat_bytes
    rendered = base.apply_chat_template(CHAT, tokenize=False)
    assert made.apply_chat_template(CHAT, tokenize=False) == rendered
    view = ByteView.from_tokenizer(made)
    encoding = view.encode_rendered(rendered)
    specials = [view.special_tokens[token] for token in encoding.ids[encoding.special].tolist()]
    assert specials == [base.bos_token, *(["<|start|>", "<|end|>", "<|turn|>"] * 2)]
    words = bytes(encoding.ids[~encoding.special].tolist())
    assert words == b"user\n\nWho is the user?assistant\n\nassistant"
    assert made.apply_chat_template(CHAT, return_dict=False) == encoding.ids.tolist()


def test_roles_flags_and_what_is_put_around_a_text_are_kept(tmp_path: Path) -> None:
    byte_tokenizer(sentencepiece_like()).save_pretrained(tmp_path)
    made = AutoTokenizer.from_pretrained(tmp_path)
    tokens = {role: made.convert_ids_to_tokens(token) for role, token in special_roles(made).items()}
    assert tokens == {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "image": "<img>"}
    assert made("ab").input_ids == [257, 97, 98, 258]
    assert made("a", "b").input_ids == [257, 97, 258, 98, 258]
    assert ByteView.from_tokenizer(made).prefix_ids == [257]
    assert made.added_tokens_decoder[259].rstrip
    # merely added and not special: text
    assert made("<think>", add_special_tokens=False).input_ids == list(b"<think>")


def test_the_base_may_run_in_python() -> None:
    base = ByT5Tokenizer()
    made = byte_tokenizer(base)
    assert made("é").input_ids == [*"é".encode(), made.eos_token_id]
    assert set(ByteView.from_tokenizer(made).special_tokens.values()) == set(base.all_special_tokens)


def test_a_special_token_that_reads_like_a_byte_is_refused() -> None:
    tokenizer = Tokenizer(BPE({"a": 0, "1": 1, "の": 2}, []))
    tokenizer.add_special_tokens(["$"])
    with pytest.raises(ConversionError, match=r"\['\$'\] are also ordinary tokens"):
        byte_tokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="$"))


def test_the_source_stage_writes_it(tmp_path: Path, tiny_chat_dirs: tuple[Path, Path]) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    out.mkdir()
    config = TokenizerSource.Config(tokenizer={"file": str(tiny_chat_dirs[0]), "bytes": True})
    TokenizerSource().run(StageContext(config=config, inputs={}, work=work, out=out))
    TokenizerSource.output.verify(out)
    assert AutoTokenizer.from_pretrained(out)("é", add_special_tokens=False).input_ids == [0xC3, 0xA9]


def test_bytes_where_they_mean_nothing_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"needs models\.student\.model"):
        TokenizerSource.Config(tokenizer="bytes")
    with pytest.raises(ValidationError, match="a model has the one that it was trained with"):
        ModelSource.Config(model="./model", tokenizer={"file": "./tokenizer", "bytes": True})
    assert TokenizerSource.Config(tokenizer={"file": "./x", "bytes": False}).tokenizer.bytes is None


VIEW = ByteView.from_tokenizer(byte_tokenizer(sentencepiece_like()))
