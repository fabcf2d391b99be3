"""Our suites as tasks of lm-evaluation-harness, for whoever wants to ask them of a model through lm-eval itself."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from stages.evaluation.suites.questions import Suite
from stages.stage import StageError


def task_of(suite: Suite) -> dict[str, Any]:
    """The choice questions of a suite as a task, to be given to lm-eval's ``simple_evaluate(tasks=[...])``.

    The right answers stand at every place equally often, so that lm-eval's way with ties does no harm on average.

    Raises:
        StageError: the suite offers nothing to choose from.
    """
    if "choice" not in suite.forms:
        raise StageError(f"suite {suite.name} has no choice questions; add choice to its forms")
    documents = [
        {"id": question.id, "prompt": question.prompt, "options": list(question.options), "gold": question.gold}
        for question in suite.questions
    ]

    def dataset(**_metadata: object) -> dict[str, Dataset]:
        return {"test": Dataset.from_list(documents)}

    return {
        "task": f"tokenferry_{suite.name}",
        "custom_dataset": dataset,
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": lambda document: document["prompt"],
        "doc_to_choice": lambda document: document["options"],
        "doc_to_target": lambda document: document["gold"],
        "target_delimiter": "",
        "num_fewshot": 0,
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_bytes")
        ],
        "metadata": {"version": suite.version, "questions_sha256": suite.questions_digest},
    }
