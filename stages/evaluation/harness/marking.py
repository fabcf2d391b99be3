"""Reads a task's answers once more, in terms that hold across tokenizers.

lm-eval gives a question to the first of equally likely options, and one whose options all lack a number to the first
as well. Here, as in our own suites, ties share the credit and a question that could not be asked is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.task import Task

from stages.evaluation.harness.model import Unanswered
from stages.evaluation.suites.marking import TIE

ACCURACY, ACCURACY_BYTES, BITS_PER_BYTE = "acc", "acc_bytes", "bits_per_byte"
"""Names as lm-eval has them."""


@dataclass(frozen=True)
class Answer:
    """One document of a task, as one model answered it.

    Attributes:
        id: of the document in its task.
        measures: name -> (numerator, denominator) of the task's ratio of sums; None where the document has none and
            must be left out for all models.
        tied: several options are the best.
        problem: why it could not be answered.
        prompt, gold, given: as shown.
    """

    id: int
    measures: Mapping[str, tuple[float, float] | None]
    tied: bool
    problem: str | None
    prompt: str
    gold: str
    given: str


def read_answers(
    task: Task, samples: Sequence[Mapping[str, Any]], aggregates: Mapping[str, Any], unanswered: Sequence[Unanswered]
) -> list[Answer]:
    """A task's answers, document by document.

    Args:
        samples: what lm-eval logged, one entry for each document and filter.
        aggregates: ``metric,filter`` -> lm-eval's number for the task.
        unanswered: requests of this task without an answer.
    """
    problems: dict[int, str] = {}
    for entry in unanswered:
        problems.setdefault(entry.document, entry.problem)
    by_document: dict[int, list[Mapping[str, Any]]] = {}
    for sample in samples:
        by_document.setdefault(sample["doc_id"], []).append(sample)
    means = _means(samples, aggregates)
    read = _choice if _chooses(task) else _text if task.OUTPUT_TYPE == "loglikelihood_rolling" else _other
    return [read(task, found, means, problems.get(document)) for document, found in by_document.items()]


def _chooses(task: Task) -> bool:
    """Whether a task compares options by what lm-eval makes of them, not by a function of its own."""
    own = getattr(task.config, "process_results", None)
    return task.OUTPUT_TYPE == "multiple_choice" and own is None


def _means(samples: Sequence[Mapping[str, Any]], aggregates: Mapping[str, Any]) -> list[str]:
    """Those of ``aggregates`` that are the mean of one number for each document."""
    found = []
    for key, total in aggregates.items():
        metric, _, filtered = key.partition(",")
        values = [sample.get(metric) for sample in samples if sample["filter"] == filtered]
        if values and all(isinstance(value, int | float) and math.isfinite(value) for value in values):
            mean = math.fsum(values) / len(values)
            if isinstance(total, int | float) and math.isclose(mean, total, rel_tol=1e-9, abs_tol=1e-12):
                found.append(key)
    return found


def _choice(task: Task, samples: Sequence[Mapping[str, Any]], means: Sequence[str], problem: str | None) -> Answer:
    sample = samples[0]
    document = sample["doc"]
    options = task.doc_to_choice(document)
    logps = [logp for logp, _ in sample["filtered_resps"][: len(options)]]
    gold = _gold(task, document, options)
    costs = {ACCURACY: [-logp for logp in logps]}
    if all(options):
        costs[ACCURACY_BYTES] = [-logp / len(option.encode()) for logp, option in zip(logps, options, strict=True)]
    best = {measure: [] if problem else _least(values) for measure, values in costs.items()}
    return Answer(
        id=sample["doc_id"],
        measures={
            measure: (sum(place in gold for place in places) / len(places) if places else 0.0, 1.0)
            for measure, places in best.items()
        },
        tied=len(best[ACCURACY]) > 1,
        problem=problem,
        prompt=_prompt(sample),
        gold=" / ".join(str(options[place]) for place in sorted(gold)),
        given=" = ".join(str(options[place]) for place in best[ACCURACY]),
    )


def _least(costs: Sequence[float]) -> list[int]:
    least = min(costs)
    return [place for place, cost in enumerate(costs) if math.isclose(cost, least, rel_tol=TIE)]


def _gold(task: Task, document: Mapping[str, Any], options: Sequence[str]) -> set[int]:
    """Places of the right options, as lm-eval finds them; none if the document names what is not offered."""
    target = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    targets = target if isinstance(target, list) else [target]
    places = [options.index(one) if isinstance(one, str) and one in options else one for one in targets]
    return {place for place in places if isinstance(place, int) and 0 <= place < len(options)}


def _text(task: Task, samples: Sequence[Mapping[str, Any]], means: Sequence[str], problem: str | None) -> Answer:
    sample = samples[0]
    (logp,) = sample["filtered_resps"]
    text = sample["arguments"][0][0]
    bits = None if problem else (-logp / math.log(2), float(len(text.encode())))
    return Answer(
        sample["doc_id"], {BITS_PER_BYTE: bits}, False, problem, text, "", "" if problem else f"{-logp:.2f} nats"
    )


def _other(task: Task, samples: Sequence[Mapping[str, Any]], means: Sequence[str], problem: str | None) -> Answer:
    by_filter = {sample["filter"]: sample for sample in samples}
    sample = samples[0]
    measures = {}
    for key in means:
        metric, _, filtered = key.partition(",")
        name = metric if len(by_filter) == 1 else f"{metric} {filtered}"
        measures[name] = (float(by_filter[filtered][metric]), 1.0)
    return Answer(
        id=sample["doc_id"],
        measures=measures,
        tied=False,
        problem=problem,
        prompt=_prompt(sample),
        gold=str(sample["target"]),
        given="" if problem else _shown(sample["filtered_resps"]),
    )


def _shown(responses: Sequence[Any]) -> str:
    (first, *_) = responses
    return first if isinstance(first, str) else str(first)


def _prompt(sample: Mapping[str, Any]) -> str:
    return str(sample["arguments"][0][0])
