"""The ``evaluate`` stage: every model asked the same questions, and the answers side by side."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, field_validator

from stages.artifacts import DocumentsArtifact, EvaluationArtifact, ModelArtifact
from stages.evaluation.cards import CardOptions
from stages.evaluation.ensembles.options import EnsembleOptions
from stages.evaluation.exact_bytes.bits import ExactBytesOptions
from stages.evaluation.exact_bytes.next_byte import NextByteOptions
from stages.evaluation.generations import GenerationOptions
from stages.evaluation.harness.options import LmEvalOptions, missing_package
from stages.evaluation.overlap_options import OverlapOptions
from stages.evaluation.robustness.options import InvarianceOptions, NoiseOptions, PromptBoundaryOptions
from stages.evaluation.sections import TEACHER
from stages.evaluation.suites.options import SuitesOptions, TrapsOptions
from stages.resume_points import counted
from stages.stage import Input, StageConfig, StageContext, StageError, not_keyed

if TYPE_CHECKING:
    from stages.evaluation.windows import Conversation, Document

SECTIONS: Mapping[str, str] = {
    "generation": "stages.evaluation.generations:sections",
    "suites": "stages.evaluation.suites.section:sections",
    "next_byte": "stages.evaluation.exact_bytes.next_byte:sections",
    "exact_bytes": "stages.evaluation.exact_bytes.bits:sections",
    "card": "stages.evaluation.cards:sections",
    "traps": "stages.evaluation.suites.traps:sections",
    "prompt_boundary": "stages.evaluation.robustness.prompt_boundary:sections",
    "invariance": "stages.evaluation.robustness.invariance:sections",
    "noise": "stages.evaluation.robustness.noise:sections",
    "lm_eval": "stages.evaluation.harness.section:sections",
    "ensembles": "stages.evaluation.ensembles.section:sections",
}
"""Option of ``evaluate`` -> what makes its sections (``stages.evaluation.sections.Sections``), in the report's order.
An option that is None adds none. Retention comes before them, of whatever text and conversations there are."""


EnsembleName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
"""A row and a part of file names."""


class EvaluateConfig(StageConfig):
    """What to compare, and on how much text."""

    initial: str | None = None
    """Stage whose model is the zero point of "gap closed"; without it that column is left out."""
    control: str | None = None
    """Stage whose model had the same budget without the method under test; differences to it are shown as well."""
    trained_domains: tuple[str, ...] = ()
    """Domains of the evaluation data that the students were trained on; only marks them in the table."""
    window_bytes: int = Field(1500, ge=16)
    """Documents are cut into windows of at most this many bytes; no model sees past its window."""
    max_documents: int | None = Field(None, ge=1)
    """Evaluate on the first so many documents of each domain; all by default."""
    generation: GenerationOptions | None = None
    """Let every model continue held-out documents: samples side by side, and exact match with the text's own
    continuation."""
    suites: SuitesOptions | None = None
    """Generated questions that tell tokenizers apart: a list of suites, or each with its options."""
    next_byte: NextByteOptions | None = None
    """How far every model's next-byte distribution is from the teacher's, inside words too: ``next_byte: {}``."""
    exact_bytes: ExactBytesOptions | None = None
    """Bits per byte over all encodings of the held-out text's last bytes, beside its own: ``exact_bytes: {}``."""
    card: CardOptions | None = None
    """The models' tokenizers on the held-out text, and what a byte costs each model: ``card: {}``."""
    traps: TrapsOptions | None = None
    """Glued words that a token runs across, for the tokenizers under evaluation, with controls: ``traps: {}``."""
    prompt_boundary: PromptBoundaryOptions | None = None
    """What it costs that a prompt ends inside a token: ``prompt_boundary: {}``."""
    invariance: InvarianceOptions | None = None
    """How much a model minds in which tokens a text reaches it: ``invariance: {}``."""
    noise: NoiseOptions | None = None
    """How a model bears misspelled text: ``noise: {}``."""
    lm_eval: LmEvalOptions | None = None
    """Tasks of lm-evaluation-harness, your own or those whose data are here: ``lm_eval: {tasks: [arc_easy]}``."""
    ensembles: Mapping[EnsembleName, EnsembleOptions] | None = Field(None, min_length=1)
    """More rows: several models as one, ``{both: {members: [distill, control]}}``."""
    overlap: OverlapOptions | None = None
    """Look for the held-out text in the training text of ``data.train``: ``report`` what is found, ``exclude``
    overlapping documents from the evaluation, or ``refuse`` to evaluate."""
    batch_tokens: int = not_keyed(4096, ge=1)
    """Tokens of one forward pass, padding included."""

    @field_validator("suites")
    @classmethod
    def _enough_items(cls, value: SuitesOptions | None) -> SuitesOptions | None:
        from stages.evaluation.suites.registry import check_items

        if value is not None:
            check_items(value, "test")
        return value

    @property
    def wanted_inputs(self) -> frozenset[str]:
        """The training text, where the held-out text is looked for in it."""
        return frozenset() if self.overlap is None else frozenset({"training"})

    def upstream_problems(
        self, upstream: Mapping[str, Mapping[str, StageConfig]]
    ) -> Sequence[tuple[tuple[str | int, ...], str]]:
        """``initial``, ``control`` and the members of ensembles are among the models that are compared, and lm-eval is
        there if it is wanted."""
        problems = list(self.unknown_rows(upstream.get("models", {})))
        missing = missing_package() if self.lm_eval is not None else None
        return [*problems, (("lm_eval",), missing)] if missing else problems

    def unknown_rows(self, models: Collection[str]) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Places in these options that name a model which is not among ``models``, and what to say of each."""
        for option, name in {"initial": self.initial, "control": self.control}.items():
            if name is not None and name not in models:
                yield (option,), f"{name!r} is not among the models under needs: {', '.join(models)}"
        for name, options in (self.ensembles or {}).items():
            if name in {TEACHER, *models}:
                yield ("ensembles", name), f"{name!r} is the row of a model; give the ensemble another name"
            for place, problem in options.unknown([TEACHER, *models]):
                yield ("ensembles", name, *place), problem


class Evaluate:
    """Asks the teacher and every model under ``needs``, one model in memory after another."""

    VERSION: ClassVar[int] = 3
    Config = EvaluateConfig
    inputs: ClassVar[Mapping[str, Input]] = {
        "models": Input(ModelArtifact, many=True),
        "teacher": Input(ModelArtifact, source="teacher"),
        "documents": Input(DocumentsArtifact, source="eval"),
        "training": Input(DocumentsArtifact, source="train", optional=True),
    }
    output = EvaluationArtifact

    @staticmethod
    def resume_point(work: Path) -> str | None:
        """What is finished of every model's sections."""
        kept = [file for file in work.glob("*-*.json") if not file.name.startswith("preflight-")]
        return counted(len(kept), "finished section")

    def run(self, ctx: StageContext) -> None:
        """Write ``report.json``, ``report.html``, ``metrics.json`` and ``table.txt``.

        What each section has of each model is kept in ``ctx.work``, so an interrupted evaluation goes on where it was.

        Raises:
            StageError: the configuration names what is not there, or nothing could be measured of any model.
            StageInterrupted: asked to stop.
        """
        from stages.evaluation.runner import evaluate
        from stages.evaluation.windows import read_documents

        if ctx.world_size > 1:
            raise StageError("evaluate runs in one process; give it `launcher: local` under resources")
        if TEACHER in ctx.inputs["models"]:
            raise StageError(f"a model stage under needs is called {TEACHER!r}, which is the teacher's row; rename it")
        paths = {TEACHER: ctx.input("teacher"), **ctx.inputs["models"]}
        documents, conversations = read_documents(ctx.input("documents"), ctx.config.max_documents)
        _check_names(ctx.config, ctx.inputs["models"], [*documents, *conversations])
        options = {name: getattr(ctx.config, name) for name in SECTIONS}
        makers = {SECTIONS[name]: value for name, value in options.items() if value is not None}
        if ctx.config.overlap is None:
            evaluate(ctx, paths, documents, conversations, makers)
            return
        from stages.evaluation.overlap import compare_with_training

        overlap = compare_with_training(ctx, ctx.config.overlap, [*documents, *conversations])
        kept, kept_conversations = overlap.kept(documents), overlap.kept(conversations)
        evaluate(ctx, paths, kept, kept_conversations, makers, first=[overlap.report()])


def _check_names(
    config: EvaluateConfig, models: Mapping[str, Path], documents: Sequence[Document | Conversation]
) -> None:
    """Refuse names that would silently leave out a column or mislabel one."""
    for place, problem in config.unknown_rows(models):
        raise StageError(f"{'.'.join(map(str, place))}: {problem}")
    domains = dict.fromkeys(document.domain for document in documents)
    unknown = [domain for domain in config.trained_domains if domain not in domains]
    if unknown:
        raise StageError(
            f"trained_domains: {', '.join(unknown)} not in the evaluation data; its domains are {', '.join(domains)}"
        )
