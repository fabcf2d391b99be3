"""The recipes that are shipped: valid, followed to where their references lead offline, and as large as they say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from published_models import MODELS, write_config

from pipeline.keys import map_references
from pipeline.reading.launch_checks import check_recipe
from pipeline.reading.loading import load_recipe
from pipeline.recipe import Recipe
from stages.objectives import CrossEntropyOptions, LossEntry
from stages.references import HubReference, parse
from stages.stage import StageContext
from stages.training.backends.zero import Zero
from stages.training.config import TrainingConfig
from stages.training.memory import memory_report
from stages.training.teachers.teaching import Teaching

REPOSITORY = Path(__file__).parents[2]
RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))
BYTES_AND_CONTROL_TOKENS = 512


def references(recipe: Recipe) -> list[str]:
    found: list[str] = []

    def note(_: object, text: str) -> str:
        found.append(text)
        return text

    for spec in recipe.stages.values():
        map_references(spec.config, note)
    return found


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid_without_the_hub(path: Path) -> None:
    recipe = load_recipe(path)
    check_recipe(recipe)
    assert recipe.name == path.stem
    if path.stem != "reference":
        assert recipe.unused == ()
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert re.fullmatch(r"# [A-Z].*[.?]( .*)?", first), "its first line says what it is for: pipeline ls recipes"
    parsed = [parse(text, path.parent) for text in references(recipe)]
    assert parsed
    for reference in parsed:
        if not isinstance(reference, HubReference):
            reference.locate()


def test_the_ensemble_finds_what_the_transfer_has_made() -> None:
    transfer, ensemble = (
        load_recipe(REPOSITORY / "recipes" / f"{name}.yaml") for name in ("llama-to-qwen", "ensemble")
    )
    for stage in (
        "sources/teacher",
        "sources/student",
        "sources/tokenizer",
        "sources/train",
        "align",
        "init",
        "distill",
    ):
        assert ensemble.stages[stage].config == transfer.stages[stage].config


@pytest.mark.parametrize("name", ["openmath2-to-gemma-2", "other-family", "stochastok-post-training"])
def test_a_control_has_the_same_budget(name: str) -> None:
    recipe = load_recipe(REPOSITORY / "recipes" / f"{name}.yaml")
    arm = "stochastok" if name == "stochastok-post-training" else "distill"
    budget, control = (
        {option: getattr(recipe.stages[stage].config, option) for option in TrainingConfig.model_fields}
        for stage in (arm, "control")
    )
    assert control == budget
    assert recipe.stages["control"].inputs["documents"] == recipe.stages[arm].inputs["documents"]


SIZED: dict[str, tuple[str, dict[str, Any], str | None]] = {
    # 151,665 tokens of Qwen2.5, padded to a multiple of 64.
    "llama-to-qwen": ("meta-llama/Llama-3.2-3B-Instruct", {"vocab_size": 151680}, "meta-llama/Llama-3.2-3B-Instruct"),
    "ensemble": ("meta-llama/Llama-3.2-3B-Instruct", {"vocab_size": 151680}, "meta-llama/Llama-3.2-3B-Instruct"),
    "gemma-2-to-bytes": (
        "google/gemma-2-2b-it",
        {"vocab_size": BYTES_AND_CONTROL_TOKENS, "tie_word_embeddings": False},
        "google/gemma-2-2b-it",
    ),
    "openmath2-to-gemma-2": ("google/gemma-2-2b-it", {}, "nvidia/OpenMath2-Llama3.1-8B"),
    "vocabulary-extension": ("Qwen/Qwen2.5-1.5B", {"vocab_size": 159680}, "Qwen/Qwen2.5-1.5B"),
    "other-family": ("meta-llama/Llama-3.2-1B-Instruct", {}, None),  # the teacher's scores are in files
    "stochastok-post-training": ("HuggingFaceTB/SmolLM2-1.7B", {}, None),
}
"""Recipe -> the student as it trains, what the recipe changes in its configuration, and the teacher that is loaded."""


def test_every_recipe_for_gpus_is_sized() -> None:
    on_the_hub = {
        path.stem
        for path in RECIPES
        if any(isinstance(parse(text, path.parent), HubReference) for text in references(load_recipe(path)))
    }
    assert set(SIZED) == on_the_hub
    assert {name for student, _, teacher in SIZED.values() for name in (student, teacher) if name} == set(MODELS)


QUICK = {"other-family", "stochastok-post-training"}
"""Models small enough to be planned in a second."""


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SIZED]
)
def test_a_recipe_needs_the_memory_that_it_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = REPOSITORY / "recipes" / f"{name}.yaml"
    student, changes, teacher = SIZED[name]
    said = float(re.search(r"plans ([\d.]+) GiB", path.read_text(encoding="utf-8"))[1])
    spec = load_recipe(path).stages["stochastok" if name == "stochastok-post-training" else "distill"]
    work = tmp_path / "work"
    work.mkdir()
    ctx = StageContext(
        config=spec.config,
        inputs={"student": {"init": write_config(student, tmp_path / "student", **changes)}},
        work=work,
        out=tmp_path,
        resources=spec.resources.model_dump(mode="json"),
        world_size=spec.resources.world_size,
    )
    teachings = []
    if teacher is not None:
        teachings = [Teaching(write_config(teacher, tmp_path / "teacher"))]
    elif name == "other-family":
        teachings = [Teaching(tmp_path / "scores", dtype=None)]
    losses = getattr(spec.config, "losses", (LossEntry(cross_entropy=CrossEntropyOptions()),))
    monkeypatch.setattr(memory_report, "_available", lambda device, processes: 80 << 30)  # there is no GPU here
    memory_report.report_memory(ctx, spec.config, losses, teachings, torch.device("cuda"), Zero())
    plan = json.loads((work / memory_report.NAME).read_text())
    assert plan["total"]["device"] / (1 << 30) == pytest.approx(said, abs=0.06), plan
