"""``distill``: train a student on text against a teacher that has another tokenizer (or by cross-entropy alone)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field, model_validator

from stages.artifacts import DocumentsArtifact, ModelArtifact, ScoresArtifact
from stages.objectives import LossEntry
from stages.objectives.capabilities import (
    GIVES,
    NEED_IN_WORDS,
    Need,
    TeacherSignal,
    capability,
    least_signal,
    usable_with,
)
from stages.scoring.config import WAY_TO_KEEP, ScoresConfig
from stages.stage import Input, StageConfig, StageContext
from stages.training.config import TrainingConfig
from stages.training.data.split_options import SplitOptions
from stages.training.on_policy.options import OnPolicyOptions
from stages.training.teachers.teacher_options import MAIN_TEACHER, TeacherChoice, TeacherDtype, TeacherEntry


class DistillConfig(TrainingConfig):
    """Options of ``distill``: those of every training stage, and its losses."""

    losses: tuple[LossEntry, ...] = Field(min_length=1)
    """Terms of the loss; a control arm is the same stage with cross_entropy alone."""
    teacher: Literal["self", "ema"] | None = None
    """``self``: the student as it was before training, out of the same copy of its weights; for an ``adapter`` or
    ``trainable: embeddings``. ``ema``: the moving average of the student's weights. Default: the model of
    ``models.teacher``."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Share of the average that a step keeps, with ``teacher: ema``; default: 0.999."""
    teachers: tuple[TeacherEntry, ...] = ()
    """Several teachers, each with its own tokenizer: stages of ``needs`` that make models or scores, and ``teacher``
    for the model of ``models.teacher``; default: one teacher."""
    teacher_choice: TeacherChoice | None = None
    """Who teaches a document that several teachers may: ``sum``, all of them, or ``best``, the one that finds it most
    probable, which needs scores; default: ``sum``."""
    teacher_dtype: TeacherDtype | None = None
    """How the teacher's weights are held: ``bf16``, ``fp32``, or quantised by bitsandbytes to ``int8`` or ``nf4``;
    default: as ``dtype``."""
    train_on: Literal["assistant", "all", "last"] = "assistant"
    """Of conversations, the messages to learn from: every assistant turn, every message, or the last assistant turn."""
    combine: Literal["sum", "gradmag", "gradnorm", "pcgrad"] = "sum"
    """``sum``: the weights of the losses. Others set the weights from the losses' gradients at the output head's input:
    ``gradmag`` gives them equal norms, ``gradnorm`` norms that fit how fast each loss falls, ``pcgrad`` removes from
    each what opposes another."""
    teacher_signal: TeacherSignal = "full"
    """What the objectives may see of the teacher, as if it were cached or served: everything, its most probable tokens
    and the scores of the text (``top_k``), or the scores alone."""
    teacher_top_k: int | None = Field(None, ge=2)
    """How many tokens a position with ``teacher_signal: top_k``; default: 64."""
    on_policy: OnPolicyOptions | None = None
    """Let the student write part of what it learns from, in every step anew (see docs/on_policy.md); default: none."""
    random_splits: SplitOptions | None = None
    """Split the student's tokens at random (see docs/stochastok.md); the teacher reads its own as ever, and chunks are
    those of the split text. Default: none."""

    @model_validator(mode="after")
    def _consistent(self) -> DistillConfig:
        names = [entry.name for entry in self.losses]
        if len(set(names)) < len(names):
            raise ValueError(f"losses names {', '.join(sorted({n for n in names if names.count(n) > 1}))} twice")
        self._check_signal()
        self._check_teacher()
        self._check_on_policy(names)
        projecting = [entry.name for entry in self.losses if entry.options.trains_projector]
        if len(projecting) > 1:
            raise ValueError(
                f"{' and '.join(projecting)} each train a projection between the models' hidden states, which would "
                "pull them two ways; keep one, or switch the projection off in the other"
            )
        if self.combine != "sum":
            self._check_balance(names)
        return self

    def _check_signal(self) -> None:
        if self.teacher_top_k is not None and self.teacher_signal != "top_k":
            raise ValueError("teacher_top_k has no effect without teacher_signal: top_k; add that, or remove it")
        given = GIVES[self.teacher_signal]
        for index, entry in enumerate(self.losses):
            need = entry.options.needs or capability(entry.name).needs
            if need not in given:
                usable = [name for name in usable_with(given) if name != entry.name]
                raise ValueError(
                    f"losses[{index}].{entry.name}{' with these options' if entry.options.needs else ''} needs "
                    f"{NEED_IN_WORDS[need]}, which a teacher with teacher_signal: {self.teacher_signal} does not give; "
                    f"use teacher_signal: {least_signal(need)}, or one of {', '.join(usable)}"
                )

    def upstream_problems(
        self, upstream: Mapping[str, Mapping[str, StageConfig]]
    ) -> Sequence[tuple[tuple[str | int, ...], str]]:
        problems = [
            problem
            for stage, config in (upstream.get("teacher", {}) | upstream.get("teachers", {})).items()
            if isinstance(config, ScoresConfig)
            for problem in self.cache_problems(config.gives, stage)
        ]
        return [*super().upstream_problems(upstream), *problems]

    def cache_problems(self, given: frozenset[Need], stage: str) -> list[tuple[tuple[str | int, ...], str]]:
        """What these options want of a teacher of which a stage keeps no more than ``given``."""
        problems: list[tuple[tuple[str | int, ...], str]] = []
        for index, entry in enumerate(self.losses):
            need = entry.options.needs or capability(entry.name).needs
            if need not in given:
                way_out = WAY_TO_KEEP.get(need, "leave it out of `needs`, so that the teacher runs here")
                message = (
                    f"{entry.name}{' with these options' if entry.options.needs else ''} needs "
                    f"{NEED_IN_WORDS[need]}, which {stage} does not keep: {way_out}; or use one of "
                    f"{', '.join(name for name in usable_with(given) if name != entry.name)}"
                )
                problems.append((("losses", index, entry.name), message))
        if self.on_policy is not None:
            message = f"asks the teacher about text that {stage} has not seen; remove it, or leave {stage} out of needs"
            problems.append((("on_policy",), message))
        if self.teacher_dtype is not None:
            message = f"has no effect: no teacher is loaded where {stage} keeps its scores; remove it, and set it there"
            problems.append((("teacher_dtype",), message))
        return problems

    def _check_teacher(self) -> None:
        if self.teacher_dtype is not None and (self.teacher is not None or not self.needs_teacher):
            reason = "the student teaches itself" if self.teacher is not None else "none of the losses needs a teacher"
            raise ValueError(f"teacher_dtype has no effect: {reason}; remove it")
        if self.ema_decay is not None and self.teacher != "ema":
            raise ValueError("ema_decay has no effect without teacher: ema; add that, or remove it")
        if self.teachers:
            self._check_teachers()
        elif self.teacher_choice is not None:
            raise ValueError("teacher_choice has no effect without teachers; add them, or remove it")
        if self.teacher is None:
            return
        if not self.needs_teacher:
            raise ValueError(f"teacher: {self.teacher} has no effect: none of the losses needs a teacher; remove it")
        if self.teacher == "ema" and self.adapter is not None:
            raise ValueError("teacher: ema averages whole models; remove adapter, or use teacher: self")
        if self.teacher == "self" and self.adapter is None and self.trainable == "all":
            raise ValueError(
                "teacher: self teaches with the weights that training leaves alone; add an adapter, or use trainable: "
                "embeddings"
            )

    def _check_teachers(self) -> None:
        names = [entry.name for entry in self.teachers]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"teachers names {', '.join(repeated)} twice")
        for option in ("teacher", "on_policy"):
            if getattr(self, option) is not None:
                raise ValueError(f"{option} is for one teacher; remove it, or teachers")
        if not self.needs_teacher:
            raise ValueError("teachers has no effect: none of the losses needs a teacher; remove it")

    def _check_on_policy(self, names: list[str]) -> None:
        if self.on_policy is not None:
            self.on_policy.check(self.batch_windows, self.window_tokens, names, self.needs_teacher)
            if self.random_splits is not None and self.on_policy.fraction == 1:
                raise ValueError(
                    "random_splits has no effect with on_policy: {fraction: 1}: what the student writes stays as it "
                    "wrote it; remove one, or lower the fraction"
                )
        sampled = [name for name in names if capability(name).on_policy]
        if sampled and (self.on_policy is None or self.on_policy.fraction < 1):
            raise ValueError(
                f"{', '.join(sampled)} is an expectation over what the student writes: it needs on_policy: "
                "{fraction: 1}; on text of the data use dpca"
            )

    def _check_balance(self, names: list[str]) -> None:
        if len(names) < 2:
            raise ValueError(f"combine: {self.combine} balances two or more losses")
        weighted = [e.name for e in self.losses if e.options.weight != 1.0 or e.options.weight_schedule != "constant"]
        if weighted:
            raise ValueError(f"combine: {self.combine} sets the weights; remove them from {', '.join(weighted)}")
        if favoured := [entry.name for entry in self.teachers if entry.weight != 1.0]:
            raise ValueError(
                f"combine: {self.combine} sets the weights; remove that of {', '.join(favoured)} under teachers"
            )
        if blind := [entry.name for entry in self.losses if not entry.options.reaches_head_input]:
            raise ValueError(
                f"combine: {self.combine} compares gradients at the last hidden state, which {', '.join(blind)} leaves "
                "alone; use layers: last"
            )

    @property
    def splits(self) -> SplitOptions | None:
        return self.random_splits

    @property
    def needs_teacher(self) -> bool:
        """Whether any loss looks at a teacher."""
        return any(capability(entry.name).needs != "nothing" for entry in self.losses)

    @property
    def other_teachers(self) -> tuple[str, ...]:
        """The stages that make teachers beside ``models.teacher``."""
        return tuple(entry.name for entry in self.teachers if entry.name != MAIN_TEACHER)

    @property
    def named_inputs(self) -> Mapping[str, tuple[str, ...]]:
        return {"teachers": self.other_teachers} if self.other_teachers else {}

    @property
    def wanted_inputs(self) -> frozenset[str]:
        if not self.teachers:
            return super().wanted_inputs | self._teacher_input(self.needs_teacher)
        names = {MAIN_TEACHER} & {entry.name for entry in self.teachers}
        return super().wanted_inputs | {"teacher" for _ in names} | {"teachers" for _ in self.other_teachers[:1]}

    @property
    def welcome_inputs(self) -> frozenset[str]:
        # Windows end where both tokenizers have a boundary: a control arm without a teacher's loss sees the same ones.
        return super().welcome_inputs | self._teacher_input(not self.needs_teacher)

    def _teacher_input(self, condition: bool) -> frozenset[str]:
        return frozenset({"teacher"}) if condition and self.teacher is None else frozenset()


class Distill:
    """Train the student; the teacher scores every batch as it comes."""

    VERSION = 4
    Config = DistillConfig
    inputs = {
        "student": Input(ModelArtifact),
        "teacher": Input(ModelArtifact, source="teacher", optional=True, replaceable=True, replacement=ScoresArtifact),
        "teachers": Input((ModelArtifact, ScoresArtifact), many=True, optional=True),
        "documents": Input(DocumentsArtifact, source="train", replaceable=True),
        "held_out": Input(DocumentsArtifact, source="eval", optional=True),
    }
    output = ModelArtifact

    def run(self, ctx: StageContext) -> None:
        from losses.balance import GradMag, GradNorm, PCGrad
        from stages.training.on_policy.setup import OnPolicy
        from stages.training.run import train_student
        from stages.training.teachers.teaching import aligner_of, teachings_of

        config: DistillConfig = ctx.config
        teachings = teachings_of(ctx)
        aligner = aligner_of(ctx)
        balancers = {
            "sum": lambda: None,
            "gradmag": GradMag,
            "gradnorm": GradNorm,
            "pcgrad": lambda: PCGrad(config.seed),
        }
        on_policy = OnPolicy(config.on_policy, aligner) if config.on_policy else None
        train_student(
            ctx,
            config,
            config.losses,
            aligner,
            teachings=teachings,
            balancer=balancers[config.combine](),
            on_policy=on_policy,
        )
        if on_policy is not None:
            on_policy.publish(ctx)
