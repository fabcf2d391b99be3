"""Tasks of lm-evaluation-harness as a section of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from stages.evaluation.core import Ability, Scorer, Watch
from stages.evaluation.harness.options import LmEvalOptions, missing_package
from stages.evaluation.sections import SectionContext, SectionReport, Subject
from stages.stage import StageError

if TYPE_CHECKING:
    from alignment.chat.template import ChatTemplate
    from stages.evaluation.harness.tasks import LoadedTasks
    from stages.evaluation.windows import Document, Span

_ASKS: Mapping[str, Ability] = {
    "loglikelihood": "score_continuations",
    "multiple_choice": "score_continuations",
    "loglikelihood_rolling": "score_texts",
    "generate_until": "generate",
}
"""lm-eval's kinds of request -> what they ask of a model."""


def sections(options: LmEvalOptions, documents: Sequence[Document], context: SectionContext) -> list[Harness]:
    """The section of ``lm_eval``.

    Raises:
        StageError: lm-eval is not installed, there is no such task, or none can be asked here.
    """
    missing = missing_package()
    if missing is not None:
        raise StageError(f"lm_eval {missing}")
    from stages.evaluation.harness.tasks import load_tasks

    return [Harness(options, load_tasks(options), context)]


class Harness:
    """Asks lm-eval's tasks of every model."""

    name = "lm_eval"

    def __init__(self, options: LmEvalOptions, tasks: LoadedTasks, context: SectionContext) -> None:
        self._options = options
        self._tasks = tasks
        self._context = context

    @property
    def relies_on(self) -> frozenset[Ability]:
        return frozenset(_ASKS[task.OUTPUT_TYPE] for task in self._tasks.tasks.values())

    def score(self, subject: Subject, watch: Watch) -> dict[str, Any]:
        """What lm-eval wrote of the model, and our reading of it.

        Raises:
            StageError: a chat template is wanted and the model has none, or it refuses a question.
        """
        from stages.evaluation.harness.model import ScorerModel
        from stages.evaluation.harness.running import ask

        scorer, chat = self._scorer(subject)
        model = ScorerModel(
            scorer,
            spans=self._spans,
            bytes_per_token=self._options.bytes_per_token,
            chat=chat,
            tokenizer_name="" if subject.view is None else subject.view.fingerprint,
            watch=watch,
            parts=len({_request_kind(task.OUTPUT_TYPE) for task in self._tasks.tasks.values()}),
        )
        return ask(self._tasks, model, self._options, subject.name)

    def report(self, results: Mapping[str, Any]) -> SectionReport:
        """What is shown."""
        from stages.evaluation.harness.report import make_report

        return make_report(self._tasks, self._options, results, self._context.references())

    def _scorer(self, subject: Subject) -> tuple[Scorer, ChatTemplate | None]:
        if self._options.chat_template is None:
            return subject.scorer, None
        if subject.model is None or subject.view is None or subject.path is None:
            raise StageError("lm_eval: only a model with a tokenizer of its own has a chat template")
        from alignment.chat.messages import ChatError
        from alignment.chat.template import ChatTemplate
        from alignment.tokenizer_facts import load_tokenizer
        from stages.evaluation.harness.rendered import RenderedScorer

        try:
            template = ChatTemplate.from_tokenizer(load_tokenizer(subject.path, trust_remote_code=False))
        except ChatError as error:
            raise StageError(f"lm_eval: {error}") from None
        batch_tokens = self._context.batch_tokens
        return RenderedScorer(subject.name, subject.model, subject.view, batch_tokens=batch_tokens), template

    @cached_property
    def _spans(self) -> Any:
        """Windows of a text; tokenizers that several models share count once, and texts are cut once for all models."""
        from stages.evaluation.harness.windows import rolling_spans

        views = list({view.fingerprint: view for view in self._context.views.values()}.values())

        @cache
        def spans(text: str) -> tuple[Span, ...]:
            return tuple(rolling_spans(text, views, self._options.window_bytes))

        return spans


def _request_kind(output_type: str) -> str:
    """Options of a question are asked for as log-likelihoods are."""
    return "loglikelihood" if output_type == "multiple_choice" else output_type
