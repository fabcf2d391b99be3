"""The numbers of the section ``lm_eval``: ours, which compare across tokenizers, and lm-eval's own beside them."""

from __future__ import annotations

import importlib.metadata
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from stages.evaluation.harness.marking import ACCURACY, ACCURACY_BYTES, BITS_PER_BYTE
from stages.evaluation.harness.options import LmEvalOptions
from stages.evaluation.harness.running import RESULTS
from stages.evaluation.harness.tasks import LoadedTasks
from stages.evaluation.sections import Column, Item, Measure, SectionReport, Skipped, Table
from stages.evaluation.statistics import compare, ratio
from stages.evaluation.suites.tables import wilson

Answers = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
"""Row name -> task -> one ``marking.Answer`` a document, as plain data."""

ABOUT = (
    "Tasks of lm-evaluation-harness, asked in text. acc takes the option with the highest log-probability, acc_bytes "
    "the one with the highest per UTF-8 byte; nothing is divided by tokens, which differ between models. Equally good "
    "options share the credit, and a question that a model cannot be asked counts as wrong; lm-eval gives both to the "
    "first option, so its own numbers, in the last table but one, can be others. White space at the end of a context "
    "is scored with the continuation. Whole texts are read in the same windows of bytes by all models, and one that "
    "some model cannot read is left out for all. Where a task limits what is written in tokens, each stands for "
    "{bytes_per_token} bytes. Intervals are 95 %: Wilson's for shares of right answers, bootstrap over documents for "
    "other measures and, paired, for differences, 1.96 standard errors for lm-eval's."
)
Z95 = 1.96
_PERCENT = (ACCURACY, ACCURACY_BYTES)


class Shown(NamedTuple):
    """One column: a measure pooled over the documents of some tasks."""

    measure: str
    tasks: tuple[str, ...]


def make_report(
    tasks: LoadedTasks, options: LmEvalOptions, results: Mapping[str, Any], references: Mapping[str, str]
) -> SectionReport:
    """Everything that is shown of the tasks. ``results``: row name -> what ``running.ask`` gave."""
    answers: Answers = {row: result["answers"] for row, result in results.items()}
    own = {row: json.loads(result["files"][RESULTS]) for row, result in results.items()}
    first = next(iter(own.values()))
    better = {
        metric: "higher" if is_higher else "lower"
        for of_task in first["higher_is_better"].values()
        for metric, is_higher in of_task.items()
        if is_higher is not None
    }
    shown = _requested(tasks, answers)
    tables = [_table("lm-evaluation-harness", shown, answers, better, references)]
    by_task = {name: Shown(_measures(answers, name)[0], (name,)) for name in tasks.tasks if _measures(answers, name)}
    if set(by_task) - set(shown):
        tables.append(_table("By task", by_task, answers, better, references))
    by_bytes = {
        name: Shown(ACCURACY_BYTES, (name,)) for name in tasks.tasks if ACCURACY_BYTES in _measures(answers, name)
    }
    if by_bytes:
        tables.append(_table("Accuracy per byte", by_bytes, answers, better, references))
    skipped = list(tasks.skipped)
    tables += [_lm_eval_table(own, better, skipped), _counts_table(tasks, answers)]
    return SectionReport(
        name="lm_eval",
        title="lm-evaluation-harness",
        about=ABOUT.format(bytes_per_token=options.bytes_per_token),
        tables=tuple(tables),
        items=tuple(_items(tasks, answers)),
        skipped=(*skipped, *_left_out(answers)),
        warnings=tuple(_warnings(answers)),
        facts=_facts(first, options),
        metrics=_metrics(shown, by_bytes, answers),
        files={f"{row}/{name}": text for row, result in results.items() for name, text in result["files"].items()},
    )


def _measures(answers: Answers, task: str) -> list[str]:
    """What every model has of a task, the most telling first."""
    by_row = [list(of_row[task][0]["measures"]) if of_row[task] else [] for of_row in answers.values()]
    return [measure for measure in by_row[0] if all(measure in found for found in by_row)]


def _requested(tasks: LoadedTasks, answers: Answers) -> dict[str, Shown]:
    """A column for every name in the recipe; the tasks of a group that measures different things have their own."""
    found = {}
    for name, members in tasks.by_request.items():
        firsts = {task: _measures(answers, task)[:1] for task in members}
        kinds = {measure for measures in firsts.values() for measure in measures}
        if len(kinds) == 1 and all(firsts.values()):
            found[name] = Shown(*kinds, members)
        else:
            found |= {task: Shown(*measures, (task,)) for task, measures in firsts.items() if measures}
    return found


def _sides(shown: Shown, answers: Answers) -> dict[str, tuple[list[float], list[float]]]:
    """Row -> numerators and denominators of the documents that every row has."""
    values = {
        row: [answer["measures"][shown.measure] for task in shown.tasks for answer in of_row[task]]
        for row, of_row in answers.items()
    }
    scale = 100.0 if shown.measure in _PERCENT else 1.0
    kept = [place for place, of_all in enumerate(zip(*values.values(), strict=True)) if None not in of_all]
    return {
        row: ([scale * own[place][0] for place in kept], [own[place][1] for place in kept])
        for row, own in values.items()
        if kept
    }


def _table(
    title: str,
    shown: Mapping[str, Shown],
    answers: Answers,
    better: Mapping[str, Any],
    references: Mapping[str, str],
) -> Table:
    columns = tuple(_column(name, one, answers, better) for name, one in shown.items())
    by_column = {name: _sides(one, answers) for name, one in shown.items()}
    sides = {row: {name: of_all[row] for name, of_all in by_column.items() if row in of_all} for row in answers}
    rows = {
        row: {name: _measure(shown[name].measure, *side) for name, side in of_row.items()}
        for row, of_row in sides.items()
    }
    return Table(title, columns, rows, compare(sides, references))


def _measure(name: str, numerators: Sequence[float], denominators: Sequence[float]) -> Measure:
    """The ratio of sums with its interval: Wilson's for a share of right answers, else bootstrap."""
    if name in _PERCENT:
        found = wilson(math.fsum(numerators) / 100, len(numerators))
        return Measure(100 * found.value, 100 * found.low, 100 * found.high)
    if all(value in (0, 1) for value in (*numerators, *denominators)):
        return wilson(math.fsum(numerators), len(numerators))
    return ratio(numerators, denominators)


def _column(name: str, shown: Shown, answers: Answers, better: Mapping[str, Any]) -> Column:
    count = sum(len(next(iter(answers.values()))[task]) for task in shown.tasks)
    note = f"{shown.measure}, {count:,} documents"
    if shown.measure in _PERCENT:
        return Column(name, "%", "higher", 1, note)
    if shown.measure == BITS_PER_BYTE:
        return Column(name, "bits per byte", "lower", 3, note)
    return Column(name, "", better.get(shown.measure.partition(" ")[0]), 3, note)


def _lm_eval_table(own: Mapping[str, Mapping[str, Any]], better: Mapping[str, Any], skipped: list[Skipped]) -> Table:
    """lm-eval's numbers as they are. What is not finite goes to ``skipped``."""
    columns: dict[str, Column] = {}
    rows: dict[str, dict[str, Measure]] = {}
    for row, results in own.items():
        rows[row] = {}
        for task, numbers in {**results["results"], **results.get("groups", {})}.items():
            for key, value in numbers.items():
                metric, comma, filtered = key.partition(",")
                if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                    continue
                name = f"{task} {metric}" if filtered == "none" else f"{task} {metric} {filtered}"
                columns.setdefault(name, Column(name, "", better.get(metric), 4))
                if not math.isfinite(value):
                    skipped.append(Skipped(f"lm-eval's {name}", f"it is {value}: some document has no number", row))
                    continue
                error = numbers.get(f"{metric}_stderr,{filtered}")
                spread = Z95 * error if isinstance(error, int | float) and math.isfinite(error) else None
                ends = () if spread is None else (value - spread, value + spread)
                rows[row][name] = Measure(value, *ends)
    return Table("As lm-eval computes them", tuple(columns.values()), rows)


def _counts_table(tasks: LoadedTasks, answers: Answers) -> Table:
    ties, unanswered = {}, {}
    for name, members in tasks.by_request.items():
        if any(ACCURACY in _measures(answers, task) for task in members):
            ties[name] = Column(f"{name}: ties", "%", digits=1)
        unanswered[name] = Column(f"{name}: not answered", "documents", digits=0)
    rows = {}
    for row, of_row in answers.items():
        found = {
            name: [answer for task in members for answer in of_row[task]] for name, members in tasks.by_request.items()
        }
        rows[row] = {
            column.name: Measure(100 * sum(answer["tied"] for answer in found[name]) / len(found[name]))
            for name, column in ties.items()
        } | {
            column.name: Measure(sum(answer["problem"] is not None for answer in found[name]))
            for name, column in unanswered.items()
        }
    return Table("Ties, and documents without an answer", (*ties.values(), *unanswered.values()), rows)


def _left_out(answers: Answers) -> Iterator[Skipped]:
    """Texts that some model could not read: they count for no model."""
    for row, of_row in answers.items():
        for task, found in of_row.items():
            for answer in found:
                if answer["problem"] and None in answer["measures"].values():
                    yield Skipped(f"{task}, document {answer['id']}, of any model", answer["problem"], row)


def _warnings(answers: Answers) -> Iterator[str]:
    for row, of_row in answers.items():
        for task, found in of_row.items():
            problems = Counter(answer["problem"] for answer in found if answer["problem"])
            if problems:
                kinds = ", ".join(f"{problem} {count:,}" for problem, count in problems.items())
                count = f"{problems.total():,} of {len(found):,}"
                yield f"lm_eval: {row} has no answer to {count} documents of {task} ({kinds})"
            ties = sum(answer["tied"] for answer in found)
            if ties:
                count = f"{ties:,} of {len(found):,}"
                yield f"lm_eval: {row} gives several options the same probability in {count} documents of {task}"


def _items(tasks: LoadedTasks, answers: Answers) -> Iterator[Item]:
    """Every question that is either right or wrong, and what every model answered."""
    for task in tasks.tasks:
        measures = _measures(answers, task)
        by_row = {row: of_row[task] for row, of_row in answers.items()}
        if not measures or measures[0] == BITS_PER_BYTE:
            continue
        for of_all in zip(*by_row.values(), strict=True):
            asked = dict(zip(by_row, of_all, strict=True))
            first = of_all[0]
            yield Item(
                id=f"{task}/{first['id']}",
                groups={"task": task},
                prompt=first["prompt"],
                gold=first["gold"],
                answers={row: answer["given"] for row, answer in asked.items()},
                correct={
                    row: None if answer["problem"] else math.isclose(answer["measures"][measures[0]][0], 1)
                    for row, answer in asked.items()
                },
                problems={row: answer["problem"] for row, answer in asked.items() if answer["problem"]},
            )


def _metrics(shown: Mapping[str, Shown], by_bytes: Mapping[str, Shown], answers: Answers) -> dict[str, float]:
    """``<row>.<measure>.<task>``, accuracies as shares."""
    metrics = {}
    for columns in (shown, by_bytes):
        for name, one in columns.items():
            scale = 100.0 if one.measure in _PERCENT else 1.0
            for row, side in _sides(one, answers).items():
                measure = one.measure.replace(" ", "_")
                metrics[f"{row}.{measure}.{name}"] = math.fsum(side[0]) / math.fsum(side[1]) / scale
    return metrics


def _facts(results: Mapping[str, Any], options: LmEvalOptions) -> dict[str, Any]:
    return {
        "lm_eval": importlib.metadata.version("lm_eval"),
        "tasks": {
            name: {
                "version": results["versions"].get(name),
                "examples": results["n-shot"].get(name),
                "documents": counts["effective"],
                "of": counts["original"],
            }
            for name, counts in results["n-samples"].items()
        },
        **options.model_dump(mode="json", exclude={"tasks", "include"}, exclude_none=True),
    }
