"""The model card of an exported model: what is recorded of how it came about, and nothing that is not.

Front matter and sections follow the Hugging Face hub's conventions. A licence is not among the recorded facts, so none
is stated.
"""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.plan import Plan, PlannedStage
from pipeline.reading.yaml_source import as_yaml
from pipeline.recipe import Recipe, StageSpec
from pipeline.sharing.written_paths import as_written
from pipeline.store import Done
from pipeline.views.listing import first_sentence
from stages import load_stage
from stages.document_sets import DocumentsSourceConfig
from stages.masking import masked
from stages.references import HubReference, LocalReference, ReferenceProblem, parse
from stages.sources import ModelSourceConfig, TokenizerSourceConfig

_ABOUT_THE_CLUSTER = {"rendezvous", "hostfile", "accelerate_config", "slurm", "nvme_path"}
"""Options of ``resources`` that say where a stage ran, which concerns nobody else."""


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found of the model.

    Attributes:
        stage: the evaluation.
        metrics: its final numbers, ``<section>.<row>.<metric>``.
        rows: the rows to show, the model's own last.
    """

    stage: str
    metrics: Mapping[str, float]
    rows: Sequence[str]


def card(
    plan: Plan,
    stage: PlannedStage,
    done: Done,
    evaluations: Sequence[Evaluated],
    machine: Mapping[str, Any],
    written: str,
) -> str:
    """The text of README.md.

    Args:
        plan: of the run, with references pinned.
        stage: that made the model.
        done: what is recorded of its result.
        evaluations: those that the model took part in.
        machine: what its attempt recorded of where it ran (``env.json``); empty where that is gone.
        written: the recipe as its author wrote it.
    """
    recipe = as_written(plan.recipe, written)
    chain = _lineage(recipe, stage.name)
    parts = [
        f"---\n{yaml.safe_dump(_metadata(recipe, chain), sort_keys=False, allow_unicode=True)}---\n",
        f"# {recipe.name}: {stage.name}\n",
        "\n".join(f"* {line}" for line in _facts(recipe, chain)) + "\n",
        "## How it was made\n",
        "\n".join(_steps(chain)) + "\n",
        *(_table(each) for each in evaluations),
        "## Reproducing it\n",
        _provenance(stage, done, machine),
        "The recipe, with all defaults:\n",
        _code(as_yaml(_published(recipe))),
    ]
    return "\n".join(parts)


def _lineage(recipe: Recipe, name: str) -> list[StageSpec]:
    """The stages through which the model went, from where it came in to ``name``."""
    chain = [recipe.stages[name]]
    while found := chain[0].inputs.get("student"):
        chain.insert(0, recipe.stages[found[0]])
    return chain


def _metadata(recipe: Recipe, chain: Sequence[StageSpec]) -> dict[str, Any]:
    """The front matter. Only what is on the hub can be named there."""
    base = _hub_name(recipe, chain[0].config)
    sets = [name for spec in _inputs(recipe, chain, "documents") for name in _hub_sets(recipe, spec)]
    kinds = [spec.uses for spec in chain if not spec.uses.endswith("model")]
    losses = [entry.name for spec in chain for entry in getattr(spec.config, "losses", ())]
    values = {
        "base_model": base,
        "datasets": list(dict.fromkeys(sets)),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": list(dict.fromkeys(["tokenferry", *kinds, *losses])),
    }
    return {key: value for key, value in values.items() if value}


def _facts(recipe: Recipe, chain: Sequence[StageSpec]) -> Iterator[str]:
    yield f"Base model: {_model(recipe, chain[0])}"
    teachers = [*_inputs(recipe, chain, "teacher"), *_inputs(recipe, chain, "teachers")]
    names = [_model(recipe, spec) for found in teachers for spec in _models_behind(recipe, found)]
    if names:
        yield f"Teacher: {', '.join(dict.fromkeys(names))}"
    targets = _inputs(recipe, chain, "tokenizer")
    if targets:
        yield f"Tokenizer: that of {_model(recipe, chain[0])} was replaced by {_tokenizer(recipe, targets[-1])}"
    else:
        yield "Tokenizer: the base model's own"
    texts = [name for spec in _inputs(recipe, chain, "documents") for name in _texts(recipe, spec)]
    if texts:
        yield f"Text: {', '.join(dict.fromkeys(texts))}"
    yield "Licence: not recorded; it is for the base model, the teacher and the text to say"


def _inputs(recipe: Recipe, chain: Sequence[StageSpec], name: str) -> list[StageSpec]:
    """The stages that fill an input anywhere in the chain, each once."""
    found = dict.fromkeys(each for spec in chain for each in spec.inputs.get(name, ()))
    return [recipe.stages[each] for each in found]


def _models_behind(recipe: Recipe, spec: StageSpec) -> list[StageSpec]:
    """The models that a teacher is or has been scored with."""
    if isinstance(spec.config, ModelSourceConfig):
        return [spec]
    if found := spec.inputs.get("teacher"):
        return [model for each in found for model in _models_behind(recipe, recipe.stages[each])]
    return [_lineage(recipe, spec.name)[0]] if "student" in spec.inputs else [spec]


def _steps(chain: Sequence[StageSpec]) -> Iterator[str]:
    for spec in chain:
        if isinstance(spec.config, ModelSourceConfig):
            continue
        what = first_sentence(load_stage(spec.uses).__doc__)
        yield f"* `{spec.name}` ({spec.uses}): {what}"
        for label, options in _methods(spec):
            yield f"  * {label}: {first_sentence(inspect.getdoc(type(options)))}"


def _methods(spec: StageSpec) -> Iterator[tuple[str, Any]]:
    """The initializers and losses of a stage, each with its options."""
    if spec.uses == "init":
        yield from ((options.method, options) for options in (*spec.config.input, *spec.config.refine))
    for entry in getattr(spec.config, "losses", ()):
        yield entry.name, entry.options


def _table(evaluated: Evaluated) -> str:
    """The final numbers of the model beside those of the rows that it is compared with."""
    own = evaluated.rows[-1]
    keys = [key.split(".", 2) for key in evaluated.metrics]
    lines = [
        f"## Evaluation `{evaluated.stage}`\n",
        f"| metric | {' | '.join(evaluated.rows)} |",
        f"|---|{'---|' * len(evaluated.rows)}",
    ]
    for section, metric in ((key[0], key[2]) for key in keys if len(key) == 3 and key[1] == own):
        found = [evaluated.metrics.get(f"{section}.{name}.{metric}") for name in evaluated.rows]
        cells = " | ".join("" if value is None else f"{value:.4g}" for value in found)
        lines.append(f"| {section}: {metric} | {cells} |")
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    """YAML between marks that nothing in it can end."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}yaml\n{text}{fence}\n"


def _provenance(stage: PlannedStage, done: Done, machine: Mapping[str, Any]) -> str:
    commit = done.git_commit or "not recorded"
    changed = ", with changes that were not committed" if done.git_dirty else ""
    rows = {
        "key": done.key,
        "result": done.result_id,
        "finished": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(done.finished)),
        "took": f"{done.seconds:,.0f} s",
        "commit": f"{commit}{changed}",
        "versions": ", ".join(f"{name} {version}" for name, version in done.versions.items()),
    }
    if "seed" in type(stage.config).model_fields:
        rows["seed"] = str(stage.config.seed)
    if "gpus" in machine:
        rows["GPUs"] = ", ".join(machine["gpus"]) or "none"
    lines = [f"Stage `{stage.name}` (`{stage.uses}`) of tokenferry.\n"]
    return "\n".join([*lines, "| | |", "|---|---|", *(_row(name, value) for name, value in rows.items()), ""])


def _row(name: str, value: str) -> str:
    return f"| {name} | {value} |"


def result_row(done: Done) -> str:
    """The line of a card that says which result the model is."""
    return _row("result", done.result_id)


def _published(recipe: Recipe) -> Any:
    """The resolved recipe without secrets, and without where files lie on the machine that ran it.

    What was written relative to the recipe stays, so that it finds its files where somebody lays them out again.
    """

    def cleaned(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: cleaned(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [cleaned(item) for item in value]
        return _shown(recipe, value) if isinstance(value, str) and Path(value).is_absolute() else value

    values = cleaned(masked(recipe.resolved))
    for given in values.get("resources", {}).values():
        for key in _ABOUT_THE_CLUSTER & given.keys():
            del given[key]
    return values


def _model(recipe: Recipe, spec: StageSpec) -> str:
    return f"`{_shown(recipe, spec.config.model)}`" if isinstance(spec.config, ModelSourceConfig) else f"`{spec.name}`"


def _tokenizer(recipe: Recipe, spec: StageSpec) -> str:
    if not isinstance(spec.config, TokenizerSourceConfig):
        return f"what stage `{spec.name}` made"
    given = spec.config.tokenizer
    return f"{'the bytes of ' if given.bytes else ''}`{_shown(recipe, given.file)}`"


def _texts(recipe: Recipe, spec: StageSpec) -> list[str]:
    if not isinstance(spec.config, DocumentsSourceConfig):
        return [f"what stage `{spec.name}` made"]
    return [f"`{_shown(recipe, each.path)}`" for each in spec.config.documents]


def _hub_sets(recipe: Recipe, spec: StageSpec) -> list[str]:
    if not isinstance(spec.config, DocumentsSourceConfig):
        return []
    found = (_reference(recipe, each.path) for each in spec.config.documents)
    return [each.repository for each in found if isinstance(each, HubReference)]


def _hub_name(recipe: Recipe, config: Any) -> str | None:
    found = _reference(recipe, config.model) if isinstance(config, ModelSourceConfig) else None
    return found.repository if isinstance(found, HubReference) else None


def _shown(recipe: Recipe, text: str) -> str:
    """A reference as others may read it: of an absolute path only its last part."""
    found = _reference(recipe, text)
    return found.path.name if isinstance(found, LocalReference) and Path(text).is_absolute() else text


def _reference(recipe: Recipe, text: str) -> Any:
    try:
        return parse(text, recipe.path.absolute().parent)
    except ReferenceProblem:
        return None
