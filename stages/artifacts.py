"""What stages hand to each other: directories with a known content, and the cheap check that it is whole.

``verify`` runs in the runner before an artifact is published, so it imports neither torch nor transformers and
reads headers, not tensors. Any artifact may hold a ``metrics.json``: a flat object of final numbers that the
runner records in DONE.json and in MLflow.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any


class ArtifactError(Exception):
    """A directory is not the artifact it should be; the message names the file and what is wrong with it."""


def read_json(path: Path) -> Any:
    """Parse ``path``.

    Raises:
        ArtifactError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not valid JSON: {error}") from None


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as readable UTF-8 JSON; NaN and infinities, which JSON lacks, are refused with ValueError."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def verify_safetensors(path: Path) -> None:
    """Check that the header parses and that the file is as long as its header says.

    Raises:
        ArtifactError: the file is cut off or is no safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise ArtifactError(f"{path} is cut off: {size} bytes")
        (length,) = struct.unpack("<Q", prefix)
        try:
            header = json.loads(file.read(length)) if length <= size else None
        except (json.JSONDecodeError, UnicodeDecodeError):
            header = None
    if not isinstance(header, dict):
        raise ArtifactError(f"{path} has no valid safetensors header")
    end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    if 8 + length + end != size:
        raise ArtifactError(f"{path} is cut off: {size} bytes, its header promises {8 + length + end}")


class Artifact:
    """A directory that one stage publishes and others read."""

    kind: str = "artifact"
    required: tuple[str, ...] = ()

    @classmethod
    def verify(cls, path: Path) -> None:
        """Check that ``path`` is a whole artifact of this kind, cheaply.

        Raises:
            ArtifactError: a required file is missing, empty or unreadable.
        """
        for name in cls.required:
            file = path / name
            if not file.is_file() or file.stat().st_size == 0:
                raise ArtifactError(f"{file} is missing or empty")
        for file in sorted(path.glob("*.json")):
            read_json(file)
        for file in sorted(path.glob("*.safetensors")):
            verify_safetensors(file)


class TokenizerArtifact(Artifact):
    """A directory that ``AutoTokenizer.from_pretrained`` loads."""

    kind = "tokenizer"
    required = ("tokenizer_config.json",)

    @classmethod
    def verify(cls, path: Path) -> None:
        super().verify(path)
        _verify_vocabulary(path)


class ModelArtifact(Artifact):
    """An ordinary Hugging Face model directory with its tokenizer: no code of ours is needed to load it."""

    kind = "model"
    required = ("config.json", *TokenizerArtifact.required)

    @classmethod
    def verify(cls, path: Path) -> None:
        super().verify(path)
        _verify_vocabulary(path)
        if not any(path.glob("*.safetensors")):
            raise ArtifactError(f"{path} holds no *.safetensors file")


class ModelConfigArtifact(TokenizerArtifact):
    """A model directory without its weights: ``config.json`` and the tokenizer."""

    kind = "model-config"
    required = ("config.json", *TokenizerArtifact.required)


def _verify_vocabulary(path: Path) -> None:
    """Check that the tokenizer has its ``tokenizer.json``, unless it runs in Python and says so."""
    file = path / "tokenizer.json"
    if file.is_file() and file.stat().st_size > 0:
        return
    if read_json(path / "tokenizer_config.json").get("backend", "tokenizers") == "tokenizers":
        raise ArtifactError(f"{file} is missing or empty")


class DocumentsArtifact(Artifact):
    """``documents.jsonl``: one ``{"id", "domain", "weight"}`` with a ``text`` (and ``context_bytes``, if it begins with
    a prompt), or with ``messages`` (and ``tools``), a line; ``manifest.json``: counts per domain; ``streams.json``: the
    sets of which ``documents.jsonl`` has a sample alone, and where all of each lies."""

    kind = "documents"
    required = ("documents.jsonl", "manifest.json")


class AlignmentArtifact(Artifact):
    """``alignment.npz``: which rows of a source vocabulary make each row of a target one; ``report.json``."""

    kind = "alignment"
    required = ("alignment.npz", "report.json")


class ReportArtifact(Artifact):
    """``report.json``: what was measured; ``table.txt``: the same for a person; plots beside them."""

    kind = "report"
    required = ("report.json", "table.txt")


class AuditArtifact(ReportArtifact):
    """A report on two tokenizers and a text, also as ``report.html``: one page that needs no other file."""

    kind = "audit"
    required = (*ReportArtifact.required, "report.html")


class EvaluationArtifact(ReportArtifact):
    """What models were found to be, also as ``report.html``: one page that needs no other file."""

    kind = "evaluation"
    required = (*ReportArtifact.required, "report.html")


class HypernetArtifact(Artifact):
    """``hypernet.json``: a network that predicts embedding rows and the student that it fits; its weights beside it."""

    kind = "hypernet"
    required = ("hypernet.json", "hypernet.safetensors")


class ScoresArtifact(Artifact):
    """A teacher's scores of documents: columns of numbers below ``shards`` and ``index``, ``manifest.json`` with the
    size and checksum of each file, and the teacher's tokenizer below ``tokenizer`` where it is known."""

    kind = "scores"
    required = ("manifest.json",)

    @classmethod
    def verify(cls, path: Path) -> None:
        from stages.scoring.manifest import TOKENIZER, read_manifest  # knows objectives, which know this module

        super().verify(path)
        try:
            manifest = read_manifest(path)
        except ValueError as error:
            raise ArtifactError(str(error)) from None
        for name, facts in manifest.files().items():
            file = path / name
            if not file.is_file():
                raise ArtifactError(f"{file} is missing")
            if file.stat().st_size != facts.size:
                raise ArtifactError(f"{file} has {file.stat().st_size} bytes, the manifest says {facts.size}")
        if manifest.tokenizer is not None:
            TokenizerArtifact.verify(path / TOKENIZER)
