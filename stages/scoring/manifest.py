"""``manifest.json`` of a ScoresArtifact: whose scores of which text these are, and which files hold them.

Light: read while an artifact is verified, and before anything is loaded.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from stages.objectives.capabilities import Need

NAME = "manifest.json"
KIND = "scores"
FORMAT = 1
TOKENIZER = "tokenizer"
"""The directory of the teacher's tokenizer inside the artifact; imported scores may have none."""


@dataclass(frozen=True)
class FileFacts:
    """One file: its size in bytes and its CRC-32."""

    size: int
    crc32: int


@dataclass(frozen=True)
class Shard:
    """One directory of scores: those of a run of documents.

    Attributes:
        name: of the directory below ``shards``.
        documents: number of documents.
        entries: number of entries, one a token.
        bytes: of text.
        files: by name.
    """

    name: str
    documents: int
    entries: int
    bytes: int
    files: dict[str, FileFacts]


@dataclass(frozen=True)
class Teacher:
    """The model whose scores these are; what a server does not tell is None.

    Attributes:
        model: sha256 of the model's files, or the name that a server gave.
        width: of its hidden states.
        layers: number of its hidden states, the embedding included.
        dtype: in which it computed.
    """

    model: str
    width: int | None = None
    layers: int | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class Manifest:
    """What a ScoresArtifact holds.

    Attributes:
        source: the stage kind that made it.
        teacher: whose scores these are.
        tokenizer: fingerprint of the teacher's tokenizer; None if it is not at hand.
        chat_template: sha256 of the template that rendered conversations; None without one.
        vocab_size: ids of the tokenizer; None if it is not at hand.
        prefix_tokens: special tokens that stand before every text.
        number_format: of log-probabilities and hidden states, ``float32`` or ``float16``.
        window_tokens, context_tokens: of the passes in which the text was scored; None if a server knows.
        boundary: whether the boundary log-mass is there.
        top_k: how many most probable tokens every entry has; None for none.
        hidden_layers: numbers of the layers whose hidden states are there, counted from 0, the embedding.
        documents_sha256: of the ``documents.jsonl`` that was scored; None if it is not known.
        index: files of the index, by name.
        shards: in the order of their entries.
    """

    source: str
    teacher: Teacher
    tokenizer: str | None
    chat_template: str | None
    vocab_size: int | None
    prefix_tokens: int
    number_format: Literal["float32", "float16"]
    window_tokens: int | None
    context_tokens: int | None
    boundary: bool
    top_k: int | None
    hidden_layers: tuple[int, ...]
    documents_sha256: str | None
    index: dict[str, FileFacts] = field(default_factory=dict)
    shards: tuple[Shard, ...] = ()

    @property
    def gives(self) -> frozenset[Need]:
        """What objectives may ask of a teacher that is known by these scores alone."""
        return gives(boundary=self.boundary, top_k=self.top_k, hidden_layers=self.hidden_layers)

    def files(self) -> dict[str, FileFacts]:
        """Every file of numbers, by its path inside the artifact."""
        listed = {f"index/{name}": facts for name, facts in self.index.items()}
        for shard in self.shards:
            listed |= {f"shards/{shard.name}/{name}": facts for name, facts in shard.files.items()}
        return listed

    def to_json(self) -> dict[str, Any]:
        """The content of ``manifest.json``."""
        return {"kind": KIND, "format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Manifest:
        """What ``to_json`` gave.

        Raises:
            ValueError: it is no manifest of scores, or one of another format.
        """
        if not isinstance(value, dict) or value.get("kind") != KIND:
            raise ValueError("is no manifest of a teacher's scores")
        if value.get("format") != FORMAT:
            raise ValueError(f"has format {value.get('format')}; this version reads {FORMAT}")
        fields = {name: value[name] for name in cls.__dataclass_fields__}
        return cls(
            **fields
            | {
                "teacher": Teacher(**value["teacher"]),
                "hidden_layers": tuple(value["hidden_layers"]),
                "index": file_facts(value["index"]),
                "shards": tuple(Shard(**shard | {"files": file_facts(shard["files"])}) for shard in value["shards"]),
            }
        )


def file_facts(files: dict[str, dict[str, int]]) -> dict[str, FileFacts]:
    """``FileFacts`` by name, out of their JSON form."""
    return {name: FileFacts(**facts) for name, facts in files.items()}


def gives(*, boundary: bool, top_k: int | None, hidden_layers: tuple[int, ...]) -> frozenset[Need]:
    """What objectives may ask of scores that hold this."""
    given: set[Need] = {"nothing", "scores"}
    if boundary:
        given.add("boundary")
    if top_k is not None:
        given.add("top_k")
    if hidden_layers:
        given.add("hidden_states")
    return frozenset(given)


def holds_scores(directory: Path) -> bool:
    """Whether an artifact's directory holds a teacher's scores, and not a model."""
    try:
        return json.loads((directory / NAME).read_text(encoding="utf-8")).get("kind") == KIND
    except FileNotFoundError:
        return False


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a ScoresArtifact.

    Raises:
        ValueError: it is missing a field, or not of this format; the message names the file.
    """
    path = directory / NAME
    try:
        return Manifest.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None
