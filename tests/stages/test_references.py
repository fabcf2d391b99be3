from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path, PurePosixPath

import huggingface_hub.constants
import pytest

from stages.references import (
    HubReference,
    LocalReference,
    PackageReference,
    ReferenceProblem,
    fingerprint,
    parse,
)
from stages.transient import TransientError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PYTEST_VERSION = importlib.metadata.version("pytest")


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache that holds one model at one commit, as a download leaves it."""
    cache = tmp_path / "hub"
    repository = cache / "models--org--tiny"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return cache


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("package:a-b.c==1.2.post1/x/y.gguf", PackageReference("a-b.c", "1.2.post1", PurePosixPath("x/y.gguf"))),
        ("package:ab/y", PackageReference("ab", None, PurePosixPath("y"))),
        ("hub:org/name", HubReference("org/name", None)),
        ("hub:org/name.v1@refs/pr/1", HubReference("org/name.v1", "refs/pr/1")),
        ("hub:datasets/org/name@main", HubReference("org/name", "main", "dataset")),
        ("org/name@v1.0", HubReference("org/name", "v1.0")),
        ("/a/b", LocalReference(Path("/a/b"))),
    ],
)
def test_each_form_is_understood_and_spelled_back(text: str, expected: object, tmp_path: Path) -> None:
    reference = parse(text, tmp_path)
    assert reference == expected
    assert parse(str(reference), Path("/elsewhere")) == expected


def test_relative_paths_start_at_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name").touch()
    assert parse("./x", tmp_path) == LocalReference(tmp_path / "x")
    assert parse("../x", tmp_path) == LocalReference(tmp_path.parent / "x")
    assert parse("org/name", tmp_path) == LocalReference(tmp_path / "org" / "name"), "what exists is a path"
    assert parse("org/other", tmp_path) == HubReference("org/other", None)
    assert parse("data/train.jsonl", tmp_path) == LocalReference(tmp_path / "data" / "train.jsonl")
    assert parse("~/x", tmp_path) == LocalReference(Path.home() / "x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name", "no path that exists under .* and no hub repository"),
        ("", "no path that exists|no such file"),
        ("hub:name", "expected hub:org/name"),
        ("package:name", "expected package:NAME==VERSION/path/inside"),
        ("package:name==/x", "expected package:NAME==VERSION/path/inside"),
        ("package:name/../x", "leaves the package"),
    ],
)
def test_other_texts_are_refused_with_what_was_expected(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ReferenceProblem, match=message):
        parse(text, tmp_path / "nowhere").locate()


def test_a_package_file_is_found_without_importing_the_package() -> None:
    code = (
        "import sys; from pathlib import Path; from stages.references import parse\n"
        "path = parse('package:pytest/_pytest/fixtures.py', Path.cwd()).locate()\n"
        "assert path.is_file() and '_pytest' not in sys.modules and 'huggingface_hub' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "package:no-such-thing==1.2/x",
            r"not installed; install it with\n    pip install --no-deps no-such-thing==1\.2$",
        ),
        ("package:no-such-thing/x", r"pip install --no-deps no-such-thing$"),
        ("package:pytest==0.1/x", rf"pytest {PYTEST_VERSION} is installed, 0\.1 is wanted"),
        ("package:pytest/_pytest/fixture.py", "holds no _pytest/fixture.py; did you mean _pytest/fixtures.py"),
    ],
)
def test_a_package_that_does_not_serve_says_what_to_do(text: str, message: str) -> None:
    with pytest.raises(ReferenceProblem, match=message):
        fingerprint(parse(text, Path.cwd()))


def test_a_missing_path_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(ReferenceProblem, match=r"trian\.jsonl: no such file or directory; did you mean train\.jsonl"):
        parse("trian.jsonl", tmp_path).locate()


def test_identity_follows_content_and_neither_place_nor_spelling(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b" / "c"
    for directory in (first, second):
        (directory / "sub").mkdir(parents=True)
        (directory / "sub" / "x.txt").write_text("text")
        (directory / "y.txt").write_text("more")
    (second / ".hidden").write_text("ignored")
    (second / "__pycache__").mkdir()
    (second / "__pycache__" / "z").write_text("ignored")
    identity = fingerprint(parse("./a", tmp_path)).identity
    assert fingerprint(parse(str(first), Path("/"))).identity == identity
    assert fingerprint(parse("./c", tmp_path / "b")).identity == identity

    (second / "sub" / "x.txt").rename(second / "x.txt")
    assert fingerprint(parse("./c", tmp_path / "b")).identity != identity, "names inside count"
    assert fingerprint(LocalReference(first / "y.txt")).identity.endswith(".txt")
    shutil.copy(first / "y.txt", tmp_path / "y.jsonl")
    assert (
        fingerprint(LocalReference(tmp_path / "y.jsonl")).identity
        != fingerprint(LocalReference(first / "y.txt")).identity
    ), "the same bytes are read otherwise under another suffix"


def test_the_description_pins_what_is_installed() -> None:
    pinned = fingerprint(parse("package:pytest/_pytest/fixtures.py", Path.cwd()))
    assert pinned.description["reference"] == f"package:pytest=={PYTEST_VERSION}/_pytest/fixtures.py"
    assert pinned.identity == f"sha256:{pinned.description['sha256']}.py"


def test_a_cached_hub_model_is_pinned_to_its_commit_offline(hub_cache: Path, tmp_path: Path) -> None:
    for text in ("hub:org/tiny", "org/tiny@main", f"hub:org/tiny@{COMMIT}"):
        reference = parse(text, tmp_path)
        found = fingerprint(reference)
        assert found.identity == f"commit:{COMMIT}"
        assert found.description == {"reference": f"hub:org/tiny@{COMMIT}", "commit": COMMIT}
        assert (parse(found.description["reference"], tmp_path).locate() / "config.json").is_file()


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("hub:org/absent", "hf download org/absent\n"),
        ("hub:org/tiny@v2", "hf download org/tiny --revision v2\n"),
        ("hub:datasets/org/absent", "hf download org/absent --repo-type dataset\n"),
    ],
)
def test_a_hub_repository_out_of_reach_says_what_to_do_offline(
    hub_cache: Path, tmp_path: Path, text: str, command: str
) -> None:
    with pytest.raises(ReferenceProblem, match=command) as problem:
        fingerprint(parse(text, tmp_path))
    assert not isinstance(problem.value, TransientError), "offline is what the user wants"


LOCATE = """
import sys
from pathlib import Path
from stages.references import ReferenceUnreachable, parse
from stages.stage import StageUnavailable, stage_error
try:
    parse("hub:org/absent", Path.cwd()).locate(["config.json"])
except ReferenceUnreachable as problem:
    assert isinstance(stage_error(problem), StageUnavailable)
    print(problem)
"""


def test_a_hub_that_does_not_answer_may_answer_later(tmp_path: Path) -> None:
    with socket.socket() as nobody:  # bound, but nobody listens
        nobody.bind(("127.0.0.1", 0))
        hub = {"HF_ENDPOINT": f"http://127.0.0.1:{nobody.getsockname()[1]}", "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", LOCATE]
        environment = os.environ | hub | {"HF_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
        told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert "hub:org/absent: not in the local cache, and the hub cannot be reached" in told.stdout
