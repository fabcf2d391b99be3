"""Fixtures of the evaluate and init stages that several test files share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from evaluation_world import TEXTS, write_documents
from warm_checks import WarmChecks


@pytest.fixture(scope="session")
def tiny_models(tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]) -> tuple[Path, Path, Path]:
    """A teacher and two students; the students have another tokenizer, and the second one's logits are all zero."""
    import torch
    from transformers import AutoModelForCausalLM

    small, large = tiny_tokenizer_dirs
    uniform = tiny_model_dir(large, seed=2, tied=False)
    model = AutoModelForCausalLM.from_pretrained(uniform)
    torch.nn.init.zeros_(model.lm_head.weight)
    model.save_pretrained(uniform)
    return _sharpen(tiny_model_dir(small, seed=0)), _sharpen(tiny_model_dir(large, seed=1)), uniform


def _sharpen(directory: Path) -> Path:
    """Scale the embeddings up, so that a random model has preferences worth comparing."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory)
    model.get_output_embeddings().weight.data *= 20
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """A documents artifact of three domains."""
    return write_documents(tmp_path / "documents", TEXTS)


@pytest.fixture(scope="session")
def _warm_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmChecks]:
    checks = WarmChecks(tmp_path_factory.mktemp("checks"))
    yield checks
    checks.close()


@pytest.fixture(scope="module")
def warm_checks(_warm_process: WarmChecks) -> Iterator[None]:
    """Init checks its models in processes that need not import anything; ``test_init_verification`` and the tests of
    the command line have the ordinary ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.initialisation.checking.inspect_in_fresh_process", _warm_process)
        yield
