from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.conversion.errors import ConversionError
from stages.conversion.tokenizer import write_tokenizer

WORDS = (b"th", b"the", b" the", b"\xe6\x9d", b"\xe6\x9d\xb1")


def tekken_content(**config: Any) -> dict[str, Any]:
    """A small file in the published form: 256 bytes and five tokens, of which a model uses the first four."""
    tokens = [*(bytes([byte]) for byte in range(256)), *WORDS]
    return {
        "config": {
            "pattern": r" ?\p{L}+|\s+|[^\s\p{L}]+",
            "num_vocab_tokens": len(tokens),
            "default_vocab_size": 30 + 256 + 4,
            "default_num_special_tokens": 30,
            "version": "v3",
            **config,
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
            for rank, token in enumerate(tokens)
        ],
    }


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_ids_are_ranks_after_the_special_tokens(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(write(tmp_path / "tekken.json", tekken_content()), tmp_path / "out")
    assert len(tokenizer) == 290
    # " the" is a whole piece; the fifth word is beyond what the model uses, so 東 is two tokens
    assert tokenizer("a the東").input_ids == [30 + ord("a"), 30 + 258, 30 + 259, 30 + 0xB1]
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3, 11, 29]) == [
        "<unk>",
        "<s>",
        "</s>",
        "[INST]",
        "<pad>",
        "<SPECIAL_29>",
    ]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 11)
    assert sorted(tokenizer.all_special_ids) == list(range(30))


def test_listed_special_tokens_are_taken(tmp_path: Path) -> None:
    content = tekken_content(version="v11")
    content["special_tokens"] = [
        {"rank": rank, "token_str": name, "is_control": True} for rank, name in ((2, "</s>"), (7, "[THINK]"))
    ]
    tokenizer = write_tokenizer(write(tmp_path / "tekken.json", content), tmp_path / "out")
    assert tokenizer("[THINK]x</s>").input_ids == [7, 30 + ord("x"), 2]
    assert tokenizer.eos_token_id == 2


def drop_special_tokens(content: dict[str, Any]) -> None:
    content["config"]["version"] = "v11"


def repeat_special_token(content: dict[str, Any]) -> None:
    content["special_tokens"] = [{"rank": rank, "token_str": "</s>", "is_control": True} for rank in (2, 3)]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_special_tokens, "version 'v11' must list its 'special_tokens'"),
        (repeat_special_token, "special tokens do not have 30 different names"),
        (lambda content: content["config"].pop("pattern"), "not a whole tekken file: 'pattern' is missing"),
        (lambda content: content["vocab"].pop(7), r"vocab\[7\] has rank 8"),
        (lambda content: content["vocab"][3].update(token_bytes="?"), r"vocab\[3\].token_bytes is not base64"),
        (lambda content: content["vocab"][3].update(token_bytes="AA=="), r"vocab\[3\] .* repeats an earlier token"),
        (lambda content: content.update(vocab=content["vocab"][:200]), "has 200 ordinary tokens.* promises 260"),
    ],
)
def test_a_damaged_file_is_refused_with_the_place(
    tmp_path: Path, damage: Callable[[dict[str, Any]], object], message: str
) -> None:
    content = tekken_content()
    damage(content)
    path = write(tmp_path / "tekken.json", content)
    with pytest.raises(ConversionError, match=message) as error:
        write_tokenizer(path, tmp_path / "out")
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not valid JSON"), ("[]", "neither a tokenizer.json nor a tekken.json")],
)
def test_json_of_another_kind_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ConversionError, match=message):
        write_tokenizer(path, tmp_path / "out")
