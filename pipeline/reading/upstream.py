"""What the options of a stage say about those that it reads from, once it is known which these are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipeline.graph import Binding
from pipeline.reading.problems import Problem
from pipeline.reading.source_stages import source_options, stage_name
from stages.stage import StageConfig

Bindings = Mapping[str, Binding]
Configs = Mapping[str, StageConfig]


def without_absent(bindings: Bindings, configs: Configs, values: Mapping[str, Any]) -> dict[str, Binding]:
    """The bindings without the sources that the recipe does not give and that a stage can do without.

    Args:
        bindings: of each stage.
        configs: of each stage whose options are right.
        values: the recipe.
    """
    kept = {}
    for stage, binding in bindings.items():
        welcome = configs[stage].welcome_inputs if stage in configs else frozenset()
        sources = {
            name: source
            for name, source in binding.sources.items()
            if name not in welcome or source_options(source, values) is not None
        }
        kept[stage] = replace(binding, sources=sources)
    return kept


def upstream_problems(bindings: Bindings, configs: Configs, source_configs: Configs) -> list[Problem]:
    """What the options of stages ask of those that they read from and these do not give.

    Args:
        bindings: of each stage.
        configs: of each stage whose options are right.
        source_configs: of each source whose section is right.
    """
    problems = []
    for stage, binding in bindings.items():
        if stage not in configs or not all(other in configs for others in binding.inputs.values() for other in others):
            continue
        upstream = {name: {other: configs[other] for other in others} for name, others in binding.inputs.items()}
        for name, source in binding.sources.items():
            if source in source_configs:
                upstream[name] = {stage_name(source): source_configs[source]}
        found = configs[stage].upstream_problems(upstream)
        problems += [Problem(("stages", stage, *place), message) for place, message in found]
    return problems
