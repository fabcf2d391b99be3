from __future__ import annotations

import io

import pytest

from pipeline import publish
from pipeline.executing.locks import FileLock
from pipeline.plan import Plan
from pipeline.planner import make_plan
from pipeline.reading.loading import load_recipe
from pipeline.store import Store
from pipeline.views.render import (
    plan_table,
    print_table,
    run_status,
    run_summary,
    sources_table,
    status_table,
    value_sources,
)
from stages import STAGES
from stages.artifacts import ModelArtifact, ReportArtifact
from stages.stage import Input, StageConfig
from stages.worker import PROGRESS_PREFIX


class Train:
    VERSION = 1
    Config = StageConfig
    inputs = {}
    output = ModelArtifact


class Report:
    VERSION = 1
    Config = StageConfig
    inputs = {"models": Input(ModelArtifact, many=True)}
    output = ReportArtifact


@pytest.fixture
def plan(tmp_path, monkeypatch) -> Plan:
    monkeypatch.setitem(STAGES, "train", f"{__name__}:Train")
    monkeypatch.setitem(STAGES, "report", f"{__name__}:Report")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: r\nstages:\n  distil: {uses: train}\n  table: {uses: report, needs: [distil]}\n")
    return make_plan(load_recipe(recipe), tmp_path / "runs")


def shown(table) -> str:
    file = io.StringIO()
    print_table(table, file)
    return file.getvalue()


def test_summary_shows_the_last_table_and_where_the_models_are(plan):
    out = plan.run_directory / "stages" / "table" / "out"
    out.mkdir(parents=True)
    (out / "table.txt").write_text("bits per byte: 0.97\n")
    summary = run_summary(plan)
    assert "bits per byte: 0.97" in summary
    assert f"  distil  {plan.run_directory}/stages/distil/out" in summary
    assert f"  table  {out}" in summary
    (out / "report.html").write_text("<title>0.97</title>")
    assert f"  table  {out}/report.html" in run_summary(plan), "what a browser shows"


def test_plan_has_one_row_a_stage_and_no_colour_codes_in_a_log(plan):
    lines = [line.split() for line in shown(plan_table(plan, {})).splitlines()]
    assert [line[:4] for line in lines[1:]] == [
        ["distil", "missing", "run", "missing"],
        ["table", "missing", "run", "missing"],
    ]


def test_status_of_a_stage_at_work_is_its_last_progress_line(plan):
    stage = plan.stage("distil")
    entry = Store(plan.runs / "store").entry(stage.uses, stage.key)
    attempt = publish.begin_attempt(entry, stage.ingredients)
    log = ["starting", f"{PROGRESS_PREFIX}distil: step 1", "chatter", f"{PROGRESS_PREFIX}distil: step 2", "chatter"]
    attempt.log.write_text("\n".join(log))
    with FileLock(entry.lock_path).acquire():
        status = run_status(make_plan(plan.recipe, plan.runs))
    assert (status["stages"][0]["state"], status["stages"][0]["detail"]) == ("running", "distil: step 2")
    assert "distil: step 2" in shown(status_table(status))


def test_a_chain_written_as_a_mapping_comes_from_the_file(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: r\nmodels: {student: {model: ./a, tokenizer: ./b}}\nstages:\n  align: {uses: align}\n  init:\n"
        "    uses: init\n    needs: [align]\n    input: {method: piece_weighted, weights: last, fallback: [mean]}\n"
    )
    rows = {
        line.split()[0]: line.split()[1:]
        for line in shown(sources_table(value_sources(load_recipe(recipe)))).splitlines()
    }
    assert rows["stages.init.input[0].weights"] == ["last", "recipe.yaml:8"]
    assert rows["stages.init.input[1].method"] == ["mean", "recipe.yaml:8"]
    assert rows["stages.init.other[0].method"] == ["piece_mean", "default"]
