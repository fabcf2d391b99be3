"""Rules about the tree itself: which package may import which, and how large a file may grow."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
MAY_IMPORT = {
    "pipeline": {"pipeline", "stages"},
    "stages": {"stages", "alignment", "losses"},
    "alignment": {"alignment"},
    "losses": {"losses"},
}
STAGE_MODULES = {
    *("sources", "document_source", "align", "audit", "init", "generate", "distill", "stochastok", "evaluate"),
    *("tokenizer", "hypernet", "score", "import_scores", "suite_documents"),
}
HEAVY = {"torch", "transformers", "mlflow", "deepspeed", "datasets", "matplotlib"}
LIGHT = [
    path for glob in ("pipeline/**/*.py", "stages/*.py", "stages/objectives/*.py") for path in REPOSITORY.glob(glob)
]
# Imported by a stage's run, never while planning.
HEAVY_ON_PURPOSE = {"initialisation.py", "output_head.py", "reload_check.py"}


def _sources() -> list[Path]:
    return [path for package in MAY_IMPORT for path in sorted((REPOSITORY / package).rglob("*.py"))]


def _imports(path: Path, *, top_level_only: bool = False) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: list[str] = []
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def _name(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def test_the_rules_see_the_code():
    assert len(_sources()) > 50


@pytest.mark.parametrize("path", _sources(), ids=_name)
def test_imports_point_one_way(path):
    package = path.relative_to(REPOSITORY).parts[0]
    ours = {name.split(".")[0] for name in _imports(path)} & set(MAY_IMPORT)
    assert ours <= MAY_IMPORT[package], f"{_name(path)} imports {sorted(ours - MAY_IMPORT[package])}"


@pytest.mark.parametrize("path", sorted((REPOSITORY / "stages").rglob("*.py")), ids=_name)
def test_stages_meet_through_artifacts_only(path):
    own = path.stem
    others = {name.split(".")[1] for name in _imports(path) if name.startswith("stages.")} & (STAGE_MODULES - {own})
    assert not others, f"{_name(path)} imports the stage module {sorted(others)}"


@pytest.mark.parametrize("path", [path for path in LIGHT if path.name not in HEAVY_ON_PURPOSE], ids=_name)
def test_planning_code_imports_nothing_heavy(path):
    heavy = {name.split(".")[0] for name in _imports(path, top_level_only=True)} & HEAVY
    assert not heavy, f"{_name(path)} imports {sorted(heavy)} when it is imported"


@pytest.mark.parametrize("path", _sources(), ids=_name)
def test_files_stay_small(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300, f"{_name(path)} wants splitting"


@pytest.mark.parametrize("path", _sources(), ids=_name)
def test_functions_stay_small(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {node.name: size for node in functions if (size := node.end_lineno - node.lineno + 1) > 60}
    assert not long, f"{_name(path)}: {long} lines; give the middle of each a name"


def test_vocabularies_change_on_disk_alone():
    # On a model that ZeRO-3 has split, resize_token_embeddings changes the configuration and nothing else, silently.
    calling = [_name(path) for path in _sources() if ".resize_token_embeddings(" in path.read_text(encoding="utf-8")]
    assert calling == []
