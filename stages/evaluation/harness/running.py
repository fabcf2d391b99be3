"""Asks one model all tasks, and keeps what lm-eval wrote of it beside our own reading."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lm_eval.evaluator import evaluate
from lm_eval.loggers import EvaluationTracker

from stages.evaluation.harness.marking import read_answers
from stages.evaluation.harness.model import ScorerModel
from stages.evaluation.harness.options import LmEvalOptions
from stages.evaluation.harness.tasks import LoadedTasks, alone
from stages.stage import StageError

RESULTS = "results.json"
BOOTSTRAPS = 1000
"""Resamples behind lm-eval's standard errors of what is no mean."""


def ask(tasks: LoadedTasks, model: ScorerModel, options: LmEvalOptions, row: str) -> dict[str, Any]:
    """What a model makes of the tasks.

    Returns:
        ``files``: name -> text, as lm-eval writes them, but for the date in their names; ``answers``: task -> one
        ``marking.Answer`` a document, as plain data; ``unanswered``: requests without an answer.

    Raises:
        StageError: a task wants what the model cannot do, or lm-eval wrote no results.
        StageInterrupted: out of the model's ``watch``.
    """
    chat = options.chat_template is not None
    with alone(options.seed), tempfile.TemporaryDirectory() as directory:
        for task in tasks.tasks.values():
            task.set_fewshot_seed(options.seed)
        tracker = EvaluationTracker(output_path=directory)
        tracker.general_config_tracker.log_experiment_args(
            model_source="tokenferry",
            model_args={"model": row},
            system_instruction=None,
            chat_template=model.chat_template(chat) if chat else None,
            fewshot_as_multiturn=chat,
        )
        results = evaluate(
            lm=model,
            task_dict=dict(tasks.loaded),
            limit=options.limit,
            bootstrap_iters=BOOTSTRAPS,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
        )
        samples = results.pop("samples")
        answers = {
            name: [asdict(answer) for answer in _read(tasks, name, samples[name], results["results"][name], model)]
            for name in tasks.tasks
        }
        results["config"] = {"model": row, "limit": options.limit, "fewshot_seed": options.seed}
        tracker.save_results_aggregated(results, samples)
        for name in tasks.tasks:
            tracker.save_results_samples(name, samples[name])
        files = _written(Path(directory), list(tasks.tasks))
    return {"files": files, "answers": answers, "unanswered": [list(entry) for entry in model.unanswered]}


def _read(
    tasks: LoadedTasks, name: str, samples: list[dict[str, Any]], aggregates: Mapping[str, Any], model: ScorerModel
) -> list[Any]:
    own = [entry for entry in model.unanswered if entry.task == name]
    return read_answers(tasks.tasks[name], samples, aggregates, own)


def _written(directory: Path, tasks: list[str]) -> dict[str, str]:
    """What lm-eval wrote. It says nothing if it could not, but leaves the file out."""
    wanted = {f"samples_{name}.jsonl": f"**/samples_{name}_2*.jsonl" for name in tasks}
    wanted[RESULTS] = "**/results_*.json"
    files = {}
    for name, pattern in wanted.items():
        found = list(directory.glob(pattern))
        if len(found) != 1:
            raise StageError(f"lm_eval: lm-eval wrote {len(found)} files for {name}; its log level DEBUG tells more")
        files[name] = found[0].read_text(encoding="utf-8")
    return files
