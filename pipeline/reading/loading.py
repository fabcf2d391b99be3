"""From a YAML file to a recipe: every check that needs no other file, with all problems reported at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipeline import graph
from pipeline.errors import RecipeError
from pipeline.nearest import unknown_name
from pipeline.reading.invented import drop_invented, mapping
from pipeline.reading.problems import Location, Problem, describe, dotted
from pipeline.reading.recipe_secrets import masked_recipe, masked_recipe_text, secret_problems
from pipeline.reading.source_stages import SOURCE_STAGES, source_options, stage_name
from pipeline.reading.upstream import upstream_problems, without_absent
from pipeline.reading.yaml_source import SET_OPTION, Origin, YamlSource, read_yaml
from pipeline.recipe import Outline, Recipe, Resources, StageHeader, StageSpec
from stages import UnknownStage, load_stage
from stages.stage import Input, StageConfig

Model = TypeVar("Model", bound=BaseModel)


def load_recipe(path: Path, overrides: Sequence[str] = (), *, ensure: str | None = None) -> Recipe:
    """Read, check and wire the recipe at ``path``. Opens no other file and no connection.

    Args:
        path: the YAML file.
        overrides: ``a.b[0].c=value`` each, as given to ``--set``.
        ensure: a stage kind; a recipe without a stage of that kind gets one of the same name.

    Raises:
        RecipeError: holds every problem, each with its line and its dotted path.
    """
    source = read_yaml(path, overrides)
    problems = [] if ensure is None else _ensure_stage(source, ensure)
    problems += drop_invented(source)
    outline = _check(Outline, source.values, (), problems)
    configs, nodes = _check_stages(source, problems)
    bindings, wrong_bindings = graph.bind(nodes)
    bindings = without_absent(bindings, configs, source.values)
    problems += wrong_bindings
    source_configs = _check_sources(source.values, _readers(bindings), problems)
    # Nothing is concluded from a stage that is wrong in itself.
    settled = {name: bindings[name] for name in bindings if all(nodes.get(need) for need in nodes[name].needs)}
    problems += upstream_problems(settled, configs, source_configs)
    problems += _check_cycle(nodes)
    problems += _check_resources(source.values, [*nodes, *map(stage_name, _readers(bindings))])
    problems += secret_problems(source.values)
    # A value that could not be resolved is missing now: what that entails is no news.
    unresolved = {problem.location for problem in source.problems}
    problems = [*source.problems, *(problem for problem in problems if problem.location not in unresolved)]
    if problems or outline is None:
        raise recipe_error(problems, path, source.origins)
    unused = (*_unused_sections(source_configs, _readers(bindings)), *graph.passed_over(nodes, bindings))
    return _assemble(path, source, outline, configs, source_configs, bindings, unused)


def recipe_error(problems: Sequence[Problem], path: Path, origins: Mapping[Location, Origin]) -> RecipeError:
    """All problems as one error, in the order of the file, each with the line that it concerns."""

    def origin(location: Location) -> Origin | None:
        """Of the nearest enclosing key that was written; an override may also bring keys of its own."""
        if location not in origins and any(known[: len(location)] == location for known in origins):
            return SET_OPTION
        prefixes = (location[:length] for length in range(len(location), 0, -1))
        return next((origins[prefix] for prefix in prefixes if prefix in origins), None)

    def line(problem: Problem) -> float:
        found = origin(problem.location)
        return found if isinstance(found, int) else float("inf")

    def text(problem: Problem) -> str:
        if problem.location[0] == SET_OPTION:
            return f"{SET_OPTION} {problem.location[1]}: {problem.message}"
        found = origin(problem.location)
        where = SET_OPTION if found == SET_OPTION else f"{path}:{found}" if found else str(path)
        return f"{where}: {dotted(problem.location)}: {problem.message}"

    return RecipeError([text(problem) for problem in sorted(problems, key=line)])


def _check(
    model: type[Model], values: Mapping[str, Any], section: Location, problems: list[Problem], option: str | None = None
) -> Model | None:
    """Validate; what is wrong is added to ``problems`` under the section of the recipe that ``values`` are from."""
    also_known = StageHeader.model_fields if section[:1] == ("stages",) else ()
    try:
        return model.model_validate(values)
    except ValidationError as error:
        for location, message in describe(error, model, also_known):
            problems.append(Problem((*section, *(location if option is None else location[1:])), message))
        return None


def _ensure_stage(source: YamlSource, uses: str) -> list[Problem]:
    """Add a stage of kind ``uses``, with default options where no override gives others, unless there is one."""
    if source.values.get("stages") is None:
        source.values["stages"] = {}
    stages = mapping(source.values["stages"])
    if any(mapping(entry).get("uses") == uses for entry in stages.values()):
        return []
    if ("stages", uses) in source.origins:
        return [Problem(("stages", uses), f"is no {uses!r} stage, but {uses!r} needs that name here: rename it")]
    stages[uses] = {"uses": uses, **mapping(stages.get(uses))}
    return []


def _check_stages(
    source: YamlSource, problems: list[Problem]
) -> tuple[dict[str, StageConfig], dict[str, graph.Node | None]]:
    """Each stage's options against its own Config, and what the graph needs to know of it."""
    configs: dict[str, StageConfig] = {}
    nodes: dict[str, graph.Node | None] = {}
    seed = source.values.get("seed", 0)
    for name, entry in mapping(source.values.get("stages")).items():
        nodes[name] = None
        uses = mapping(entry).get("uses")
        if not isinstance(uses, str):
            continue
        try:
            stage = load_stage(uses)
        except UnknownStage as error:
            problems.append(Problem(("stages", name, "uses"), str(error)))
            continue
        options = {key: value for key, value in entry.items() if key not in StageHeader.model_fields}
        if "seed" in stage.Config.model_fields:
            options.setdefault("seed", seed)
        config = _check(stage.Config, options, ("stages", name), problems)
        if config is not None:
            configs[name] = config
        needs = entry.get("needs") or []
        inputs = _inputs(stage.inputs, config)
        if inputs is not None and isinstance(needs, list) and all(isinstance(need, str) for need in needs):
            nodes[name] = graph.Node(tuple(needs), inputs, stage.output, config.named_inputs if config else {})
    return configs, nodes


def _inputs(declared: Mapping[str, Input], config: StageConfig | None) -> Mapping[str, Input] | None:
    """The inputs that a stage has with these options; None where wrong options leave open which it has."""
    if not any(item.optional for item in declared.values()):
        return declared
    if config is None:
        return None
    used = config.wanted_inputs | config.welcome_inputs
    return {name: item for name, item in declared.items() if not item.optional or name in used}


def _readers(bindings: Mapping[str, graph.Binding]) -> dict[str, list[str]]:
    """Source -> the inputs that it fills, in words."""
    readers: dict[str, list[str]] = defaultdict(list)
    for stage, binding in bindings.items():
        for name, source in binding.sources.items():
            readers[source].append(f"input {name!r} of stage {stage!r}")
    return readers


def _check_sources(
    values: Mapping[str, Any], readers: Mapping[str, Sequence[str]], problems: list[Problem]
) -> dict[str, StageConfig]:
    """The ``models`` and ``data`` sections, those that are read and those that are merely there."""
    configs: dict[str, StageConfig] = {}
    missing: dict[Location, list[str]] = defaultdict(list)
    found: list[Problem] = []
    for source, spec in SOURCE_STAGES.items():
        options = source_options(source, values)
        if options is not None:
            config = _check(load_stage(spec.uses).Config, options, spec.section, found, spec.option)
            if config is not None:
                configs[source] = config
        elif readers.get(source) and not _is_enclosed(spec.section, [*problems, *found]):
            missing[spec.required] += readers[source]
    found += [
        Problem(place, f"required, but not given: it is {' and '.join(inputs)}") for place, inputs in missing.items()
    ]
    problems += dict.fromkeys(found)  # two sources may be made from one section
    return configs


def _is_enclosed(section: Location, problems: Sequence[Problem]) -> bool:
    """Whether it or a section around it is wrong as a whole: that nothing was found there is no news then."""
    return any(section[: len(problem.location)] == problem.location for problem in problems)


def _check_cycle(nodes: Mapping[str, graph.Node | None]) -> list[Problem]:
    edges = {name: [need for need in node.needs if need in nodes] if node else [] for name, node in nodes.items()}
    cycle = graph.find_cycle(edges)
    if cycle is None:
        return []
    return [Problem(("stages", cycle[-1], "needs"), f"the stages form a cycle: {' → '.join(cycle)}")]


def _check_resources(values: Mapping[str, Any], known: Sequence[str]) -> list[Problem]:
    return [
        Problem(("resources", name), f"no stage is called {name!r}{unknown_name(name, known)}")
        for name in map(str, mapping(values.get("resources")))
        if name not in known
    ]


def _assemble(
    path: Path,
    source: YamlSource,
    outline: Outline,
    configs: Mapping[str, StageConfig],
    source_configs: Mapping[str, StageConfig],
    bindings: Mapping[str, graph.Binding],
    unused: tuple[str, ...],
) -> Recipe:
    resources = {name: given.located(path.parent) for name, given in (outline.resources or {}).items()}
    readers = _readers(bindings)
    specs: dict[str, StageSpec] = {}
    for name in SOURCE_STAGES:
        if name in readers:
            spec, stage = SOURCE_STAGES[name], stage_name(name)
            specs[stage] = StageSpec(
                stage, spec.uses, source_configs[name], {}, resources.get(stage, Resources()), spec.section, spec.option
            )
    for name, header in outline.stages.items():
        from_sources = {key: (stage_name(source),) for key, source in bindings[name].sources.items()}
        inputs = {**from_sources, **bindings[name].inputs}
        specs[name] = StageSpec(
            name, header.uses, configs[name], inputs, resources.get(name, Resources()), ("stages", name)
        )
    order = graph.in_order({name: list(spec.upstream) for name, spec in specs.items()})
    origins = dict(source.origins)
    for name, config in configs.items():
        if "seed" in type(config).model_fields and ("seed",) in origins:
            origins.setdefault(("stages", name, "seed"), origins[("seed",)])
    return Recipe(
        name=outline.name,
        experiment=outline.experiment or outline.name,
        seed=outline.seed,
        path=path,
        text=masked_recipe_text(source.text, source.values),
        resolved=masked_recipe(_resolved(outline, resources, configs, source_configs)),
        stages={name: specs[name] for name in order},
        origins=origins,
        unused=unused,
    )


def _unused_sections(sources: Collection[str], readers: Collection[str]) -> tuple[str, ...]:
    """The sections that stand in the recipe and that no stage reads, dotted."""
    read = {SOURCE_STAGES[name].section for name in readers}
    given = dict.fromkeys(SOURCE_STAGES[name].section for name in sources)
    return tuple(dotted(section) for section in given if section not in read)


def _resolved(
    outline: Outline,
    resources: Mapping[str, Resources],
    configs: Mapping[str, StageConfig],
    source_configs: Mapping[str, StageConfig],
) -> dict[str, Any]:
    stages = {name: {"uses": header.uses, "needs": list(header.needs)} for name, header in outline.stages.items()}
    launched = {name: given.model_dump(mode="json", exclude_none=True) for name, given in resources.items()}
    values = {"name": outline.name, "seed": outline.seed, "stages": stages, "resources": launched}
    if outline.experiment is not None:
        values["experiment"] = outline.experiment
    for name, config in source_configs.items():
        fill_section(values, SOURCE_STAGES[name].section, SOURCE_STAGES[name].option, config)
    for name, config in configs.items():
        fill_section(values, ("stages", name), None, config)
    return {key: values[key] for key in Outline.model_fields if key in values}


def fill_section(values: dict[str, Any], section: Location, option: str | None, config: StageConfig) -> None:
    """Write a stage's configuration to where a recipe gives it; other keys there stay.

    Options that are None are left out: an absent key means the same, and some sections count their keys.
    """
    dumped = config.model_dump(mode="json", exclude_none=True)
    *path, last = section
    for part in path:
        values = values.setdefault(part, {})
    if option is None:
        values[last] = {**values.get(last, {}), **dumped}
    else:
        values[last] = dumped[option]
