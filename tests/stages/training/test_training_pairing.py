"""What is refused before the first step: options, teacher signals, projectors, models that do not fit each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.distill import Distill, DistillConfig
from stages.objectives.base import schedule_factor
from stages.objectives.capabilities import CAPABILITIES, GIVES, usable_with
from stages.stage import StageContext, StageError
from stages.training.backends.zero import Zero
from stages.training.data.aligner import DocumentAligner
from stages.training.data.batch import collate
from stages.training.data.windows import Document
from stages.training.pairing import load_models
from stages.training.teachers.teaching import Teaching


@pytest.mark.parametrize("signal", ["scores", "top_k"])
@pytest.mark.parametrize("each", CAPABILITIES, ids=lambda each: each.objective)
def test_an_objective_is_refused_exactly_where_the_table_says_that_the_signal_is_not_enough(each, signal):
    options = {"steps": 1, "losses": [each.objective], "teacher_signal": signal}
    options |= {"on_policy": {}} if each.on_policy else {}
    if each.needs in GIVES[signal]:
        DistillConfig(**options)
        return
    with pytest.raises(ValueError, match=f"{each.objective} needs the teacher's") as refusal:
        DistillConfig(**options)
    for useful in usable_with(GIVES[signal]):
        assert useful in str(refusal.value)


def test_options_may_need_more_than_the_table_says():
    losses = [{"xtoken": {"variant": "h_kl"}}]
    with pytest.raises(ValueError, match="xtoken with these options needs the teacher's whole distribution"):
        DistillConfig(steps=1, losses=losses, teacher_signal="top_k")


def test_two_objectives_that_train_a_projection_are_refused():
    losses = [{"dskd": {}}, {"hidden_states": {"projection": True}}]
    with pytest.raises(ValueError, match="dskd and hidden_states each train a projection"):
        DistillConfig(steps=1, losses=losses)


@pytest.mark.parametrize(
    ("layers", "reaches"),
    [
        ([-1], True),
        ("last", True),
        ([[1, -1]], True),
        ([1], False),
        ([[-1, 1]], False),
        ([1, -1], False),
        ("all", False),
    ],
)
def test_balancing_needs_gradients_at_the_last_hidden_state(layers, reaches):
    options = {"losses": [{"hidden_states": {"layers": layers}}, "cross_entropy"], "combine": "gradmag"}
    if reaches:
        DistillConfig(steps=1, **options)
        return
    with pytest.raises(ValueError, match="which hidden_states leaves alone"):
        DistillConfig(steps=1, **options)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1]),
        ("linear", [0.25, 0.5, 0.75, 1]),
        ("cosine", [1, 0.853553, 0.5, 0.146447]),
        ("reverse_cosine", [0.146447, 0.5, 0.853553, 1]),
    ],
)
def test_weights_move_as_scheduled(schedule, expected):
    assert [schedule_factor(schedule, step, 4) for step in range(4)] == pytest.approx(expected, abs=1e-6)


def _run(teacher: Path, student: Path, root: Path, **options) -> None:
    documents = root / "documents"
    documents.mkdir(parents=True)
    record = {"id": "d/0", "domain": "d", "weight": 1.0, "text": "The quick brown fox jumps over the lazy dog. " * 9}
    (documents / "documents.jsonl").write_text(json.dumps(record) + "\n")
    (documents / "manifest.json").write_text("{}")
    inputs = {"teacher": teacher, "student": student, "documents": documents}
    for name in ("work", "out"):
        (root / name).mkdir()
    config = DistillConfig(**({"losses": ["alm"], "steps": 1, "batch_windows": 1, "window_tokens": 32} | options))
    Distill().run(
        StageContext(
            config=config,
            inputs={name: {name: path} for name, path in inputs.items()},
            work=root / "work",
            out=root / "out",
        )
    )


def test_a_tokenizer_with_more_ids_than_its_model_has_rows(tiny_model_dir, tiny_tokenizer_dirs, tmp_path):
    first, second = tiny_tokenizer_dirs
    teacher = tiny_model_dir(first)
    AutoTokenizer.from_pretrained(second).save_pretrained(teacher)
    with pytest.raises(StageError, match=r"the teacher: the tokenizer has ids up to \d+, the model has only \d+"):
        _run(teacher, tiny_model_dir(second), tmp_path)


@pytest.mark.parametrize("short", ["teacher", "student"])
def test_windows_longer_than_a_models_context(tiny_model_dir, tiny_tokenizer_dirs, tmp_path, short):
    models = dict(zip(("teacher", "student"), map(tiny_model_dir, tiny_tokenizer_dirs), strict=True))
    config = models[short] / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 48}))
    with pytest.raises(StageError, match=f"window_tokens is 64, but the {short} reads at most 48 tokens; lower it"):
        _run(models["teacher"], models["student"], tmp_path, losses=["strict"], window_tokens=64)


def test_more_top_tokens_than_the_teacher_has(tiny_model_dir, tiny_tokenizer_dirs, tmp_path):
    teacher, student = (tiny_model_dir(directory) for directory in tiny_tokenizer_dirs)
    with pytest.raises(StageError, match=r"teacher_top_k is 9,999, but the teacher has \d+ tokens"):
        _run(teacher, student, tmp_path, losses=["bpm"], teacher_signal="top_k", teacher_top_k=9999)


def test_a_teacher_that_gives_no_distribution(tiny_model_dir, tiny_tokenizer_dirs, tmp_path):
    teacher = tiny_model_dir(tiny_tokenizer_dirs[0])
    model = AutoModelForCausalLM.from_pretrained(teacher)
    model.model.norm.weight.data[3] = float("nan")
    model.save_pretrained(teacher)
    with pytest.raises(StageError, match="the logits of the teacher are not finite"):
        _run(teacher, tiny_model_dir(tiny_tokenizer_dirs[1]), tmp_path)


def test_one_vocabulary_is_asked_for_where_it_is_needed(tiny_model_dir, tiny_tokenizer_dirs, tmp_path):
    teacher, student = (tiny_model_dir(directory) for directory in tiny_tokenizer_dirs)
    with pytest.raises(StageError, match="same_vocabulary"):
        _run(teacher, student, tmp_path, losses=["same_vocabulary"])


@pytest.mark.parametrize(
    ("losses", "top_k", "predictions", "states"),
    [
        (["alm", "dpca", "cross_entropy"], None, False, False),
        (["alm", "dpca", "cross_entropy"], 4, False, False),
        (["alm", "bpm"], 4, True, False),
        (["alm", "bpm"], None, True, True),
    ],
)
def test_a_step_holds_no_more_of_the_teacher_than_objectives_read(
    tiny_tokenizer_dirs, tiny_model_dir, tmp_path, losses, top_k, predictions, states
):
    # It holds it for all its micro-batches at once, so hidden states that nobody reads would fill the memory.
    teacher, student = (tiny_model_dir(directory, seed=seed) for seed, directory in enumerate(tiny_tokenizer_dirs))
    config = DistillConfig(losses=losses, steps=1)
    ctx = StageContext(config=config, inputs={"student": {"s": student}}, work=tmp_path, out=tmp_path)
    models = load_models(ctx, config, config.losses, [Teaching(teacher, top_k)], torch.device("cpu"), Zero())
    document = Document("d", "The quick brown fox jumps over the lazy dog.", 1.0)
    batch = collate(DocumentAligner(teacher, student, 32)(document, 0, 0))
    signals = models.teachers[0].score(batch)
    assert signals.label_logp is not None
    assert (signals.predictions is not None, signals.hidden is not None) == (predictions, states)
    if predictions:
        known = torch.isfinite(signals.predictions.log_probs(slice(None))).sum(dim=1)
        assert set(known.tolist()) == {top_k or signals.predictions.vocab_size}


def test_objectives_see_as_many_top_tokens_as_the_recipe_says(tiny_tokenizer_dirs, tiny_model_dir, tmp_path):
    teacher, student = (tiny_model_dir(directory, seed=seed) for seed, directory in enumerate(tiny_tokenizer_dirs))
    seen = {}
    for top_k in (2, 200):
        root = tmp_path / str(top_k)
        _run(teacher, student, root, losses=["bpm"], teacher_signal="top_k", teacher_top_k=top_k, log_every=1)
        seen[top_k] = json.loads((root / "out" / "training.jsonl").read_text())["loss"]
    assert seen[2] != pytest.approx(seen[200], rel=1e-3)
