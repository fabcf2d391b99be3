"""The teachers of a distillation: where they lie, what may be seen of each, and how text is aligned with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.scoring.manifest import holds_scores
from stages.scoring.store import ScoreStore
from stages.stage import StageContext, StageError
from stages.training.data.aligner import DocumentAligner
from stages.training.data.random_splits import RandomSplits
from stages.training.data.scored_text import ScoredDocuments
from stages.training.teachers.several_teachers import TeacherAligners
from stages.training.teachers.teacher_loading import check_teacher_dtype
from stages.training.teachers.teacher_options import MAIN_TEACHER, TeacherDtype, TeacherEntry

DEFAULT_TOP_K = 64
DEFAULT_EMA_DECAY = 0.999


@dataclass(frozen=True)
class Teaching:
    """Where a teacher's ModelArtifact lies, and how much of it objectives may see.

    Attributes:
        directory: the teacher's ModelArtifact, or ScoresArtifact.
        top_k: its most probable tokens of every position; None for the whole distribution.
        dtype: of its weights and its arithmetic; None where no weights are loaded.
        is_student: ``directory`` is the student's, and the one copy of its weights is to be both.
        scores: the teacher's scores of the training documents, which are read in place of a model.
        average: ``directory`` is the student's, and the teacher the moving average of the student with this decay.
        name: among several teachers; empty for a single one.
        weight: factor of its losses.
    """

    directory: Path
    top_k: int | None = None
    dtype: TeacherDtype | None = "bf16"
    is_student: bool = False
    scores: ScoreStore | None = None
    average: float | None = None
    name: str = ""
    weight: float = 1.0

    @property
    def title(self) -> str:
        """What messages call it: a path into the store tells a user nothing."""
        return f"the teacher {self.name}" if self.name else "the teacher"


def loaded_dtype(teachings: Sequence[Teaching]) -> TeacherDtype | None:
    """Of the weights of the teachers that are models of their own, one for all; None where there is none.

    The student that teaches itself is none, nor are scores from a file.
    """
    return next((each.dtype for each in teachings if each.dtype is not None and not each.is_student), None)


def teachings_of(ctx: StageContext) -> list[Teaching]:
    """The teachers of ``distill``; none where no loss needs one.

    Raises:
        StageError: scores in place of a teacher lack what a loss needs, or are damaged; a teacher's type needs what is
            not installed; or ``teacher_choice: best`` would have to run a model to choose.
    """
    config = ctx.config
    if not config.needs_teacher:
        return []
    if not config.teachers:
        directory = ctx.input("student" if config.teacher is not None else "teacher")
        return [_teaching(ctx, directory, TeacherEntry(name=MAIN_TEACHER), named=False)]
    directories = _directories(ctx)
    if config.teacher_choice == "best":
        for name, directory in directories.items():
            if not holds_scores(directory):
                raise StageError(
                    f"teacher_choice: best chooses by scores that were computed before, and {name} is a model: put a "
                    "score stage in its place, or use teacher_choice: sum"
                )
    return [_teaching(ctx, directories[entry.name], entry, named=True) for entry in config.teachers]


def aligner_of(ctx: StageContext) -> DocumentAligner | TeacherAligners:
    """What cuts documents into windows for the teachers of ``distill``."""
    config = ctx.config
    if config.teachers:
        directories = _directories(ctx)
        aligners = [_aligner(ctx, directories[entry.name]) for entry in config.teachers]
        return TeacherAligners(config.teachers, aligners, config.teacher_choice or "sum")
    # Without a teacher, windows are cut at the student's own tokens.
    teacher = ctx.optional_input("teacher") if config.teacher is None else None
    return _aligner(ctx, teacher or ctx.input("student"))


def history_of(ctx: StageContext) -> Teaching:
    """The student as it was before training, as a teacher: one copy of its weights where an adapter or its embeddings
    alone train, else a second one."""
    config = ctx.config
    shared = config.adapter is not None or config.trainable == "embeddings"
    return Teaching(ctx.input("student"), dtype=config.dtype, is_student=shared)


def splits_of(ctx: StageContext) -> RandomSplits | None:
    """How the student's tokens are split; None where they are not."""
    config = ctx.config
    return None if config.splits is None else RandomSplits(config.splits, config.seed, ctx.input("student"), ctx.cache)


def _directories(ctx: StageContext) -> Mapping[str, Path]:
    """Name -> artifact of each of several teachers."""
    main = ctx.optional_input("teacher")
    return ({} if main is None else {MAIN_TEACHER: main}) | dict(ctx.inputs.get("teachers", {}))


def _aligner(ctx: StageContext, teacher: Path) -> DocumentAligner:
    scored = ScoredDocuments(ScoreStore(teacher)) if holds_scores(teacher) else None
    return DocumentAligner(
        teacher_directory=(scored.tokenizer_directory or ctx.input("student")) if scored else teacher,
        student_directory=ctx.input("student"),
        window_tokens=ctx.config.window_tokens,
        train_on=ctx.config.train_on,
        scores=scored,
        splits=splits_of(ctx),
    )


def _teaching(ctx: StageContext, directory: Path, entry: TeacherEntry, *, named: bool) -> Teaching:
    config = ctx.config
    name = entry.name if named else ""
    top_k = (config.teacher_top_k or DEFAULT_TOP_K) if config.teacher_signal == "top_k" else None
    if not holds_scores(directory):
        dtype = config.teacher_dtype or config.dtype
        check_teacher_dtype(dtype)
        average = (config.ema_decay or DEFAULT_EMA_DECAY) if config.teacher == "ema" else None
        zero = ctx.resources.get("zero", {})
        if average is not None and 3 in (zero.get("student"), zero.get("teacher")):
            raise StageError("teacher: ema needs whole weights in every process: use ZeRO 0 to 2 under resources")
        is_student = config.teacher == "self"
        return Teaching(directory, top_k, dtype, is_student, average=average, name=name, weight=entry.weight)
    scores = ScoreStore(directory)
    if problems := config.cache_problems(scores.manifest.gives, "what was scored"):
        raise StageError("; ".join(message for _, message in problems))
    kept = scores.manifest.top_k
    if config.teacher_top_k is not None and kept is not None and config.teacher_top_k > kept:
        raise StageError(
            f"teacher_top_k is {config.teacher_top_k}, but the scores hold the {kept} most probable tokens; lower it, "
            "or raise top_k of the stage that scores"
        )
    if ctx.rank == 0:
        scores.check()
    seen = kept if top_k is None else min(top_k, kept or top_k)
    return Teaching(directory, seen, dtype=None, scores=scores, name=name, weight=entry.weight)
