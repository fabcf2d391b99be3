"""The word ``bytes`` for the target tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import RecipeError
from pipeline.reading.loading import load_recipe
from pipeline.reading.source_stages import source_options


def recipe(directory: Path, student: dict[str, Any]) -> Path:
    values = {"name": "small", "models": {"student": student}, "stages": {"align": {"uses": "align"}}}
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def test_bytes_are_the_students_own_tokenizer_turned_into_bytes(tmp_path: Path) -> None:
    loaded = load_recipe(recipe(tmp_path, {"model": "./model", "tokenizer": "bytes", "trust_remote_code": True}))
    spec = loaded.stages["sources/tokenizer"].config.tokenizer
    assert (spec.file, spec.bytes, spec.trust_remote_code) == ("./model", True, True)
    assert loaded.resolved["models"]["student"]["tokenizer"] == {
        "file": "./model", "bytes": True, "trust_remote_code": True, "special_tokens": {}
    }  # fmt: skip
    assert loaded.stages["sources/student"].config.tokenizer is None


@pytest.mark.parametrize("tokenizer", ["./bytes", {"file": "bytes/"}, {"file": "./x", "bytes": True}])
def test_everything_else_stays_as_it_is_written(tokenizer: Any) -> None:
    values = {"models": {"student": {"model": "./model", "tokenizer": tokenizer}}}
    assert source_options("tokenizer", values) == {"tokenizer": tokenizer}


def test_bytes_of_nothing_are_refused_with_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe(tmp_path, {"tokenizer": "bytes"}))
    problems = str(caught.value)
    assert "models.student.tokenizer" in problems
    assert "needs models.student.model" in problems
