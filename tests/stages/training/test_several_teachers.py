"""Several teachers with tokenizers of their own: who teaches what, and that their losses add up."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from scored_world import TEXTS, context, score

from stages.distill import Distill, DistillConfig
from stages.scoring.store import text_digest
from stages.stage import StageError
from stages.training.data.documents import TrainingDocuments
from stages.training.teachers.teaching import aligner_of, teachings_of

ALM = {"alm": {"gamma": 0.0, "temperature": 20.0}}
LOSSES = [ALM, "dpca", "cross_entropy"]
BOTH = [{"name": "teacher"}, {"name": "other"}]


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer_dirs, tiny_model_dir) -> dict[str, Path]:
    """Two teachers of unlike tokenizers, the scores of both, a student, and documents of two routes."""
    root = tmp_path_factory.mktemp("several")
    documents = root / "documents"
    documents.mkdir()
    records = [
        {"id": f"d/{n}", "domain": "d", "weight": 1.0, "text": text, "route": ("prose", "code")[n % 2]}
        for n, text in enumerate(TEXTS)
    ]
    (documents / "documents.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (documents / "manifest.json").write_text(json.dumps({"documents": len(records)}))
    made = {
        "documents": documents,
        "teacher": tiny_model_dir(tiny_tokenizer_dirs[0], seed=1),
        "other": tiny_model_dir(tiny_tokenizer_dirs[1], seed=5),
        "student": tiny_model_dir(tiny_tokenizer_dirs[1], seed=2),
    }
    return made | {f"{name}_scores": score(made[name], documents, root / name) for name in ("teacher", "other")}


def _context(world, root: Path, *, others=("other",), main: str = "teacher", **options):
    settings = {"steps": 3, "batch_windows": 6, "window_tokens": 128, "learning_rate": 3e-3, "log_every": 1}
    settings |= {"data_workers": 0, "dtype": "fp32", "losses": LOSSES}
    inputs = {name: world[name] for name in ("student", "documents")}
    if main in world:
        inputs["teacher"] = world[main]
    ctx = context(root, DistillConfig(**settings | options), inputs)
    ctx.inputs["teachers"] = {name.removesuffix("_scores"): world[name] for name in others}
    return ctx


def _train(world, root: Path, **options) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    ctx = _context(world, root, **options)
    Distill().run(ctx)
    curve = [json.loads(line) for line in (ctx.out / "training.jsonl").read_text().splitlines()]
    return curve, load_file(ctx.out / "model.safetensors")


def test_the_first_loss_is_the_weighted_sum_of_what_each_teacher_alone_would_give(world, tmp_path):
    weights = {"teacher": 1.0, "other": 0.25}
    entries = [{"name": name, "weight": weight} for name, weight in weights.items()]
    # All windows of both teachers in one step; alone, each has all of its own.
    both, _ = _train(world, tmp_path / "both", teachers=entries, batch_windows=2 * len(TEXTS) - 2, steps=1)
    alone = {
        name: _train(world, tmp_path / name, main=name, batch_windows=len(TEXTS) - 1, steps=1)[0][0] for name in weights
    }
    for name, weight in weights.items():
        for loss in ("alm", "dpca"):
            assert both[0][f"{name}/{loss}"] == pytest.approx(alone[name][loss], rel=1e-5), (name, loss)
            assert both[0][f"{name}/{loss}.units"] == alone[name][f"{loss}.units"]
            assert both[0][f"{name}/{loss}.weight"] == weight
    parts = sum(weights[name] * alone[name][loss] for name in weights for loss in ("alm", "dpca"))
    assert both[0]["loss"] == pytest.approx(parts + both[0]["cross_entropy"], rel=1e-5)


def test_one_teacher_by_name_is_the_one_teacher(world, tmp_path):
    single, weights = _train(world, tmp_path / "single", others=(), batch_windows=5)
    named, found = _train(world, tmp_path / "named", others=(), teachers=["teacher"], batch_windows=5)
    assert [point["loss"] for point in named] == [point["loss"] for point in single]
    assert all(torch.equal(found[name], weights[name]) for name in weights)


@pytest.mark.parametrize("packing", [False, True])
def test_scores_in_the_place_of_models_and_other_layouts_change_nothing(world, tmp_path, packing):
    online, weights = _train(world, tmp_path / "online", teachers=BOTH)
    options = {"teachers": BOTH, "packing": packing, "micro_batch_windows": 1}
    cached, found = _train(world, tmp_path / "cached", main="teacher_scores", others=("other_scores",), **options)
    assert [point["loss"] for point in cached] == pytest.approx([point["loss"] for point in online], rel=1e-5)
    for name in weights:
        torch.testing.assert_close(found[name], weights[name], atol=2e-5, rtol=1e-4)


def _teachers_of(ctx) -> dict[str, set[str]]:
    """Document -> the teachers that its windows are for."""
    aligner = aligner_of(ctx)
    names = [entry.name for entry in ctx.config.teachers]
    made = ((document, aligner.make(document, 0, 0)) for document in TrainingDocuments(ctx.input("documents")))
    return {document.id: {names[window.teacher_number] for window in each.windows} for document, each in made}


def test_a_route_decides_who_teaches(world, tmp_path):
    routed = [{"name": "teacher", "teaches": ["prose"]}, {"name": "other", "teaches": ["code", "prose"]}]
    found = _teachers_of(_context(world, tmp_path, teachers=routed))
    expected = [{"teacher", "other"}, {"other"}] * 3
    expected[4] = set()  # a text of one byte has nothing to learn
    assert list(found.values()) == expected


def test_the_best_teacher_is_the_one_with_the_fewest_nats_a_byte(world, tmp_path):
    entries = [{"name": "teacher"}, {"name": "other"}]
    ctx = _context(
        world, tmp_path, main="teacher_scores", others=("other_scores",), teachers=entries, teacher_choice="best"
    )
    found = _teachers_of(ctx)
    scores = {each.name: each.scores for each in teachings_of(ctx)}
    documents = TrainingDocuments(ctx.input("documents"))
    for document in documents:
        if len(document.text) < 2:
            continue
        nats = {}
        for name, store in scores.items():
            span = store.find(text_digest(document.text))
            logp = store.slice("label_logp", span)[1:]  # the first token has no score, nor its bytes a place in the sum
            nats[name] = -float(logp.sum()) / int(store.slice("byte_lengths", span)[1:].sum())
        assert found[document.id] == {min(nats, key=nats.get)}, (document.id, nats)
    assert len(Counter(map(tuple, found.values()))) > 1


def test_the_account_speaks_of_each_teacher(world, tmp_path):
    ctx = _context(world, tmp_path, teachers=BOTH)
    Distill().run(ctx)
    account = json.loads((ctx.out / "training_data.json").read_text())
    size = sum(len(text.encode()) for text in TEXTS)
    assert account["documents"] == len(TEXTS)
    assert {name: each["bytes"] for name, each in account["teachers"].items()} == {"teacher": size, "other": size}


def test_balancing_keeps_the_weight_of_a_teacher_that_has_nothing_to_teach_in_a_step(world, tmp_path):
    """One document a step: every step has one teacher, and a weight is that of the gradient that was measured last."""
    routed = [{"name": "teacher", "teaches": ["prose"]}, {"name": "other", "teaches": ["code"]}]
    options = {"losses": [ALM, "cross_entropy"], "combine": "gradmag", "batch_windows": 1, "steps": 8}
    points, _ = _train(world, tmp_path, teachers=routed, **options)
    names = ("teacher/alm", "other/alm", "cross_entropy")
    norms: dict[str, float] = {}
    for point in points:
        own = {name: point[f"{name}.gradient_norm"] for name in names if point[f"{name}.units"]}
        assert len(own) == 2
        # Weights are those of the step before; where a loss is met for the first time, it is measured before the step.
        known = norms if own.keys() <= norms.keys() else norms | own
        expected = {name: 1 / (norm + 1e-8) for name, norm in known.items()}
        for name in names:
            share = expected.get(name, 0) / sum(expected.values())
            assert point[f"{name}.weight"] == pytest.approx(share, rel=1e-5), (point["step"], name)
        norms |= own
    taught = ["teacher/alm.units" if point["teacher/alm.units"] else "other/alm.units" for point in points]
    assert any(left != right for left, right in pairwise(taught))


def test_a_route_that_nobody_teaches_is_refused(world, tmp_path):
    entries = [{"name": "teacher", "teaches": ["prose"]}, {"name": "other", "teaches": ["math"]}]
    with pytest.raises(StageError, match=r"the route 'code', which no teacher teaches: teacher teaches"):
        Distill().run(_context(world, tmp_path, teachers=entries))


def test_choosing_the_best_needs_scores(world, tmp_path):
    ctx = _context(world, tmp_path, teachers=BOTH, teacher_choice="best")
    with pytest.raises(StageError, match="teacher is a model: put a score stage in its place"):
        Distill().run(ctx)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teachers": ["a", "a"]}, "teachers names a twice"),
        ({"teacher_choice": "best"}, "teacher_choice has no effect without teachers"),
        ({"teachers": ["a"], "losses": ["cross_entropy"]}, "none of the losses needs a teacher"),
        ({"teachers": ["a"], "teacher": "ema"}, "teacher is for one teacher"),
        ({"teachers": [{"name": "a", "weight": 0}]}, "greater than 0"),
        (
            {"teachers": [{"name": "a", "weight": 2}, "b"], "losses": [ALM, "cross_entropy"], "combine": "gradmag"},
            "combine: gradmag sets the weights; remove that of a under teachers",
        ),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        DistillConfig(**{"losses": [ALM], "steps": 1} | options)
