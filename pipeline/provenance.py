"""What produced a result: package versions, source tree, machine."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path

PACKAGES = ("tokenferry", "torch", "transformers", "tokenizers", "safetensors", "deepspeed", "numpy")
"""The packages whose version can change a result."""

CODE = ("alignment", "losses", "stages")
"""Our own packages that can change a result; ``pipeline`` only says what runs."""

_SOURCES = (*CODE, "pipeline")

_ROOT = Path(__file__).resolve().parents[1]


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the installed ``PACKAGES``, without importing them."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def code_digest() -> str:
    """sha256 hex of the source of everything that stages run: the packages of ``CODE``, without their tests."""
    digest = hashlib.sha256()
    for package in CODE:
        for path in sorted((_ROOT / package).rglob("*.py")):
            digest.update(f"{path.relative_to(_ROOT).as_posix()}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


@functools.cache
def git_state() -> tuple[str | None, bool | None]:
    """Commit of the checkout that this code runs from and whether it has changes; None outside a checkout.

    Changes are those of tracked files, and new sources in our own packages. A user's recipes, texts and results lie in
    the checkout too, and say nothing of the code.
    """
    if not (_ROOT / ".git").exists():
        return None, None
    commit = _git(_ROOT, "rev-parse", "HEAD")
    changed = _git(_ROOT, "status", "--porcelain", "--untracked-files=no")
    new = _git(_ROOT, "ls-files", "--others", "--exclude-standard", "--", *(f"{each}/*.py" for each in _SOURCES))
    return commit, None if changed is None or new is None else bool(changed or new)


def _git(root: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
