"""A student's tokenizer replaced by bytes, through the command line, with a tokenizer that runs in Python."""

from __future__ import annotations

import json

import pytest
import yaml
from e2e_helpers import Workplace
from transformers import AutoTokenizer, ByT5Tokenizer

TEXTS = ["The quick brown fox, 3.14159.\n", "Ein Häuschen in 東京 🙂, </s> and <pad> are text.\n"]


@pytest.fixture
def byteify(tmp_path, tiny_tokenizer_dirs, tiny_model_dir) -> Workplace:
    ByT5Tokenizer().save_pretrained(tmp_path / "bytes")
    lines = [json.dumps({"text": text * 3}) for text in TEXTS * 4]
    (tmp_path / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    recipe = {
        "name": "byteify",
        "models": {
            "teacher": {"model": str(tiny_model_dir(tiny_tokenizer_dirs[0], seed=3))},
            "student": {"model": str(tiny_model_dir(tiny_tokenizer_dirs[0], seed=4)), "tokenizer": "./bytes"},
        },
        "data": {"train": [{"path": "text.jsonl"}]},
        "stages": {
            "align": {"uses": "align"},
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
    return Workplace(tmp_path, {})


def test_a_student_learns_to_read_bytes(byteify):
    code, output = byteify.run("run", "recipe.yaml")
    assert code == 0, output
    (model,) = byteify.directory.glob("runs/store/distill/*/out")
    account = json.loads((model / "training_data.json").read_text(encoding="utf-8"))
    assert account["bytes"] == account["aligned_bytes"] == 12 * sum(len(text.encode()) for text in TEXTS)
    published, original = AutoTokenizer.from_pretrained(model), ByT5Tokenizer()
    assert isinstance(published, ByT5Tokenizer)
    for text in TEXTS:
        assert published(text).input_ids == original(text).input_ids
