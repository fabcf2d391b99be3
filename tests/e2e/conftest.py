"""Fixtures of the command-line tests."""

from __future__ import annotations

import pytest
from e2e_helpers import TINY_STEPS, Workplace


@pytest.fixture(scope="session")
def tiny_overrides(tiny_tokenizer_dirs, tiny_model_dir) -> dict[str, object]:
    """Overrides of the quickstart: two-layer models of width 32 and a tokenizer of 400 ids, a few steps."""
    return {
        "models.teacher.model": tiny_model_dir(tiny_tokenizer_dirs[0], seed=3),
        "models.student.tokenizer": tiny_tokenizer_dirs[1],
        **TINY_STEPS,
    }


@pytest.fixture
def workplace(tmp_path, tiny_overrides) -> Workplace:
    return Workplace(tmp_path, dict(tiny_overrides))
