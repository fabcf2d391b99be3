from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import Field

from pipeline.errors import RecipeError
from pipeline.reading.loading import load_recipe
from pipeline.reading.yaml_source import as_yaml, read_yaml
from pipeline.recipe import Resources
from stages import STAGES
from stages.artifacts import DocumentsArtifact, ModelArtifact, ReportArtifact
from stages.stage import Input, StageConfig


class Schedule(StageConfig):
    kind: Literal["linear", "cosine"] = "linear"
    warmup: int = 0


class File(StageConfig):
    path: str


class TrainConfig(StageConfig):
    steps: int = Field(ge=1)
    rate: float = 1.0
    seed: int = 0
    schedules: tuple[Schedule, ...] = ()
    base: str | File | None = None


class Train:
    VERSION = 1
    Config = TrainConfig
    inputs = {
        "teacher": Input(ModelArtifact, source="teacher"),
        "documents": Input(DocumentsArtifact, source="train"),
    }
    output = ModelArtifact


class Refine:
    VERSION = 1
    Config = StageConfig
    inputs = {"model": Input(ModelArtifact)}
    output = ModelArtifact


class Halve(StageConfig):
    method: Literal["halve"]
    depth: int = 1


class Borrow(StageConfig):
    method: Literal["borrow"]


class ShrinkConfig(StageConfig):
    ways: tuple[Annotated[Halve | Borrow, Field(discriminator="method")], ...]

    @property
    def wanted_inputs(self) -> frozenset[str]:
        return frozenset({"donor"} if any(way.method == "borrow" for way in self.ways) else ())


class Shrink:
    VERSION = 1
    Config = ShrinkConfig
    inputs = {"model": Input(ModelArtifact), "donor": Input(ModelArtifact, source="donor", optional=True)}
    output = ModelArtifact


class CompareConfig(StageConfig):
    samples: int = 1


class Compare:
    VERSION = 1
    Config = CompareConfig
    inputs = {"models": Input(ModelArtifact, many=True)}
    output = ReportArtifact


@pytest.fixture(autouse=True)
def toy_stages(monkeypatch):
    monkeypatch.setitem(STAGES, "train", f"{__name__}:Train")
    monkeypatch.setitem(STAGES, "refine", f"{__name__}:Refine")
    monkeypatch.setitem(STAGES, "shrink", f"{__name__}:Shrink")
    monkeypatch.setitem(STAGES, "compare", f"{__name__}:Compare")


RECIPE = """\
name: small
seed: 17
models:
  teacher: {model: ./teacher}
data:
  train: [{path: ./a.txt, weight: 2}]
stages:
  short: {uses: train, steps: 1, rate: 1e-4}
  long:
    uses: train
    steps: ${stages.short.steps}
    seed: 3
    schedules: [{kind: cosine}]
  report: {uses: compare, needs: [short, long]}
resources:
  long: {launcher: torchrun, processes: 2}
"""


@pytest.fixture
def load(tmp_path):
    def load(text: str = RECIPE, *overrides: str):
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return load_recipe(path, overrides)

    return load


@pytest.fixture
def problems(load, tmp_path):
    """The problems of a recipe, without the path in front of the line number."""

    def problems(text: str = RECIPE, *overrides: str) -> list[str]:
        with pytest.raises(RecipeError) as raised:
            load(text, *overrides)
        return [problem.replace(f"{tmp_path / 'recipe.yaml'}", "recipe.yaml") for problem in raised.value.problems]

    return problems


def test_recipe_is_wired_and_defaults_are_filled(load):
    recipe = load()
    assert list(recipe.stages) == ["sources/teacher", "sources/train", "short", "long", "report"]
    assert recipe.stages["report"].inputs == {"models": ("short", "long")}
    assert recipe.stages["short"].inputs == {"teacher": ("sources/teacher",), "documents": ("sources/train",)}
    assert recipe.stages["long"].config.steps == 1, "interpolated"
    assert recipe.stages["long"].resources == Resources(launcher="torchrun", processes=2)
    assert recipe.stages["short"].resources == Resources()
    assert recipe.text == RECIPE


WRITTEN_TEXT = """\
stages:
  start: {uses: train, steps: 1}
  write: {uses: generate}
  taught: {uses: distill, needs: [start, write], losses: [cross_entropy], steps: 1}
  plain: {uses: distill, needs: [start], losses: [cross_entropy], steps: 1}
"""


def test_text_that_a_stage_writes_takes_the_place_of_the_training_data(load):
    sections, _, _ = RECIPE.partition("stages:")
    stages = load(sections + WRITTEN_TEXT).stages
    assert stages["write"].inputs["documents"] == ("sources/train",)
    assert stages["taught"].inputs["documents"] == ("write",)
    assert stages["plain"].inputs["documents"] == ("sources/train",)


def test_an_optional_input_exists_where_the_options_want_it(load, problems):
    text = RECIPE.replace(
        "  report: {uses: compare, needs: [short, long]}", "  small: {uses: shrink, needs: [short], ways: WAYS}"
    )
    alone = text.replace("WAYS", "[{method: halve}]")
    with_donor = text.replace("  teacher:", "  donor: {model: ./donor}\n  teacher:")
    assert load(alone).stages["small"].inputs == {"model": ("short",)}
    assert "sources/donor" not in load(alone.replace("  teacher:", "  donor: {model: ./donor}\n  teacher:")).stages
    borrowing = load(with_donor.replace("WAYS", "[{method: halve}, {method: borrow}]"))
    assert borrowing.stages["small"].inputs == {"model": ("short",), "donor": ("sources/donor",)}
    (problem,) = problems(text.replace("WAYS", "[{method: borrow}]"))
    assert "models.donor.model: required, but not given: it is input 'donor' of stage 'small'" in problem


def test_members_that_a_name_chooses_are_told_apart_in_problems(problems):
    text = RECIPE.replace(
        "  report: {uses: compare, needs: [short, long]}", "  small: {uses: shrink, needs: [short], ways: WAYS}"
    )

    def found(ways: str) -> list[str]:
        return [problem.partition("stages.")[2] for problem in problems(text.replace("WAYS", ways))]

    assert found("[{method: halve, dpeth: 2}]") == ["small.ways[0].dpeth: unknown key (did you mean 'depth'?)"]
    assert found("[{method: halv}]") == ["small.ways[0]: unknown method 'halv' (did you mean 'halve'?)"]
    assert found("[{depth: 2}]") == ["small.ways[0]: method is required, but not given"]


def test_exponent_without_a_point_is_a_float(load):
    assert load().stages["short"].config.rate == 1e-4


def test_stages_take_the_seed_of_the_recipe_unless_they_set_one(load):
    recipe = load()
    assert (recipe.stages["short"].config.seed, recipe.stages["long"].config.seed) == (17, 3)


def test_the_resolved_recipe_loads_to_the_same_stages(load):
    text = RECIPE.replace("weight: 2", r"weight: 2, name: 'a\${b}', text: '1e5'").replace("./teacher", r"'./\\\${x}'")
    recipe = load(text)
    assert recipe.stages["sources/teacher"].config.model == r"./\${x}"
    assert recipe.stages["sources/train"].config.documents[0].name == "a${b}"
    assert recipe.stages["sources/train"].config.documents[0].text == "1e5"
    again = load(as_yaml(recipe.resolved))
    assert {name: spec.config for name, spec in again.stages.items()} == {
        name: spec.config for name, spec in recipe.stages.items()
    }


_TEXT = st.text(st.sampled_from("ab.:${}\\'\" \n#1e-") | st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
_VALUES = st.dictionaries(
    st.text("abc", min_size=1),
    st.recursive(
        _TEXT.filter(lambda text: text != "???")
        | st.integers()
        | st.floats(allow_nan=False)
        | st.booleans()
        | st.none(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
        max_leaves=6,
    ),
    min_size=1,
)


@given(_VALUES)
@example({"a": "${a}", "b": [r"\${a}", r"\\\${b}\\", "${", "1e5", "0x1f", "yes", "~", "2020-01-01"]})
def test_values_written_as_a_recipe_are_read_as_the_same(tmp_path_factory, values):
    path = tmp_path_factory.getbasetemp() / "values.yaml"
    path.write_text(as_yaml(values), encoding="utf-8")
    source = read_yaml(path)
    assert (source.values, source.problems) == (values, ())


def test_sources_that_no_stage_reads_are_named_and_left_out(load):
    recipe = load(RECIPE.replace("stages:", "  eval: [{path: ./b.txt}]\nstages:", 1))
    assert recipe.unused == ("data.eval",)
    assert "sources/eval" not in recipe.stages


def test_all_problems_are_reported_at_once_with_line_path_and_nearest_name(problems):
    text = """\
name: small model
models:
  teacher: {modle: ./teacher}
data:
  train: [{path: ./a.txt, weihgt: 2}]
stages:
  short: {uses: train, stesp: 1, rate: fast}
  long:
    uses: trian
  report: {uses: compare, needs: [shrot], samples: [1]}
resources:
  lnog: {procesess: 2}
extra: 1
"""
    found = problems(text)
    expected = [
        "recipe.yaml:1: name: 'small model' is not a name: use letters, digits, '-' and '_'",
        "recipe.yaml:3: models.teacher.modle: unknown key (did you mean 'model'?)",
        "recipe.yaml:3: models.teacher.model: required, but not given",
        "recipe.yaml:5: data.train[0].weihgt: unknown key (did you mean 'weight'?)",
        "recipe.yaml:7: stages.short.stesp: unknown key (did you mean 'steps'?)",
        "recipe.yaml:7: stages.short.steps: required, but not given",
        "recipe.yaml:7: stages.short.rate: should be a valid number, unable to parse string as a number, not 'fast'",
        "recipe.yaml:10: stages.report.needs[0]: no stage is called 'shrot' (did you mean 'short'?)",
        "recipe.yaml:10: stages.report.samples: should be a valid integer, not [1]",
        "recipe.yaml:12: resources.lnog.procesess: unknown key (did you mean 'processes'?)",
        "recipe.yaml:12: resources.lnog: no stage is called 'lnog' (did you mean 'long'?)",
    ]
    assert set(expected) <= set(found)
    assert any(problem.startswith("recipe.yaml:9: stages.long.uses: unknown stage 'trian'") for problem in found)
    assert any(problem.startswith("recipe.yaml:13: extra: unknown key") for problem in found)
    assert len(found) == len(expected) + 2
    lines = [int(problem.split(":")[1]) for problem in found]
    assert lines == sorted(lines)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("kind: cosine", "kind: cosin", "stages.long.schedules[0].kind: should be 'linear' or 'cosine', not 'cosin'"),
        ("seed: 3", "base: {paht: x}", "stages.long.base.paht: unknown key (did you mean 'path'?)"),
        ("seed: 3", "base: 3", "base: should be a valid string, not 3 or should be a mapping, such as {path: …},"),
        ("seed: 3", "rate: .nan", "stages.long.rate: should be a finite number, not nan"),
        ("needs: [short, long]", "neds: [short]", "stages.report.neds: unknown key (did you mean 'needs'?)"),
        ("needs: [short, long]", "needs: short", "stages.report.needs: should be a list, such as [short], not"),
        ("needs: [short, long]", "needs: [short, short]", "stages.report.needs[1]: 'short' is listed twice"),
        ("processes: 2", "processes: 0", "resources.long.processes: should be greater than or equal to 1, not 0"),
        ("torchrun", "local", "resources.long: launcher 'local' starts one process, not 2; set launcher: torchrun"),
        ("torchrun, processes: 2", "local, nodes: 2", "launcher 'local' stays on this machine; set"),
        ("torchrun", "tochrun", "resources.long.launcher: should be 'local', 'torchrun', 'deepspeed', 'slurm' or"),
        ("processes: 2", "gpu: 2", "resources.long.gpu: unknown key (did you mean 'gpus'?)"),
        ("processes: 2", "gpus: 0", "resources.long.gpus: should be greater than or equal to 1, not 0"),
        ("processes: 2", "gpus: 2, processes: 4", "gpus: 2 means processes: 2, not 4; remove one"),
        ("processes: 2", "gpus: 2, device: cpu", "gpus: 2 means device: gpu, not cpu; remove one"),
        ("processes: 2", "device: cuda", "resources.long.device: should be 'auto', 'cpu' or 'gpu', not 'cuda'"),
        ("processes: 2", "rendezvous: here", "resources.long.rendezvous: 'here' is not host:port, such as node1:29500"),
        ("processes: 2", "rendezvous: 'a:99999'", "resources.long.rendezvous: 'a:99999' is not host:port"),
        ("processes: 2", "hostfile: h", "hostfile has no effect with launcher: torchrun; remove it, or"),
        ("processes: 2", "accelerate_config: a", "accelerate_config has no effect with launcher: torchrun"),
        ("torchrun", "accelerate", "resources.long: launcher: accelerate needs accelerate_config"),
        ("torchrun, processes: 2", "deepspeed, nodes: 2", "launcher: deepspeed needs a hostfile to find 2 nodes"),
        ("processes: 2", "timeout_minutes: 0", "resources.long.timeout_minutes: should be greater than or equal to 1"),
        ("processes: 2", "slurm: {time: soon}", "resources.long.slurm.time: 'soon' is no time limit"),
        ("processes: 2", "slurm: {memory: lots}", "resources.long.slurm.memory: 'lots' is no amount of memory"),
        ("processes: 2", "slurm: {options: [qos]}", "resources.long.slurm.options[0]: 'qos' is no option of sbatch"),
        ("name: small", "name: store", "name: 'store' is where the results of all recipes are kept"),
        ("name: small", "", "name: required, but not given"),
        ("  short:", "  sh.ort:", "stages.sh.ort: 'sh.ort' is not a name"),
        ("schedules: [{kind: cosine}]", "schedules: {}", "schedules: should be a list, not {}"),
        ("schedules: [{kind: cosine}]", "schedules: {warmup: 2}", "should be a list, such as [{warmup: 2}], not"),
        ("schedules: [{kind: cosine}]", "schedules: fast", "schedules: should be a list, such as [{warmup: 0}], not"),
        ("schedules: [{kind: cosine}]", "schedules: [3]", "schedules[0]: should be a mapping, such as {warmup: 0}"),
        ("[{path: ./a.txt, weight: 2}]", "./a.txt", "data.train: should be a list, such as [{path: ./a.txt}], not"),
        ("{uses: train, steps: 1, rate: 1e-4}", "train", "stages.short: should be a mapping, such as {uses: train}"),
        ("seed: 3", "max_steps: 3", "stages.long.max_steps: unknown key (called 'steps' here: optimiser steps, not"),
        ("${stages.short.steps}", "${stages.shrot.steps}", "long.steps: Interpolation key 'stages.shrot.steps'"),
        ("  teacher: {model: ./teacher}", "  {}", "models.teacher.model: required, but not given: it is input"),
        ("{model: ./teacher}", "./teacher", "models.teacher: should be a mapping, such as {model: ./teacher}"),
    ],
)  # fmt: skip
def test_problem_names_the_place_and_what_was_expected(problems, before, after, expected):
    assert before in RECIPE
    found = problems(RECIPE.replace(before, after, 1))
    assert any(expected in problem for problem in found), found


def test_a_section_of_the_wrong_form_is_one_problem(problems):
    assert len(problems(RECIPE.replace("[{path: ./a.txt, weight: 2}]", "./a.txt"))) == 1
    assert len(problems(RECIPE.replace("{model: ./teacher}", "./teacher"))) == 1
    assert len(problems(RECIPE.replace("\n  teacher: {model: ./teacher}", " ./teacher"))) == 1


def test_a_cycle_is_named(problems):
    text = "name: x\nstages:\n  a: {uses: refine, needs: [b]}\n  b: {uses: refine, needs: [a]}\n"
    (found,) = problems(text)
    assert found.endswith(("cycle: a → b → a", "cycle: b → a → b"))


def test_stages_may_share_options_through_a_yaml_merge(load):
    text = RECIPE.replace("short: {", "short: &base {").replace(
        "    uses: train\n    steps", "    <<: *base\n    steps"
    )
    config = load(text).stages["long"].config
    assert (config.rate, config.seed) == (1e-4, 3)


def test_a_wrong_member_of_a_list_is_the_only_thing_said_about_it(problems):
    assert len(problems(RECIPE.replace("kind: cosine", "kind: cosin"))) == 1


def test_duplicate_keys_are_refused_with_both_lines(problems):
    text = RECIPE.replace("    seed: 3\n", "    seed: 3\n    steps: 4\n").replace("seed: 17\n", "seed: 17\nseed: 18\n")
    assert problems(text) == [
        "recipe.yaml:3: seed: duplicate key, first given in line 2",
        "recipe.yaml:14: stages.long.steps: duplicate key, first given in line 12",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "a recipe is a mapping"),
        ("- a\n", "a recipe is a mapping"),
        ("a: [1,\nb: {\n", "recipe.yaml:3: not valid YAML"),
        ("name: &a [*a, *a]\n", "recipe.yaml:1: name[1]: an alias that contains itself"),
        ("name: x\nmodels: {a: '${data}', b: '${data}'}\ndata: {c: '${models}'}\n", "contains itself"),
        ("name: x\nstages: {}\n", "recipe.yaml:2: stages: should have at least 1, not 0"),
        ("name: ${name}\n", "Recursive interpolation"),
        ("name: x\nseed: ???\n", "recipe.yaml:2: seed: Missing mandatory value"),
        ("name: x\ndata: {train: ['${data}']}\n", "recipe.yaml:2: data"),
        ("# x\nname:hand\nseed: 1\n", "recipe.yaml:2: not valid YAML: mapping values are not allowed here; a blank is"),
        (
            "name:hand\n\nseed: 1\n",
            "recipe.yaml:1: not valid YAML: mapping values are not allowed here; a blank is",
        ),
        (
            "name: x\nseed:5\nstages: {}\n",
            "recipe.yaml:2: not valid YAML: could not find expected ':'; a blank is missing ",
        ),
        (
            "name: x\nstages:{a: {uses: train}}\n",
            "a blank is missing after a colon: write 'stages: {a: {uses: train}}'",
        ),
        (
            "stages:\n  a:\n    uses:train\n    steps: 5\n",
            "recipe.yaml:3: not valid YAML: mapping values are not allowed",
        ),
        (
            "name: x: y\n",
            "recipe.yaml:1: not valid YAML: mapping values are not allowed here; a key stands on a line of",
        ),
        (
            "name: x\nfile: C:/a: b\n",
            "recipe.yaml:2: not valid YAML: mapping values are not allowed here; a key stands",
        ),
        (
            "name: x\nstages: {a: {uses: train, steps:1}}\n",
            "stages.a.steps:1: unknown key (a blank is missing after the",
        ),
        ("on: x\n", "recipe.yaml:1: on: keys must be strings"),
        ("1: x\n", "recipe.yaml:1: 1: keys must be strings"),
    ],
)
def test_malformed_files_are_refused_with_the_line(problems, text, expected):
    assert any(expected in problem for problem in problems(text))


def test_a_missing_or_binary_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match="there is no such recipe file"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="is a directory"):
        load_recipe(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(RecipeError, match=r"not UTF-8 text \(byte 6\)"):
        load_recipe(tmp_path / "binary.yaml")


def test_overrides_are_yaml_split_at_the_first_equals_sign(load):
    recipe = load(
        RECIPE,
        "stages.short.rate=1e-5",
        "data.train[0].weight=5",
        "data.train.0.path=./x=y.txt",
        "stages.long.schedules=[{warmup: 4}]",
        "stages.short.schedules=[]",
        "resources.short.threads=2",
    )
    assert recipe.stages["short"].config.rate == 1e-5
    assert recipe.stages["sources/train"].config.documents[0].weight == 5
    assert recipe.stages["sources/train"].config.documents[0].path == "./x=y.txt"
    assert recipe.stages["long"].config.schedules == (Schedule(warmup=4),)
    assert recipe.stages["short"].resources.threads == 2


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("stages.shrot.rate=1", "--set stages.shrot: no stage is called 'shrot' (did you mean 'short'?)"),
        ("stages.short.raet=1", "--set: stages.short.raet: unknown key (did you mean 'rate'?)"),
        ("stgaes.short.rate=1", "--set stgaes: no section and no stage is called 'stgaes' (did you mean 'stages'?)"),
        ("data.train[3].weight=1", "--set data.train[3].weight=1: data.train is a list of 1, it has no item '3'"),
        ("stages.short[0].rate=1", "--set stages.short[0].rate=1: stages.short is no list: it has no item [0]"),
        ("stages.short.rate.x=1", "stages.short.rate is a single value, it has no 'x'"),
        ("stages.long.steps.x=1", "stages.long.steps is ${stages.short.steps}: set it as a whole"),
        ("stages.short.rate=quick", "--set: stages.short.rate: should be a valid number"),
        ("stages.short.rate", "expected PATH=VALUE"),
        ("=1", "expected PATH=VALUE"),
        ("seed=[1,", "'[1,' is not a YAML value"),
    ],
)
def test_wrong_overrides_are_refused_with_the_nearest_name(problems, override, expected):
    found = problems(RECIPE, override)
    assert len(found) == 1
    assert expected in found[0]


def test_loading_needs_none_of_the_files_that_a_recipe_names(load, tmp_path):
    assert load().path == tmp_path / "recipe.yaml"
    assert [path.name for path in Path(tmp_path).iterdir()] == ["recipe.yaml"]
