"""``teacher: self``: the student as it was before training teaches, out of the one copy of its weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipeline.reading.loading import load_recipe
from stages.distill import Distill, DistillConfig
from stages.objectives import LossEntry
from stages.stage import StageContext
from stages.training.backends.zero import Zero
from stages.training.data.aligner import DocumentAligner
from stages.training.data.batch import Batch, collate
from stages.training.data.windows import Document
from stages.training.pairing import Models, load_models
from stages.training.teachers.teaching import Teaching, loaded_dtype

REPOSITORY = Path(__file__).parents[3]
SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on while the fox runs far away.",
    "Tokens are byte strings; two tokenizations of one text meet where their boundaries coincide.",
    "def add(left, right):\n    return left + right\n\nprint(add(12, 345))\n",
] * 3
LOSSES = [
    {"alm": {"gamma": 0.0, "temperature": 20.0}},
    {"same_vocabulary": {}},
    {"hidden_states": {"layers": [1, -1]}},
    "cross_entropy",
]
WAYS = {
    "adapter": {"adapter": {"rank": 4}},
    "adapter, frozen embeddings": {"adapter": {"rank": 4, "embeddings": "freeze"}},
    "embeddings alone": {"trainable": "embeddings"},
}


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def student(request, tiny_tokenizer_dirs, tiny_model_dir) -> Path:
    return tiny_model_dir(tiny_tokenizer_dirs[1], seed=2, tied=request.param)


@pytest.fixture(scope="module")
def documents(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("documents")
    with (directory / "documents.jsonl").open("w", encoding="utf-8") as file:
        for number, text in enumerate(SENTENCES):
            file.write(json.dumps({"id": f"d/{number}", "domain": "d", "weight": 1.0, "text": text}) + "\n")
    (directory / "manifest.json").write_text("{}")
    return directory


def _models(student: Path, tmp_path: Path, *, is_student: bool, **options) -> Models:
    config = DistillConfig(losses=LOSSES, steps=1, dtype="fp32", window_tokens=48, **options)
    ctx = StageContext(config=config, inputs={"student": {"s": student}}, work=tmp_path, out=tmp_path)
    entries = [LossEntry.model_validate(loss) for loss in LOSSES]
    teaching = Teaching(student, dtype="fp32", is_student=is_student)
    return load_models(ctx, config, entries, [teaching], torch.device("cpu"), Zero())


def _batch(student: Path) -> Batch:
    aligner = DocumentAligner(student, student, 48)
    return collate([w for n, text in enumerate(SENTENCES[:3]) for w in aligner(Document(f"d/{n}", text, 1.0), n, 0)])


@torch.no_grad()
def _learn(models: Models) -> None:
    for parameter in models.student.model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn_like(parameter))


def _assert_same_signals(left, right) -> None:
    torch.testing.assert_close(left.label_logp, right.label_logp)
    torch.testing.assert_close(left.boundary_logp, right.boundary_logp, equal_nan=True)
    torch.testing.assert_close(left.layers, right.layers)
    rows = slice(0, 20)
    torch.testing.assert_close(left.predictions.log_probs(rows), right.predictions.log_probs(rows))


@pytest.mark.parametrize("way", WAYS)
def test_it_scores_as_a_second_model_would_whatever_the_student_has_learned(student, tmp_path, way):
    batch = _batch(student)
    expected = _models(student, tmp_path, is_student=False, **WAYS[way]).teachers[0].score(batch)
    models = _models(student, tmp_path, is_student=True, **WAYS[way])
    _assert_same_signals(models.teachers[0].score(batch), expected)
    _learn(models)
    _assert_same_signals(models.teachers[0].score(batch), expected)


@pytest.mark.parametrize("way", WAYS)
def test_the_student_is_itself_again_after_a_lesson(student, tmp_path, way):
    batch = _batch(student)
    models = _models(student, tmp_path, is_student=True, **WAYS[way])
    _learn(models)
    names = {name: parameter.requires_grad for name, parameter in models.student.named_parameters()}
    before = models.student.score(batch.student).label_logp
    taught = models.teachers[0].score(batch).label_logp
    assert models.student.training
    assert {name: parameter.requires_grad for name, parameter in models.student.named_parameters()} == names
    assert torch.equal(models.student.score(batch.student).label_logp, before)
    assert (taught - before).abs().max() > 0.01


@pytest.mark.parametrize("way", WAYS)
def test_only_trained_embeddings_are_in_memory_twice(student, tmp_path, way):
    models = _models(student, tmp_path, is_student=True, **WAYS[way])
    (teacher,) = models.teachers
    modules = [models.student, teacher.scoring]
    modules += [teacher.vocabulary.embedding, teacher.vocabulary.head] if teacher.vocabulary else []
    held = {p.data_ptr(): p.numel() for module in modules for p in module.parameters()}
    of_student = {p.data_ptr(): p.numel() for p in models.student.parameters()}
    model = models.student.model
    vocabulary = {p.data_ptr(): p.numel() for p in (model.lm_head.weight, model.model.embed_tokens.weight)}
    second = 0 if way == "adapter, frozen embeddings" else sum(vocabulary.values())
    assert sum(held.values()) == sum(of_student.values()) + second


def _distill(student: Path, documents: Path, root: Path, *, context=None, **options) -> list[list[float]]:
    work, out = root / "work", root / "out"
    work.mkdir(parents=True)
    out.mkdir()
    config = DistillConfig(
        losses=LOSSES, steps=4, batch_windows=4, window_tokens=48, log_every=1, learning_rate=3e-3, dtype="fp32",
        data_workers=0, **options,
    )  # fmt: skip
    inputs = {"student": student, "documents": documents} | ({} if "teacher" in options else {"teacher": student})
    named = {name: {name: path} for name, path in inputs.items()}
    Distill().run(StageContext(config=config, inputs=named, work=work, out=out, **(context or {})))
    points = [json.loads(line) for line in (out / "training.jsonl").read_text().splitlines()]
    return [[point[name] for point in points] for name in ("loss", "alm", "same_vocabulary", "gradient_norm")]


@pytest.mark.parametrize("way", ["adapter", "embeddings alone"])
def test_training_against_oneself_is_training_against_a_second_copy(student, documents, tmp_path, way):
    ours = _distill(student, documents, tmp_path / "self", teacher="self", **WAYS[way])
    theirs = _distill(student, documents, tmp_path / "second", **WAYS[way])
    assert ours[1][-1] > 1e-4  # cross-entropy has led the student away from what it was
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-7)


def test_a_split_of_the_teacher_that_the_student_is_has_no_effect_and_that_is_said(student, documents, tmp_path):
    said: list[str] = []
    context = {"resources": {"zero": {"teacher": 3}}, "progress": said.append}
    split = _distill(student, documents, tmp_path / "split", teacher="self", context=context, **WAYS["adapter"])
    whole = _distill(student, documents, tmp_path / "whole", teacher="self", **WAYS["adapter"])
    assert split == whole
    notes = [line for line in said if "zero.teacher: 3 has no effect, because no teacher is loaded" in line]
    assert len(notes) == 1
    record = json.loads((tmp_path / "split" / "out" / "memory_plan.json").read_text())
    assert [f"note: {each}" for each in record["without_effect"]] == notes
    assert not (tmp_path / "split" / "work" / "deepspeed.json").exists()  # nor did DeepSpeed start for nothing


@pytest.mark.parametrize(
    ("teachings", "dtype"),
    [
        ([], None),
        ([Teaching(Path("a"), dtype="bf16", is_student=True)], None),
        ([Teaching(Path("a"), dtype=None)], None),
        ([Teaching(Path("a"), dtype=None), Teaching(Path("b"), dtype="fp32")], "fp32"),
        ([Teaching(Path("a"), dtype="bf16", is_student=True), Teaching(Path("b"), dtype="int8")], "int8"),
    ],
)
def test_the_type_of_loaded_teachers_is_that_of_models_beside_the_student(teachings, dtype):
    assert loaded_dtype(teachings) == dtype


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"losses": ["alm"]}, "add an adapter, or use trainable: embeddings"),
        ({"losses": ["cross_entropy"], "adapter": {}}, "teacher: self has no effect: none of the losses needs"),
        ({"losses": ["alm"], "adapter": {}, "teacher_dtype": "fp32"}, "teacher_dtype has no effect: the student"),
    ],
)
def test_what_cannot_teach_itself_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DistillConfig(steps=1, teacher="self", **options)


def test_a_recipe_needs_no_teacher_then(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: r\n"
        "models: {student: {model: ., tokenizer: .}}\n"
        "data: {train: [{path: text.txt}]}\n"
        "stages:\n"
        "  align: {uses: align}\n"
        "  init: {uses: init, needs: [align]}\n"
        "  distill: {uses: distill, needs: [init], losses: [alm], steps: 1, teacher: self, adapter: {rank: 8}}\n"
    )
    stages = load_recipe(recipe).stages
    assert set(stages["distill"].inputs) == {"student", "documents"}
    assert "sources/teacher" not in stages
