"""What ``resources.<stage>.zero`` makes of a training stage: DeepSpeed's settings, loading in parts, the backend."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from transformers import AutoConfig

from stages.artifacts import write_json
from stages.masking import masked
from stages.stage import StageContext, StageError
from stages.training.backends import process_group
from stages.training.backends.backend import Backend, PlainBackend
from stages.training.backends.deepspeed_config import Settings, notes, read_given, student_settings, teacher_settings
from stages.training.config import TrainingConfig
from stages.training.memory.memory_facts import trained_elements
from stages.training.models import ScoringModel
from stages.training.teachers.teacher_options import QUANTISED

RECORD = "deepspeed.json"
"""Where the settings are recorded, in the stage's ``work``."""


@dataclass(frozen=True)
class Zero:
    """DeepSpeed's settings for the models of a stage.

    Attributes:
        student: None for a whole student in every process.
        teacher: None for a whole teacher in every process.
        without_effect: what of the recipe's ``resources`` nothing comes of, and why; in words.
    """

    student: Settings | None = None
    teacher: Settings | None = None
    without_effect: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        ctx: StageContext,
        config: TrainingConfig,
        micro_batch: int | None,
        accumulation: int | None,
        teacher_dtype: str | None,
    ) -> Self:
        """Resolve and record the settings.

        Args:
            ctx: the stage's context; its ``resources`` hold ``zero`` and ``deepspeed``.
            config: optimisation options.
            micro_batch: rows in one forward pass of one process; None where steps differ.
            accumulation: forward passes of one process in one step; None where steps differ.
            teacher_dtype: of the weights of a teacher that is loaded; None where there is none, as with scores from a
                file, and where the student teaches itself.

        Raises:
            StageError: the recipe's DeepSpeed configuration contradicts the recipe, or has no effect.
        """
        zero = {"student": 0, "teacher": 0} | ctx.resources.get("zero", {})
        given = read_given(ctx.resources.get("deepspeed"))
        if given and zero["student"] == 0:
            raise StageError(
                "resources.<stage>.deepspeed has no effect on a student that is not split; set zero.student to 1, 2 or "
                "3, or remove it"
            )
        split_teacher = zero["teacher"] == 3 and _can_be_split(teacher_dtype)
        without_effect = tuple(_without_effect(zero, teacher_dtype, given))
        for note in without_effect:
            ctx.progress(f"note: {note}")
        if zero["student"] == 0 and not split_teacher:
            return cls(without_effect=without_effect)
        width = AutoConfig.from_pretrained(ctx.input("student")).get_text_config().hidden_size
        student = teacher = None
        if zero["student"] > 0:
            student = student_settings(
                zero,
                config,
                micro_batch=micro_batch or 1,
                accumulation=accumulation or 2,  # it matters to DeepSpeed only whether there may be more than one
                processes=ctx.world_size,
                width=width,
                trained=trained_elements(ctx.input("student"), config),
                given=given,
            )
        if split_teacher:
            teacher = teacher_settings(zero, teacher_dtype, width=width, given=given)
        settings = cls(student, teacher, without_effect)
        settings._record(ctx)
        return settings

    @property
    def used(self) -> bool:
        """Whether DeepSpeed is needed."""
        return self.student is not None or self.teacher is not None

    def join(self, ctx: StageContext, device: torch.device) -> None:
        """Join the other processes, and make DeepSpeed ready if it is needed.

        Raises:
            StageError: the processes do not see each other, or NVMe is asked for and cannot be reached.
        """
        process_group.join(ctx, device, alone=self.used)
        if self.used:
            from stages.training.backends.deepspeed_backend import prepare

            os.environ.setdefault("LOCAL_RANK", str(ctx.local_rank))  # DeepSpeed asks for it, even of a single process
            prepare([settings for settings in (self.student, self.teacher) if settings is not None])

    def backend(self, student: ScoringModel, config: TrainingConfig) -> Backend:
        """What trains the student."""
        if self.student is None:
            return PlainBackend(student, config)
        from stages.training.backends.deepspeed_backend import DeepSpeedBackend

        return DeepSpeedBackend(student, config, self.student)

    def _record(self, ctx: StageContext) -> None:
        if self.used and ctx.rank == 0:
            path = ctx.work / RECORD
            write_json(path, masked({name: part for name, part in vars(self).items() if part}))
            ctx.progress(f"DeepSpeed's settings, resolved: {path}")


def _can_be_split(teacher_dtype: str | None) -> bool:
    if teacher_dtype in QUANTISED:
        raise StageError(
            f"teacher_dtype: {teacher_dtype} cannot be split over processes: remove zero.teacher, or use "
            "teacher_dtype: bf16"
        )
    return teacher_dtype is not None


def _without_effect(zero: Mapping[str, Any], teacher_dtype: str | None, given: Mapping[str, Any]) -> Iterator[str]:
    if zero["teacher"] == 3 and teacher_dtype is None:
        yield (
            "resources.<stage>.zero.teacher: 3 has no effect, because no teacher is loaded beside the student; a "
            "student that teaches itself is split by zero.student. Remove it"
        )
    yield from notes(given)


@contextmanager
def split_while_loading(settings: Mapping[str, Any] | None) -> Iterator[None]:
    """Models that transformers loads within it are split over the processes as they are read, if ZeRO-3 is asked for.

    Only within it: transformers splits every model it loads as long as the configuration object lives.
    """
    if settings is None or settings["zero_optimization"]["stage"] < 3:
        yield
        return
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    alive = HfDeepSpeedConfig(dict(settings))
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del alive
