"""Rules about the tree: no call that can run what a file holds, but in the few places that are listed here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SOURCES = [
    path for package in ("pipeline", "stages", "alignment", "losses") for path in (REPOSITORY / package).rglob("*.py")
]

FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "marshal.loads", "marshal.load", "shelve.open"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "dill.load", "dill.loads", "cloudpickle.loads"),
    *(
        "yaml.load",
        "yaml.load_all",
        "yaml.unsafe_load",
        "yaml.full_load",
        "shutil.unpack_archive",
        "pandas.read_pickle",
    ),
    *("tarfile.open", "zipfile.ZipFile"),
}
# What is read there was written by a process of the same training, and passed on through memory alone.
PICKLES = {"stages/training/data/blocks.py": "pickle.loads", "stages/training/data/worker_pool.py": "pickle.loads"}
# The recipe says `trust_remote_code: true` where that is called.
TRUSTED = {"stages/conversion/custom_code.py"}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a file with the dotted name of what is called."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def name(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def keyword(call: ast.Call, wanted: str) -> str | None:
    """What a call gives as that argument, as source; None if it does not."""
    return next((ast.unparse(given.value) for given in call.keywords if given.arg == wanted), None)


def violations(path: Path) -> list[str]:
    found = []
    for called, call in calls(path):
        place = f"{name(path)}:{call.lineno}: {called}"
        if called in FORBIDDEN and PICKLES.get(name(path)) != called:
            found.append(place)
        if called == "torch.load" and keyword(call, "weights_only") != "True":
            found.append(f"{place} without weights_only=True")
        elif keyword(call, "weights_only") not in (None, "True"):
            found.append(f"{place} with weights_only other than True")
        if keyword(call, "allow_pickle") not in (None, "False"):
            found.append(f"{place} with allow_pickle")
        if keyword(call, "shell") not in (None, "False"):
            found.append(f"{place} with shell")
        if keyword(call, "trust_remote_code") == "True" and name(path) not in TRUSTED:
            found.append(f"{place} with trust_remote_code=True")
    return found


def test_the_rules_see_the_code() -> None:
    assert len(SOURCES) > 300
    assert sum(called == "torch.load" for path in SOURCES for called, _ in calls(path)) >= 3


@pytest.mark.parametrize("package", ["pipeline", "stages", "alignment", "losses"])
def test_nothing_runs_what_a_file_holds(package: str) -> None:
    assert [line for path in SOURCES if name(path).startswith(package) for line in violations(path)] == []


@pytest.mark.parametrize(
    "line",
    [
        *("torch.load(path)", "torch.load(path, weights_only=False)", "np.load(path, allow_pickle=True)"),
        *("pickle.loads(data)", "yaml.load(text, Loader)", "subprocess.run(command, shell=True)", "eval(text)"),
        *("AutoModel.from_pretrained(path, trust_remote_code=True)", "archive = tarfile.open(path)"),
    ],
)
def test_the_rules_find_what_they_forbid(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.REPOSITORY", tmp_path)
    (tmp_path / "example.py").write_text(line + "\n")
    assert len(violations(tmp_path / "example.py")) == 1
