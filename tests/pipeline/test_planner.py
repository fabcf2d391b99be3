from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import provenance, publish
from pipeline.errors import RecipeError
from pipeline.executing.locks import FileLock
from pipeline.plan import Action, Plan, PlannedStage, State
from pipeline.planner import make_plan
from pipeline.reading.loading import load_recipe
from pipeline.request import Request
from pipeline.store import Entry, Store
from stages import STAGES
from stages.artifacts import Artifact
from stages.stage import Input, StageConfig, not_keyed, reference


class TextConfig(StageConfig):
    file: str = reference()
    options: dict[str, float] = {}


class Text:
    VERSION = 1
    Config = TextConfig
    inputs = {}
    output = Artifact


class JoinConfig(StageConfig):
    gap: int = 1
    seed: int = 0
    threads: int = not_keyed(1)


class Join:
    VERSION = 1
    Config = JoinConfig
    inputs = {"parts": Input(Artifact, many=True)}
    output = Artifact


class Copy:
    VERSION = 1
    Config = JoinConfig
    inputs = {"part": Input(Artifact)}
    output = Artifact


@pytest.fixture(autouse=True)
def toy_stages(monkeypatch):
    for stage in (Text, Join, Copy):
        monkeypatch.setitem(STAGES, stage.__name__.lower(), f"{__name__}:{stage.__name__}")


RECIPE = {
    "name": "small",
    "seed": 7,
    "stages": {
        "left": {"uses": "text", "file": "./a.txt", "options": {"x": 1, "y": 2}},
        "right": {"uses": "text", "file": "./b.txt"},
        "copy": {"uses": "copy", "needs": ["left"]},
        "join": {"uses": "join", "needs": ["copy", "right"], "gap": 2},
    },
    "resources": {"join": {"threads": 2}},
}


class Workplace:
    """A directory with the recipe's files, and the store that its plans are made against."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "a.txt").write_text("a")
        (path / "b.txt").write_text("b")

    def plan(self, *overrides: str, recipe: dict = RECIPE, **request: Any) -> Plan:
        file = self.path / "recipe.yaml"
        file.write_text(yaml.safe_dump(recipe, sort_keys=False))
        return make_plan(load_recipe(file, overrides), self.path / "runs", Request(**request))

    def entry(self, stage: PlannedStage) -> Entry:
        return Store(self.path / "runs" / "store").entry(stage.uses, stage.key)

    def make(self, plan: Plan, *names: str, content: str = "made") -> None:
        """Publish results of stages as the runner does."""
        for stage in plan.stages:
            if names and stage.name not in names:
                continue
            entry = self.entry(stage)
            attempt = publish.begin_attempt(entry, stage.ingredients)
            (entry.partial_directory(attempt.number) / "file.txt").write_text(content + stage.key)
            upstream = {name: self.entry(plan.stage(name)).done().result_id for name in stage.upstream}
            publish.publish(
                entry, attempt.number, Artifact, ingredients=stage.ingredients, upstream=upstream,
                run=plan.recipe.name, seconds=1.0,
            )  # fmt: skip
            link = plan.run_directory / "stages" / stage.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(entry.path, link.parent))


@pytest.fixture
def place(tmp_path):
    return Workplace(tmp_path)


def reasons(plan: Plan) -> dict[str, str]:
    return {stage.name: stage.reason for stage in plan.stages if stage.action is not Action.SKIP}


def keys(plan: Plan) -> dict[str, str]:
    return {stage.name: stage.key for stage in plan.stages}


def test_first_everything_is_missing_then_everything_is_fresh(place):
    plan = place.plan()
    assert reasons(plan) == dict.fromkeys(["left", "right", "copy", "join"], "missing")
    place.make(plan)
    again = place.plan()
    assert [(stage.state, stage.action, stage.reason) for stage in again.stages] == [
        (State.FRESH, Action.SKIP, "fresh")
    ] * 4
    assert again.pending == ()


AGAIN = {"left_again": RECIPE["stages"]["left"], "reader": {"uses": "copy", "needs": ["left_again"], "gap": 5}}
TWINS = RECIPE | {"stages": RECIPE["stages"] | AGAIN}


@pytest.mark.parametrize("chosen", [("left", "reader"), ("left_again", "reader"), ("left", "left_again", "reader")])
def test_whoever_selects_a_stage_selects_its_twin(place, chosen):
    """``left`` and ``left_again`` have one key: what makes the one makes the other, and their readers can run."""
    plan = place.plan(recipe=TWINS, only=chosen)
    assert plan.stage("left").key == plan.stage("left_again").key
    assert {stage.name for stage in plan.pending} == {"left", "left_again", "reader"}
    assert plan.stage("copy").action is Action.LEAVE
    place.make(plan, "left", "left_again", "reader")
    assert place.plan(recipe=TWINS, only=chosen).pending == ()


def test_a_twin_may_be_forced_where_the_other_is_selected(place):
    plan = place.plan(recipe=TWINS)
    place.make(plan)
    forced = place.plan(recipe=TWINS, only=("left",), force=("left_again",))
    assert {stage.name for stage in forced.pending} == {"left", "left_again"}
    with pytest.raises(RecipeError, match="right is to be forced or restarted, but it is not among the selected"):
        place.plan(recipe=TWINS, only=("left",), force=("right",))


def test_keys_are_golden(place):
    """These change only with KEY_SCHEMA: every result in every store depends on them."""
    assert {name: key[:16] for name, key in keys(place.plan()).items()} == {
        "left": "b78b3ca996c3b1f0",
        "right": "4e2902ad10654dcb",
        "copy": "ff64375ce16e9f5a",
        "join": "6a7c13acf6e548c6",
    }


ALL = {"left", "right", "copy", "join"}


@pytest.mark.parametrize(
    ("override", "rekeyed"),
    [
        ("stages.left.options.x=3", {"left", "copy", "join"}),
        ("stages.left.options.x=1.0", set()),
        ("stages.left.file=./b.txt", {"left", "copy", "join"}),
        ("stages.right.file=./again/../b.txt", set()),
        ("stages.copy.gap=3", {"copy", "join"}),
        ("stages.copy.gap=1", set()),
        ("stages.join.gap=3", {"join"}),
        ("stages.join.threads=3", set()),
        ("stages.join.seed=8", {"join"}),
        ("stages.join.needs=[right, copy]", {"join"}),
        ("seed=8", {"copy", "join"}),
        ("name=other", set()),
        ("resources.join.threads=3", set()),
    ],
)
def test_a_single_change_gives_new_keys_to_exactly_the_stages_it_touches(place, override, rekeyed):
    before, after = keys(place.plan()), keys(place.plan(override))
    assert {name for name in ALL if before[name] != after[name]} == rekeyed


def test_content_counts_and_place_does_not(place, tmp_path):
    before = keys(place.plan())
    (tmp_path / "elsewhere.txt").write_text("b")
    assert keys(place.plan("stages.right.file=elsewhere.txt")) == before
    (tmp_path / "b.txt").write_text("other")
    after = keys(place.plan())
    assert {name for name in ALL if before[name] != after[name]} == {"right", "join"}


def test_stage_version_is_in_the_key(place, monkeypatch):
    before = keys(place.plan())
    monkeypatch.setattr(Copy, "VERSION", 2)
    after = keys(place.plan())
    assert {name for name in ALL if before[name] != after[name]} == {"copy", "join"}


def shuffled(value, chooser: random.Random):
    if isinstance(value, dict):
        items = [(key, shuffled(item, chooser)) for key, item in value.items()]
        chooser.shuffle(items)
        return dict(items)
    return value


@settings(max_examples=20, deadline=None)
@given(chooser=st.randoms(use_true_random=False))
def test_order_of_yaml_keys_changes_no_key(tmp_path_factory, chooser):
    place = Workplace(tmp_path_factory.mktemp("order"))
    expected, plan = place.plan(), place.plan(recipe=shuffled(RECIPE, chooser))
    assert keys(plan) == keys(expected)
    names = [stage.name for stage in plan.stages]
    assert all(names.index(other) < names.index(stage.name) for stage in plan.stages for other in stage.upstream)


def test_reasons_show_what_changed_since_the_last_result(place, tmp_path):
    place.make(place.plan())
    (tmp_path / "b.txt").write_text("other")
    changed = place.plan("stages.left.options.x=3", "stages.join.gap=1")
    assert reasons(changed) == {
        "left": "params: options.x 1.0 → 3.0",
        "right": "input changed: stages.right.file (content)",
        "copy": "upstream left re-runs",
        "join": "params: gap 2 → 1; upstream copy re-runs; upstream right re-runs",
    }


def test_a_new_version_is_a_reason(place, monkeypatch):
    place.make(place.plan())
    monkeypatch.setattr(Join, "VERSION", 5)
    assert reasons(place.plan()) == {"join": "stage version 1 → 5"}


def test_a_changed_upstream_that_is_there_already_does_not_re_run(place):
    place.make(place.plan("stages.copy.gap=3"))
    place.make(place.plan())
    assert reasons(place.plan("stages.copy.gap=3", "stages.join.gap=4")) == {
        "join": "params: gap 2 → 4; upstream copy changed"
    }


def test_other_needs_are_a_reason(place):
    place.make(place.plan())
    assert reasons(place.plan("stages.join.needs=[copy]")) == {"join": "other stages are needed"}


def test_forced_stage_runs_and_makes_what_follows_stale(place):
    place.make(place.plan())
    plan = place.plan(force=("copy",))
    assert reasons(plan) == {"copy": "forced", "join": "upstream copy re-runs"}
    assert (plan.stage("copy").state, plan.stage("join").state) == (State.FRESH, State.STALE)


def test_unknown_forced_stage_is_refused(place):
    with pytest.raises(RecipeError, match=r"--force copi: no stage is called 'copi' \(did you mean 'copy'\?\)"):
        place.plan(force=("copi",))


def actions(plan: Plan) -> dict[str, str]:
    return {stage.name: stage.action.value for stage in plan.stages}


def test_only_what_is_selected_runs(place):
    plan = place.plan(until=("copy",))
    assert actions(plan) == {"left": "run", "copy": "run", "right": "leave", "join": "leave"}
    assert plan.stage("join").reason == "not selected; missing"
    assert [stage.name for stage in plan.pending] == ["left", "copy"]


def test_what_a_selected_stage_needs_must_be_there(place):
    with pytest.raises(RecipeError) as error:
        place.plan(start=("join",))
    assert error.value.problems == [
        "join needs copy, which is neither selected nor up to date (missing); make it first with --until copy, or "
        "select it too",
        "join needs right, which is neither selected nor up to date (missing); make it first with --until right, or "
        "select it too",
    ]
    place.make(place.plan(), "left", "copy", "right")
    assert actions(place.plan(only=("join",))) == {"left": "skip", "right": "skip", "copy": "skip", "join": "run"}


def test_what_follows_a_stage_that_was_left_is_not_called_made_anew(place):
    place.make(place.plan())
    plan = place.plan("stages.left.options.x=5", only=("right",), force=("right",))
    assert plan.stage("right").action is Action.RUN
    assert plan.stage("copy").reason.startswith("not selected; ")
    assert actions(plan)["join"] == "leave"


def test_all_that_is_selected_can_be_forced(place):
    place.make(place.plan())
    assert actions(place.plan(until=("copy",), force_all=True)) == {
        "left": "run", "copy": "run", "right": "skip", "join": "leave",
    }  # fmt: skip


def test_a_restarted_stage_begins_anew(place):
    plan = place.plan()
    entry = place.entry(plan.stage("left"))
    attempt = publish.begin_attempt(entry, plan.stage("left").ingredients)
    (attempt.path / "status.json").write_text(json.dumps({"state": "interrupted"}))
    checkpoint = entry.work / "ckpt" / "step-70"
    checkpoint.mkdir(parents=True)
    (checkpoint / "COMPLETE.json").write_text("{}")
    assert left_verdict(place) == (State.INTERRUPTED, Action.RESUME, "interrupted at step 70 → resume")
    again = place.plan(restart=("left",)).stage("left")
    assert (again.action, again.reason, again.restarted) == (Action.RUN, "interrupted at step 70; begun anew", True)


def test_upstream_made_anew_under_the_same_key_makes_stale(place):
    plan = place.plan()
    place.make(plan)
    place.make(plan, "left", content="made otherwise")
    assert reasons(place.plan()) == {"copy": "upstream left was made anew", "join": "upstream copy re-runs"}
    place.make(plan, "left")
    assert place.plan().pending == (), "the bytes are the ones that were used"


def test_results_are_shared_between_recipes_that_name_their_stages_differently(place):
    place.make(
        place.plan(
            recipe={"name": "first", "stages": {"l": RECIPE["stages"]["left"], "c": {"uses": "copy", "needs": ["l"]}}}
        )
    )
    plan = place.plan(
        recipe={"name": "second", "stages": {"m": RECIPE["stages"]["left"], "d": {"uses": "copy", "needs": ["m"]}}}
    )
    assert [stage.reason for stage in plan.stages] == ["fresh (made by run first)"] * 2


def test_two_stages_may_share_a_key_and_are_forced_together(place):
    recipe = {"name": "twins", "stages": {"one": RECIPE["stages"]["left"], "two": RECIPE["stages"]["left"]}}
    plan = place.plan(recipe=recipe)
    assert plan.stage("one").key == plan.stage("two").key
    place.make(plan, "one")
    assert reasons(place.plan(recipe=recipe, force=("two",))) == {"one": "forced", "two": "forced"}


def begin(place: Workplace, name: str, **status) -> Entry:
    stage = place.plan().stage(name)
    entry = place.entry(stage)
    attempt = publish.begin_attempt(entry, stage.ingredients)
    (attempt.path / "status.json").write_text(json.dumps(status))
    return entry


def checkpoint(entry: Entry, step: int) -> None:
    path = entry.work / "ckpt" / f"step-{step}"
    path.mkdir(parents=True)
    (path / "COMPLETE.json").write_text("{}")


def left_verdict(place: Workplace) -> tuple[State, Action, str]:
    stage = place.plan().stage("left")
    return stage.state, stage.action, stage.reason


def test_unfinished_attempts_are_told_apart(place):
    entry = begin(place, "left", state="interrupted")
    assert left_verdict(place) == (State.INTERRUPTED, Action.RUN, "interrupted before its first checkpoint")
    checkpoint(entry, 1200)
    assert left_verdict(place) == (State.INTERRUPTED, Action.RESUME, "interrupted at step 1,200 → resume")
    begin(place, "left", state="failed")
    assert left_verdict(place) == (State.FAILED, Action.RESUME, "failed (attempt 2) → resume at step 1,200")
    begin(place, "left", state="running")
    assert left_verdict(place)[0] is State.INTERRUPTED, "nobody holds the lock: its runner was killed"
    with FileLock(entry.lock_path).acquire():
        state, action, reason = left_verdict(place)
    assert (state, action) == (State.RUNNING, Action.RUN)
    assert f"pid {os.getpid()}" in reason


def test_a_damaged_result_is_made_again(place):
    plan = place.plan()
    place.make(plan)
    (place.entry(plan.stage("right")).out / "file.txt").unlink()
    assert "file.txt is missing" in reasons(place.plan())["right"]


def test_all_broken_references_are_reported_at_once_with_their_lines(place, tmp_path):
    with pytest.raises(RecipeError) as raised:
        place.plan("stages.left.file=./c.txt", "stages.right.file=package:no-such-package/x")
    assert len(raised.value.problems) == 2
    assert "--set: stages.left.file: " in raised.value.problems[0]
    assert "pip install --no-deps no-such-package" in raised.value.problems[1]


def test_the_kept_recipe_makes_the_same_plan_from_elsewhere(place, tmp_path):
    plan = place.plan()
    kept = tmp_path / "deep" / "er" / "kept.yaml"
    kept.parent.mkdir(parents=True)
    kept.write_text(yaml.safe_dump(dict(plan.recipe.resolved)))
    assert keys(make_plan(load_recipe(kept), tmp_path / "runs")) == keys(plan)
    assert plan.stage("left").config.file == str(tmp_path / "a.txt")


def test_results_of_other_code_are_kept_and_said_so_unless_that_is_not_wanted(place, monkeypatch):
    monkeypatch.setattr(provenance, "code_digest", lambda: "abc12" + "0" * 59)
    place.make(place.plan(), "left", "right")
    monkeypatch.setattr(provenance, "code_digest", lambda: "def34" + "0" * 59)
    place.make(place.plan(), "copy", "join")
    plan = place.plan()
    assert plan.pending == ()
    assert plan.stage("left").reason == "fresh; code changed abc12 → def34, not a trigger"
    assert plan.stage("copy").reason == "fresh"
    assert reasons(place.plan(on_code_change="rerun")) == {
        "left": "code changed abc12 → def34",
        "right": "code changed abc12 → def34",
        "copy": "upstream left re-runs",
        "join": "upstream copy re-runs, upstream right re-runs",
    }
    with pytest.raises(RecipeError, match="other code than this made left, right; make them anew with"):
        place.plan(on_code_change="error")


def test_a_result_of_before_code_was_recorded_is_read(place):
    place.make(place.plan())
    done = place.entry(place.plan().stage("left")).done_path
    record = json.loads(done.read_text())
    assert record.pop("code") == provenance.code_digest()
    del record["checksum"]  # which came later still
    done.write_text(json.dumps(record))
    assert place.plan().pending == ()


def test_the_code_digest_is_of_what_stages_run(tmp_path, monkeypatch):
    for file in ("stages/a.py", "losses/b.py", "alignment/c.py", "pipeline/d.py", "stages/data.txt"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("x = 1\n")
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    digest = provenance.code_digest.__wrapped__
    before = digest()
    (tmp_path / "pipeline/d.py").write_text("x = 2\n")
    (tmp_path / "stages/data.txt").write_text("other")
    assert digest() == before
    (tmp_path / "losses/b.py").write_text("x = 2\n")
    assert digest() != before


def test_only_code_that_we_keep_counts_as_changed(tmp_path, monkeypatch):
    for file in ("stages/a.py", "README.md", ".gitignore"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("made/\n")
    author = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (("init", "-q"), ("add", "."), (*author, "commit", "-q", "-m", "first")):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    commit, changed = provenance.git_state.__wrapped__()
    assert (len(commit), changed) == (40, False)

    def is_changed_by(file: str) -> bool:
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        before = path.read_text() if path.exists() else None
        path.write_text("x = 2\n")
        found = provenance.git_state.__wrapped__()[1]
        path.unlink() if before is None else path.write_text(before)
        return found

    assert not is_changed_by("mine.yaml"), "a user's recipe"
    assert not is_changed_by("mine-data/train.jsonl")
    assert not is_changed_by("stages/notes.txt")
    assert is_changed_by("stages/a.py")
    assert is_changed_by("README.md"), "a tracked file"
    assert is_changed_by("stages/new.py")
    assert is_changed_by("pipeline/new.py")
