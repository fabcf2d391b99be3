"""A student's tokenizer replaced by bytes, through the command line: ours, and one that runs in Python."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import yaml
from e2e_helpers import Workplace
from transformers import AutoTokenizer, ByT5Tokenizer

TEXTS = ["The quick brown fox, 3.14159.\n", "Ein Häuschen in 東京 🙂, </s> and <pad> are text.\n"]


@pytest.fixture(scope="module")
def byteify(tmp_path_factory, tiny_tokenizer_dirs, tiny_model_dir) -> Callable[[str], Workplace]:
    """Target tokenizer -> a recipe that gives it to a student; all share one store."""
    tmp_path = tmp_path_factory.mktemp("byteify")
    ByT5Tokenizer().save_pretrained(tmp_path / "byt5")
    lines = [json.dumps({"text": text * 3}) for text in TEXTS * 4]
    (tmp_path / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    recipe = {
        "name": "byteify",
        "models": {
            "teacher": {"model": str(tiny_model_dir(tiny_tokenizer_dirs[0], seed=3))},
            "student": {"model": str(tiny_model_dir(tiny_tokenizer_dirs[0], seed=4)), "tokenizer": "bytes"},
        },
        "data": {"train": [{"path": "text.jsonl"}]},
        "stages": {
            "align": {"uses": "align", "digits": "warn"},  # bytes are cut after every digit
            "init": {"uses": "init", "needs": ["align"]},
            "distill": {
                "uses": "distill",
                "needs": ["init"],
                "losses": [{"alm": {}}, {"cross_entropy": {}}],
                "steps": 2,
                "batch_windows": 4,
                "window_tokens": 256,
            },
        },
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return lambda tokenizer: Workplace(tmp_path, {"models.student.tokenizer": tokenizer})


@pytest.mark.parametrize("tokenizer", ["bytes", "./byt5"])
def test_a_student_learns_to_read_bytes(byteify, tiny_tokenizer_dirs, tokenizer):
    place = byteify(tokenizer)
    code, output = place.run("run", "recipe.yaml")
    assert code == 0, output
    model = place.directory / "runs" / "byteify" / "stages" / "distill" / "out"
    account = json.loads((model / "training_data.json").read_text(encoding="utf-8"))
    assert account["bytes"] == account["aligned_bytes"] == 12 * sum(len(text.encode()) for text in TEXTS)
    published = AutoTokenizer.from_pretrained(model)
    if isinstance(published, ByT5Tokenizer):
        original = ByT5Tokenizer()
        expected = [original(text).input_ids for text in TEXTS]
    else:
        expected = [list(text.encode()) for text in TEXTS]
        own = AutoTokenizer.from_pretrained(tiny_tokenizer_dirs[0])
        assert published.special_tokens_map == own.special_tokens_map
        assert len(published) == 256 + len(own.all_special_tokens)
    assert [published(text).input_ids for text in TEXTS] == expected
