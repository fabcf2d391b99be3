"""The teacher's scores through the command line: two processes make them, and distillation needs no teacher."""

from __future__ import annotations

import json

import pytest
import yaml
from e2e_helpers import quickstart_until_distill, stages_that_ran


@pytest.mark.slow
def test_scores_that_two_processes_made_take_the_teachers_place(prepared):
    workplace = prepared
    workplace.keep("models.", "stages.distill.")
    path = quickstart_until_distill(
        workplace.directory, resources={"score": {"launcher": "torchrun", "processes": 2, "threads": 1}}
    )
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    recipe["stages"]["score"] = {"uses": "score", "window_tokens": 512, "shard_bytes": 20_000}
    recipe["stages"]["distill"]["needs"].append("score")
    recipe["stages"]["distill"]["losses"] = ["alm", "cross_entropy"]
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    code, output = workplace.run("run", path)
    assert code == 0, output
    stages = workplace.directory / "runs" / "quickstart" / "stages"
    manifest = json.loads((stages / "score" / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert len(manifest["shards"]) > 2
    ingredients = json.loads((stages / "distill" / "ingredients.json").read_text(encoding="utf-8"))
    assert "teacher" in ingredients["inputs"]

    # Another student with the same scores: the teacher's work is not done again.
    code, output = workplace.run("run", path, stages__distill__seed=5)
    assert code == 0, output
    assert stages_that_ran(output) == {"distill"}
