"""Reading the artifact store: one directory per cache key, shared by every recipe.

The files are the only state (runner specification, section 1). DONE.json is the single point of truth: a result
exists exactly when DONE.json names an output directory that holds every file of its manifest.
``pipeline.publish`` is the writing side.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.executing import locks
from pipeline.keys import canonical_json
from stages import STAGES, load_stage
from stages.resume_points import newest_checkpoint

KEY_PREFIX = 12
"""How many hex digits of the key name the entry's directory."""

_CHECKSUM = "checksum"
"""Field of DONE.json: sha256 of all others. Records of before it was there have none."""


class StoreError(PipelineError):
    """The store holds something that it should not; the message names the path and the way out."""


@dataclass(frozen=True)
class FileRecord:
    """One file of a published directory: path relative to it, size in bytes, sha256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Done:
    """What DONE.json records about a result.

    Attributes:
        key, ingredients: the cache key and the JSON object that was hashed into it.
        result_id: sha256 of the manifest: equal for equal bytes, whoever made them (R2).
        upstream: stage name -> ``result_id`` of the input that was used.
        manifest: every file of the output directory.
        attempt: the number of the attempt that made it, which names its directory.
        run: the recipe name under which it was made.
        seconds: wall-clock time of that attempt.
        finished: when it was published, in seconds since the epoch.
        metrics: the artifact's final numbers (its ``metrics.json``), empty if it has none.
        versions: package name -> version.
        git_commit, git_dirty: the source tree, None outside a git checkout.
        code: sha256 of the source of the stages; None if it was made before that was recorded.
    """

    key: str
    ingredients: Mapping[str, Any]
    result_id: str
    upstream: Mapping[str, str]
    manifest: tuple[FileRecord, ...]
    attempt: int
    run: str
    seconds: float
    finished: float
    metrics: Mapping[str, float]
    versions: Mapping[str, str]
    git_commit: str | None
    git_dirty: bool | None
    code: str | None = None

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Done:
        """Parse the object that DONE.json holds.

        Raises:
            KeyError, TypeError: a field is missing or malformed.
        """
        values = {field.name: record[field.name] for field in fields(cls) if field.name != "code"}
        values["code"] = record.get("code")
        values["manifest"] = tuple(FileRecord(**file) for file in record["manifest"])
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """The object that DONE.json holds: all of this and its checksum."""
        record = asdict(self)
        return record | {_CHECKSUM: _checksum(record)}

    @property
    def size(self) -> int:
        """Bytes of the whole result."""
        return sum(file.size for file in self.manifest)


@dataclass(frozen=True)
class Attempt:
    """One launch of a stage: its number from 1, its directory, and its status.json (empty if unreadable)."""

    number: int
    path: Path
    status: Mapping[str, Any]

    @property
    def state(self) -> str:
        """``running``, ``finished``, ``interrupted`` or ``failed`` as last written.

        A killed runner leaves ``running`` behind: ask ``Entry.is_locked`` whether that is still so.
        """
        return self.status.get("state", "interrupted")

    @property
    def log(self) -> Path:
        """Everything that the stage printed."""
        return self.path / "log.txt"


@dataclass(frozen=True)
class Entry:
    """The directory of one cache key. Reading takes no lock and writes nothing."""

    path: Path
    key: str

    @property
    def work(self) -> Path:
        """Scratch and checkpoints; survives attempts."""
        return self.path / "work"

    @property
    def out(self) -> Path:
        """The published directory; meaningful once ``done()`` is not None.

        Read through DONE.json, not through the link ``out`` that people use: a kill between the two updates
        of a forced re-run leaves them one result apart.
        """
        done = self.done()
        return self.path / "out" if done is None else self.output_directory(done.attempt)

    def output_directory(self, attempt: int) -> Path:
        """Where attempt number ``attempt`` is published."""
        return self.path / f"out.{attempt}"

    def partial_directory(self, attempt: int) -> Path:
        """Where attempt number ``attempt`` writes before it is published."""
        return self.path / f"out.partial-{attempt}"

    @property
    def lock_path(self) -> Path:
        """The file whose flock means "someone is making this result"."""
        return self.path / "stage.lock"

    @property
    def done_path(self) -> Path:
        """DONE.json."""
        return self.path / "DONE.json"

    @property
    def damage_path(self) -> Path:
        """What is wrong with the content of an attempt's output: ``pipeline.verify`` writes it."""
        return self.path / "damage.json"

    def done(self) -> Done | None:
        """The published result, or None if there is none or it is damaged (``problem`` says which).

        Raises:
            StoreError: the result belongs to another key with the same prefix.
        """
        done, _ = self._inspect()
        return done

    def problem(self) -> str | None:
        """What is wrong with a result that DONE.json announces; None if it is whole or was never made."""
        _, problem = self._inspect()
        return problem

    def _inspect(self) -> tuple[Done | None, str | None]:
        try:
            done = self.recorded()
        except StoreError as error:
            return None, str(error)
        if done is None:
            return None, None
        if done.key != self.key:
            raise StoreError(
                f"{self.path} holds the result of key {done.key}, but {self.key} was asked for: two keys share "
                f"their first {KEY_PREFIX} digits.\nUse another store for this recipe (--runs DIR)."
            )
        directory = self.output_directory(done.attempt)
        for file in done.manifest:
            path = directory / file.path
            try:
                size = path.stat().st_size
            except OSError:
                return None, f"{path} is missing"
            if size != file.size:
                return None, f"{path} has {size:,} bytes, its manifest says {file.size:,}"
        if damage := self._known_damage(done.attempt):
            return None, f"{directory}: {damage} (found by `pipeline verify`)"
        return done, None

    def _known_damage(self, attempt: int) -> str | None:
        """What ``pipeline.verify`` noted of the output of ``attempt``, in words."""
        noted = _read_object(self.damage_path) or {}
        return f"{noted.get('problem')}" if noted.get("attempt") == attempt else None

    def recorded(self) -> Done | None:
        """What DONE.json says, whatever became of the files; None if there is none.

        Raises:
            StoreError: it is not what was written.
        """
        try:
            record = json.loads(self.done_path.read_text(encoding="utf-8"))
            done = Done.from_json(record)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"{self.done_path} is unreadable ({error!r})") from None
        if record.get(_CHECKSUM) not in (None, _checksum(record)):
            raise StoreError(f"{self.done_path.name} changed since it was written: its checksum differs ({self.path})")
        return done

    def ingredients(self) -> Mapping[str, Any] | None:
        """What was hashed into the key, known from the first attempt on."""
        return _read_object(self.path / "ingredients.json")

    def attempts(self) -> list[Attempt]:
        """All attempts, oldest first."""
        found = [path for path in (self.path / "attempts").glob("*") if path.name.isdecimal()]
        return [
            Attempt(int(path.name), path, _read_object(path / "status.json") or {})
            for path in sorted(found, key=lambda path: int(path.name))
        ]

    def last_attempt(self) -> Attempt | None:
        """The newest attempt."""
        return next(reversed(self.attempts()), None)

    def is_locked(self) -> bool:
        """Whether some process is making this result now."""
        return locks.is_locked(self.lock_path)

    def begun_with(self) -> list[str] | None:
        """Result ids of the inputs that ``work`` was begun with, in order; None if that is not known."""
        try:
            return json.loads((self.work / "inputs.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def work_is_spent(self) -> bool:
        """Whether ``work`` is what the attempt that made the result left: a kill came before it could be cleared."""
        done, last = self.done(), self.last_attempt()
        return done is not None and (last is None or last.number <= done.attempt)

    def resume_point(self) -> str | None:
        """Where the next attempt would go on, for a person, in the words of the stage's kind (R9)."""
        if self.work_is_spent():
            return None
        kind = self.path.parent.name
        stage = load_stage(kind) if kind in STAGES else None
        return getattr(stage, "resume_point", newest_checkpoint)(self.work)


@dataclass(frozen=True)
class Store:
    """All entries under one root, usually ``runs/store``."""

    root: Path

    def entry(self, kind: str, key: str) -> Entry:
        """The entry of ``key`` among the results of stage kind ``kind``; it need not exist yet."""
        return Entry(self.root / kind / key[:KEY_PREFIX], key)


def _checksum(record: Mapping[str, Any]) -> str:
    """sha256 hex of a record, its own checksum aside."""
    text = canonical_json({name: value for name, value in record.items() if name != _CHECKSUM})
    return hashlib.sha256(text.encode()).hexdigest()


def _read_object(path: Path) -> Mapping[str, Any] | None:
    """The JSON object in ``path``; None if it is missing or was cut off by a crash."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
