"""The stages that a recipe's ``models`` and ``data`` sections stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.reading.problems import Location
from stages.sources import BYTES


@dataclass(frozen=True)
class SourceStage:
    """One implicit stage, ``sources/<source>``.

    Attributes:
        uses: its stage kind.
        section: the part of the recipe it is made from.
        option: the one option of the stage kind that takes the whole section; None when the section's keys are
            the options.
    """

    uses: str
    section: Location
    option: str | None = None

    @property
    def required(self) -> Location:
        """The key that a recipe must give for this stage to exist."""
        return self.section if self.option else (*self.section, "model")


TARGET_TOKENIZER: Location = ("models", "student", "tokenizer")

SOURCE_STAGES: Mapping[str, SourceStage] = {
    "teacher": SourceStage("source-model", ("models", "teacher")),
    "student": SourceStage("source-model", ("models", "student")),
    "donor": SourceStage("source-model", ("models", "donor")),
    "teacher_config": SourceStage("source-model-config", ("models", "teacher")),
    "student_config": SourceStage("source-model-config", ("models", "student")),
    "tokenizer": SourceStage("source-tokenizer", TARGET_TOKENIZER, option="tokenizer"),
    "train": SourceStage("source-documents", ("data", "train"), option="documents"),
    "eval": SourceStage("source-documents", ("data", "eval"), option="documents"),
}


def stage_name(source: str) -> str:
    """The implicit stage's name; a slash keeps it apart from every stage of a recipe."""
    return f"sources/{source}"


def source_options(source: str, values: Mapping[str, Any]) -> Any:
    """The options of an implicit stage as the recipe gives them, no mapping where it is wrong; None if it gives none.

    The target tokenizer is what the student's tokenizer shall become, so it is a source of its own and no
    option of the student's model.
    """
    spec = SOURCE_STAGES[source]
    value: Any = values
    for part in spec.section:
        value = value.get(part) if isinstance(value, Mapping) else None
    if value is None:
        return None
    if spec.section == TARGET_TOKENIZER:
        value = _target_tokenizer(value, values["models"]["student"])
    if spec.option is not None:
        return {spec.option: value}
    if not isinstance(value, Mapping):
        return value
    return {key: item for key, item in value.items() if (*spec.section, key) != TARGET_TOKENIZER} or None


def _target_tokenizer(value: Any, student: Mapping[str, Any]) -> Any:
    """The target tokenizer as the recipe gives it; the word ``bytes`` is the student's own tokenizer turned into bytes.

    Without a student's model the word stays, and the stage's configuration says what is missing.
    """
    if value != BYTES or not student.get("model"):
        return value
    trust = {key: student[key] for key in ("trust_remote_code",) if key in student}
    return {"file": student["model"], "bytes": True, **trust}
