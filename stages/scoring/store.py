"""Scores on disk: one memory-mapped column a number, in shards that are written whole or not at all.

An *entry* is one token of a document as the teacher reads it, special tokens that it puts before the text included.
Entry t of a document holds

* ``byte_lengths``: bytes of text that the token stands for, 0 for special tokens;
* ``label_logp``: log-probability of the token given those before it, NaN where there is none;
* ``boundary_logp``: log-mass, after the token, of tokens that start with a boundary byte (alm.md §1.6);
* ``top_ids``, ``top_logp`` [K]: the most probable tokens after it, most probable first; ``tail_logp``: the log-mass of
  all others; ``entropy``: of the whole distribution, in nats;
* ``hidden_<layer>`` [D]: hidden states.

Entries are numbered through all shards. Documents are found by a digest of their text, so their order and weights may
change, and a text that was not scored is never taken for one that was.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from stages.artifacts import read_json, write_json
from stages.scoring.manifest import FileFacts, Manifest, Shard, file_facts, read_manifest
from stages.stage import StageError

_SHARD_FILE = "shard.json"
_INDEX_COLUMNS = ("digests", "firsts", "counts")


def text_digest(text: str, *, rendered: bool = False) -> int:
    """64 bits that name a text; a rendered conversation is read in another way than a text that spells the same."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, person=b"chat" if rendered else b"")
    return int.from_bytes(digest.digest(), "little")


@dataclass(frozen=True)
class Span:
    """Where the entries of one document lie: ``count`` of them from ``first`` on."""

    first: int
    count: int


class ScoreStore:
    """The scores of a ScoresArtifact, read where they lie.

    Args:
        directory: the artifact.

    Raises:
        StageError: the manifest cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            self.manifest: Manifest = read_manifest(directory)
        except ValueError as error:
            raise StageError(str(error)) from None
        self._bases = np.cumsum([0, *(shard.entries for shard in self.manifest.shards)])
        self._columns: dict[tuple[int, str], np.ndarray] = {}

    def __reduce__(self) -> tuple[type[ScoreStore], tuple[Path]]:
        return ScoreStore, (self.directory,)  # another process maps the files itself

    def find(self, digest: int) -> Span | None:
        """The entries of the document whose text has this digest; None if it was not scored."""
        digests, firsts, counts = self._index
        place = int(digests.searchsorted(np.uint64(digest)))
        if place == len(digests) or int(digests[place]) != digest:
            return None
        return Span(int(firsts[place]), int(counts[place]))

    def read(self, column: str, entries: np.ndarray) -> np.ndarray:
        """The values [N, ...] of a column at entries (int64 [N], in any order)."""
        shards = self._bases.searchsorted(entries, side="right") - 1
        values: np.ndarray | None = None
        for shard in np.unique(shards).tolist():
            here = shards == shard
            found = self._column(shard, column)[entries[here] - self._bases[shard]]
            if values is None:
                values = np.empty((len(entries), *found.shape[1:]), found.dtype)
            values[here] = found
        return self._column(0, column)[:0] if values is None else values

    def slice(self, column: str, span: Span) -> np.ndarray:
        """The values of a column for one document, whose entries lie in one shard."""
        if not span.count:
            return self._column(0, column)[:0]
        shard = int(self._bases.searchsorted(span.first, side="right")) - 1
        first = span.first - int(self._bases[shard])
        return self._column(shard, column)[first : first + span.count]

    def check(self) -> None:
        """Compare every file with its checksum.

        Raises:
            StageError: one is missing or damaged; names it.
        """
        for name, facts in self.manifest.files().items():
            path = self.directory / name
            if not path.is_file() or facts_of(path) != facts:
                raise StageError(
                    f"{path} is not what was written (size or checksum differ): the scores are damaged. Make them "
                    "anew: pipeline run --force with the name of the stage that made them"
                )

    @cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        digests, firsts, counts = (_open(self.directory / "index" / f"{name}.npy") for name in _INDEX_COLUMNS)
        return digests, firsts, counts

    def _column(self, shard: int, column: str) -> np.ndarray:
        if (shard, column) not in self._columns:
            path = self.directory / "shards" / self.manifest.shards[shard].name / f"{column}.npy"
            self._columns[shard, column] = _open(path)
        return self._columns[shard, column]


class ShardWriter:
    """Writes one shard: into a directory beside it, which takes its name once everything is on the disk.

    Args:
        root: the directory of the shards.
        name: of this one.
        digests: of its documents' texts.
        byte_lengths: of the entries of each document.
        text_bytes: of all its documents.
    """

    def __init__(
        self, root: Path, name: str, digests: Sequence[int], byte_lengths: Sequence[np.ndarray], text_bytes: int
    ) -> None:
        self._final = root / name
        self._partial = root / f"{name}.partial"
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        counts = np.array([len(lengths) for lengths in byte_lengths], dtype=np.int64)
        self.entries = int(counts.sum())
        self._facts = {"name": name, "documents": len(counts), "entries": self.entries, "bytes": text_bytes}
        self._maps: dict[str, np.ndarray] = {}
        # Only the index is made of these two; they stay out of the artifact.
        np.save(self._partial / "digests.npy", np.array(digests, dtype=np.uint64))
        np.save(self._partial / "counts.npy", counts)
        lengths = np.concatenate([*byte_lengths, np.zeros(0, dtype=np.int64)])
        np.save(self._partial / "byte_lengths.npy", lengths.astype(np.min_scalar_type(int(lengths.max(initial=0)))))

    def column(self, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """A new column [entries, *shape], to be filled."""
        self._maps[name] = np.lib.format.open_memmap(
            self._partial / f"{name}.npy", mode="w+", dtype=np.dtype(dtype), shape=(self.entries, *shape)
        )
        return self._maps[name]

    def finish(self) -> None:
        """Put the shard in its place."""
        for values in self._maps.values():
            values.flush()
        self._maps.clear()
        columns = sorted(path for path in self._partial.glob("*.npy") if path.stem not in _INDEX_COLUMNS)
        files = {path.name: vars(facts_of(path)) for path in columns}
        write_json(self._partial / _SHARD_FILE, self._facts | {"files": files})
        for path in (*self._partial.iterdir(), self._partial):
            _sync(path)
        self._partial.rename(self._final)
        _sync(self._final.parent)


def finished(root: Path, name: str) -> Shard | None:
    """A shard that was written whole; None otherwise."""
    path = root / name / _SHARD_FILE
    if not path.is_file():
        return None
    facts = read_json(path)
    return Shard(**facts | {"files": file_facts(facts["files"])})


def publish(work: Path, out: Path, names: Sequence[str], manifest: Mapping[str, object]) -> Manifest:
    """Put finished shards into an artifact, with the index of their documents; the manifest comes last.

    The files are linked, where the file system can, and stay in ``work``: an attempt that ends here loses nothing.

    Args:
        work: the directory of the shards.
        out: the artifact.
        names: of the shards, in order.
        manifest: all of it but the files.
    """
    shards = tuple(finished(work, name) for name in names)
    for shard in shards:
        target = out / "shards" / shard.name
        target.mkdir(parents=True)
        for file in shard.files:
            _link(work / shard.name / file, target / file)
    (out / "index").mkdir()
    for name, values in _index(work, shards).items():
        np.save(out / "index" / f"{name}.npy", values)
    index = {path.name: facts_of(path) for path in sorted((out / "index").iterdir())}
    whole = Manifest(**manifest, index=index, shards=shards)
    write_json(out / "manifest.json", whole.to_json())
    return whole


def _index(work: Path, shards: Sequence[Shard]) -> dict[str, np.ndarray]:
    """Digest, first entry and number of entries of every text, by digest; the first of equal texts."""
    digests, counts = (
        np.concatenate([np.load(work / shard.name / f"{name}.npy") for shard in shards])
        for name in ("digests", "counts")
    )
    digests, chosen = np.unique(digests, return_index=True)
    firsts = np.cumsum(counts) - counts
    return {"digests": digests, "firsts": firsts[chosen], "counts": counts[chosen].astype(np.uint32)}


def facts_of(path: Path) -> FileFacts:
    """Size and CRC-32 of a file."""
    total = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            total = zlib.crc32(block, total)
    return FileFacts(path.stat().st_size, total)


def _open(path: Path) -> np.ndarray:
    # An empty file cannot be mapped.
    return np.load(path, mmap_mode="r") if path.stat().st_size > 128 else np.load(path)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
