"""Options of teachers that a recipe and the engine share. Light: read while a run is planned."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from stages.stage import StageConfig

TeacherDtype = Literal["bf16", "fp32", "int8", "nf4"]
"""How a teacher's weights are held: as floats, or quantised by bitsandbytes."""

QUANTISED: tuple[TeacherDtype, ...] = ("int8", "nf4")
"""Those that need bitsandbytes."""

TeacherChoice = Literal["sum", "best"]
"""Who teaches a document that several teachers may: all of them, or the one that finds it most probable."""

MAIN_TEACHER = "teacher"
"""What ``models.teacher`` is called among several teachers."""


class TeacherEntry(StageConfig):
    """One of several teachers. A recipe may write its name alone."""

    name: str = Field(min_length=1)
    """A stage of ``needs`` that makes a model or scores, or ``teacher`` for the model of ``models.teacher``."""
    weight: float = Field(1.0, gt=0)
    """Factor of its losses."""
    teaches: tuple[str, ...] | None = Field(None, min_length=1)
    """Values of the data's ``route`` (a set's name, unless the set names a field) that it teaches; default: all."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value
