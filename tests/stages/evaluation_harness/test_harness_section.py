"""Tasks of lm-evaluation-harness in an evaluation: what is found, skipped, measured and kept."""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from stages.evaluate import Evaluate
from stages.evaluation.harness.options import LmEvalOptions
from stages.evaluation.harness.section import sections
from stages.evaluation.harness.tasks import alone, load_tasks
from stages.stage import StageContext, StageError

CHOICE = """\
task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: options
doc_to_target: gold
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}, {{metric: acc_bytes}}]
"""
WHOLE = """\
task: whole
dataset_path: json
dataset_kwargs: {data_files: {test: whole.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
"""
WRITTEN = """\
task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: choice.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{options[gold]}}}}"
generation_kwargs: {generation}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
QUESTIONS = [
    {"q": "The quick brown fox", "options": ["jumps", "sleeps", "naïve"], "gold": 0},
    {"q": "The dog", "options": ["string", "sleeps on", "fox"], "gold": 1},
    {"q": "Tokens are byte", "options": ["dogs", "façade", "strings"], "gold": 2},
    {"q": "The str", "options": ["ong", "ing", "aight"], "gold": 0},
]


@pytest.fixture(scope="module")
def tasks_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tasks")
    lines = "\n".join(map(json.dumps, QUESTIONS))
    (directory / "choice.jsonl").write_text(lines, encoding="utf-8")
    outside = directory.parent / "outside.jsonl"
    outside.write_text(lines, encoding="utf-8")
    texts = ["The dog sleeps on.", "Tokens are byte strings; the fox jumps. " * 4]
    (directory / "whole.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    files = {
        "choice": CHOICE.format(task="choice", data="choice.jsonl"),
        "again": CHOICE.format(task="again", data="choice.jsonl"),
        "outside": CHOICE.format(task="outside", data=outside),
        "hub": CHOICE.format(task="hub", data="x").replace("dataset_path: json", "dataset_path: somebody/nowhere"),
        "whole": WHOLE,
        "written": WRITTEN.format(task="written", generation="{until: ['.'], max_gen_toks: 4, do_sample: false}"),
        "sampled": WRITTEN.format(task="sampled", generation="{until: ['.'], do_sample: true}"),
        "both": "group: both\ntask: [choice, again]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n",
    }
    for name, text in files.items():
        (directory / f"{name}.yaml").write_text(text, encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def report(
    tasks_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_tokenizer_dirs: tuple[Path, Path],
    tiny_model_dir: Callable[..., Path],
) -> tuple[Path, dict[str, Any]]:
    """An evaluation of two models with different tokenizers: its directory, and the section of its report."""
    base = tmp_path_factory.mktemp("evaluation")
    for name in ("work", "out", "documents"):
        (base / name).mkdir()
    document = {"id": "a", "domain": "x", "weight": 1.0, "text": "The quick fox sleeps where two boundaries meet."}
    (base / "documents/documents.jsonl").write_text(json.dumps(document) + "\n", encoding="utf-8")
    small, large = tiny_tokenizer_dirs
    names = ["both", "whole", "written", "hub", "outside", "sampled"]
    ctx = StageContext(
        config=Evaluate.Config(lm_eval={"tasks": names, "include": str(tasks_dir), "window_bytes": 64}),
        inputs={
            "models": {"distill": tiny_model_dir(large, seed=1)},
            "teacher": {"sources/teacher": tiny_model_dir(small, seed=0)},
            "documents": {"sources/eval": base / "documents"},
        },
        work=base / "work",
        out=base / "out",
    )
    Evaluate().run(ctx)
    content = json.loads((base / "out/report.json").read_text(encoding="utf-8"))
    return base / "out", next(section for section in content["sections"] if section["name"] == "lm_eval")


def test_what_cannot_be_asked_is_skipped_with_its_reason(report: tuple[Path, dict[str, Any]]) -> None:
    why = {entry["what"]: entry["why"] for entry in report[1]["skipped"]}
    assert "without a network" in why["task hub"]
    assert "not below lm_eval.include" in why["task outside"]
    assert "asks for samples" in why["task sampled"]


def test_the_section_has_our_numbers_and_lm_evals_own(report: tuple[Path, dict[str, Any]]) -> None:
    out, section = report
    key, by_task, by_bytes, own, counts = section["tables"]
    assert [column["name"] for column in key["columns"]] == ["both", "whole", "written"]
    assert [column["name"] for column in by_task["columns"]] == ["choice", "again", "whole", "written"]
    assert [column["name"] for column in by_bytes["columns"]] == ["choice", "again"]
    for row in ("teacher", "distill"):
        results = json.loads((out / "lm_eval" / row / "results.json").read_text(encoding="utf-8"))
        theirs = results["results"]["whole"]["bits_per_byte,none"]
        assert key["rows"][row]["whole"]["value"] == pytest.approx(theirs)
        assert own["rows"][row]["whole bits_per_byte"]["value"] == theirs
        choice = own["rows"][row]["choice acc"]
        error = results["results"]["choice"]["acc_stderr,none"]
        assert choice["high"] - choice["value"] == pytest.approx(1.96 * error)
        lines = (out / "lm_eval" / row / "samples_choice.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(lines) == 4
        asked = [json.loads(line)["arguments"]["gen_args_0"] for line in lines]
        assert asked[0] == {"arg_0": "The quick brown fox", "arg_1": " jumps"}
        ours, lm_evals = by_task["rows"][row]["choice"]["value"], 100 * results["results"]["choice"]["acc,none"]
        assert counts["rows"][row]["both: not answered"]["value"] >= 0
        assert ours <= lm_evals
        assert section["metrics"][f"{row}.acc.both"] == pytest.approx(ours / 100)
    assert set(key["differences"]) == {"teacher"}
    assert section["facts"]["tasks"]["whole"]["documents"] == 2
    assert {item["groups"]["task"] for item in section["items"]} == {"choice", "again", "written"}


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (("hub",), "none can be asked"),
        (("both", "choice"), "choice belongs to more than one"),
    ],
)
def test_tasks_that_cannot_be_asked_at_all_are_refused(tasks_dir: Path, tasks: tuple[str, ...], message: str) -> None:
    with pytest.raises(StageError, match=message):
        load_tasks(LmEvalOptions(tasks=tasks, include=str(tasks_dir)))


def test_solved_examples_are_as_many_as_the_options_say_unless_a_task_fixes_none(
    tasks_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "choice.jsonl").write_text((tasks_dir / "choice.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    for name, shots in (("silent", ""), ("none", "num_fewshot: 0\n"), ("two", "num_fewshot: 2\n")):
        text = CHOICE.format(task=name, data="choice.jsonl") + "fewshot_split: test\n" + shots
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")

    def shots(**options: int) -> dict[str, int]:
        loaded = load_tasks(LmEvalOptions(tasks=("silent", "none", "two"), include=str(tmp_path), **options))
        return {name: task.config.num_fewshot for name, task in loaded.tasks.items()}

    assert shots() == {"silent": 0, "none": 0, "two": 2}
    assert shots(num_fewshot=1) == {"silent": 1, "none": 0, "two": 1}


def test_global_random_numbers_are_as_before() -> None:
    random.seed(7)
    expected = random.Random(7).random()
    with alone(3):
        first = random.random()
    assert random.random() == expected
    with alone(3):
        assert random.random() == first


def test_a_missing_package_is_named_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = Evaluate.Config(lm_eval={"tasks": ["arc_easy"]})
    ((place, problem),) = config.upstream_problems({"models": {}})
    assert place == ("lm_eval",)
    assert 'pip install "tokenferry[eval]"' in problem
    assert Evaluate.Config().upstream_problems({"models": {}}) == []
    with pytest.raises(StageError, match=r"tokenferry\[eval\]"):
        sections(config.lm_eval, [], None)


@pytest.mark.parametrize(
    "options",
    [{}, {"tasks": []}, {"tasks": ["a", "a"]}, {"tasks": ["a"], "limit": 0}, {"tasks": ["a"], "bytes_per_token": 0}],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LmEvalOptions(**options)
