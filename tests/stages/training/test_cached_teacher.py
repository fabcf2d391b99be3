"""Training on a teacher's scores from disk is training with the teacher itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from scored_world import CONVERSATION, TEXTS, distill, score, with_prefix, write_documents
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment.byte_view import ByteView
from losses.chunks import chunk_end_mask
from stages.distill import DistillConfig
from stages.scoring.store import ScoreStore
from stages.stage import StageError
from stages.training.data.aligner import DocumentAligner
from stages.training.data.batch import collate
from stages.training.data.scored_text import ScoredDocuments
from stages.training.data.windows import Document
from stages.training.models import Reads
from stages.training.teachers.cached_teacher import CachedTeacher

ALM = {"alm": {"gamma": 0.0, "temperature": 20.0}}


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer_dirs, tiny_model_dir) -> dict[str, Path]:
    """A teacher whose tokenizer puts a token before every text, its scores, and two students."""
    root = tmp_path_factory.mktemp("cached")
    teacher = tiny_model_dir(with_prefix(tiny_tokenizer_dirs[0], root / "tokenizer"), seed=1)
    documents = write_documents(root / "documents")
    return {
        "teacher": teacher,
        "documents": documents,
        "scores": score(teacher, documents, root / "score", top_k=8, hidden_states=[1, -1]),
        "student": tiny_model_dir(tiny_tokenizer_dirs[1], seed=2),
        "alike": tiny_model_dir(root / "tokenizer", seed=3),
    }


@pytest.mark.parametrize(
    ("student", "losses"),
    [
        ("student", [ALM, "dpca", "cross_entropy"]),
        ("student", [{"hidden_states": {"layers": [1, -1]}}]),
        ("student", ["bpm"]),
        ("alike", ["same_vocabulary"]),
    ],
    ids=lambda value: str(value)[:24],
)
def test_the_losses_are_those_of_the_teacher_itself(world, tmp_path, student, losses):
    signal = {"teacher_signal": "top_k", "teacher_top_k": 8} if losses in (["bpm"], ["same_vocabulary"]) else {}
    inputs = {"student": world[student], "documents": world["documents"]}
    expected, weights = distill(tmp_path / "online", inputs | {"teacher": world["teacher"]}, losses=losses, **signal)
    found, trained = distill(tmp_path / "cached", inputs | {"teacher": world["scores"]}, losses=losses)
    # A divergence of 1e-4 is a difference of numbers near 1.
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)
    for name in weights:
        torch.testing.assert_close(trained[name], weights[name], atol=2e-5, rtol=1e-4)


def test_conversations_and_packed_rows(tmp_path, tiny_chat_dirs, tiny_model_dir):
    teacher, student = (tiny_model_dir(each, seed=seed) for seed, each in enumerate(tiny_chat_dirs))
    documents = write_documents(tmp_path / "documents", [CONVERSATION, *TEXTS, CONVERSATION[:1] + CONVERSATION])
    scores = score(teacher, documents, tmp_path / "score")
    inputs = {"student": student, "documents": documents}
    options = {"losses": [ALM], "train_on": "all", "batch_windows": 7, "window_tokens": 256}
    expected, _ = distill(tmp_path / "online", inputs | {"teacher": teacher}, **options)
    found, _ = distill(tmp_path / "cached", inputs | {"teacher": scores}, **options)
    packed, _ = distill(tmp_path / "packed", inputs | {"teacher": scores}, **options, packing=True)
    assert found == pytest.approx(expected, rel=1e-5)
    assert packed == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("prefix", [True, False])
def test_later_windows_of_a_text_have_the_scores_of_the_whole_text(world, tmp_path, tiny_tokenizer_dirs, prefix):
    teacher = world["teacher"]
    if not prefix:
        teacher = shutil.copytree(teacher, tmp_path / "teacher")
        AutoTokenizer.from_pretrained(tiny_tokenizer_dirs[0]).save_pretrained(teacher)
    text = " ".join(TEXTS)
    documents = write_documents(tmp_path / "documents", [text])
    store = ScoreStore(score(teacher, documents, tmp_path / "score", window_tokens=512, top_k=3))
    aligner = DocumentAligner(teacher, world["student"], 48, scores=ScoredDocuments(store))
    windows = aligner(Document("d/0", text, 1.0), 0, 0)
    batch = collate(windows)
    signals = CachedTeacher(store, Reads(label=True, boundary=True), 3).score(batch)
    view = ByteView.from_tokenizer(teacher)
    ids = [*view.prefix_ids, *view.encode(text).ids.tolist()]
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    with torch.no_grad():
        logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    assert len(windows) > 4
    place = len(view.prefix_ids)
    predictions = signals.predictions.ids.view(*batch.teacher.ids.shape, 3)
    for row, window in enumerate(windows):
        for token in range(len(view.prefix_ids), len(window.teacher.ids)):
            assert ids[place] == window.teacher.ids[token]
            if batch.teacher.scored[row, token]:
                found = float(signals.label_logp[row, token])
                assert found == pytest.approx(float(logp[place - 1, ids[place]]), abs=1e-5)
                assert predictions[row, token - 1].tolist() == logp[place - 1].topk(3).indices.tolist()
            place += 1
    ends = chunk_end_mask(batch.teacher.chunk, batch.num_chunks)
    assert torch.equal(signals.boundary_logp.isnan(), ~ends)


def test_a_control_arm_sees_the_same_windows_with_a_teacher_its_scores_and_a_loss_that_needs_none(world, tmp_path):
    inputs = {"student": world["student"], "documents": world["documents"]}
    curves = [
        distill(tmp_path / name, inputs | {"teacher": world[name]}, losses=["cross_entropy"], window_tokens=32)[0]
        for name in ("teacher", "scores")
    ]
    assert curves[0] == curves[1]
    # Without any teacher windows end at the student's own tokens.
    assert distill(tmp_path / "alone", inputs, losses=["cross_entropy"], window_tokens=32)[0] != curves[0]


def test_worker_processes_find_the_scores_too(world, tmp_path):
    inputs = {"student": world["student"], "documents": world["documents"], "teacher": world["scores"]}
    curves = [distill(tmp_path / str(n), inputs, losses=["dpca"], data_workers=n, steps=2)[0] for n in (0, 1)]
    assert curves[0] == curves[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"losses": ["strict"]}, "strict needs the teacher's whole distribution, which what was scored does not keep"),
        ({"losses": ["dskd"]}, "dskd needs the teacher's own weights, which what was scored does not keep"),
        ({"losses": [{"xtoken": {"variant": "h_kl"}}]}, "xtoken with these options needs the teacher's whole"),
        ({"losses": [{"hidden_states": {"layers": [0]}}]}, "states of layer 0, but the scores hold those of 1, 2: add"),
        ({"losses": ["bpm"], "teacher_signal": "top_k", "teacher_top_k": 9}, "but the scores hold the 8 most probable"),
        ({"losses": ["alm"], "teacher_dtype": "bf16"}, "no teacher is loaded where what was scored keeps its scores"),
    ],
)
def test_what_the_scores_do_not_hold_is_refused(world, tmp_path, options, message):
    inputs = {"student": world["student"], "documents": world["documents"], "teacher": world["scores"]}
    with pytest.raises(StageError, match=message):
        distill(tmp_path, inputs, **options)
    assert not (tmp_path / "work" / "ckpt").exists()


def test_other_text_another_tokenizer_and_damage_are_refused(world, tmp_path, tiny_tokenizer_dirs):
    inputs = {"student": world["student"], "documents": world["documents"], "teacher": world["scores"]}
    changed = write_documents(tmp_path / "documents", [*TEXTS[:3], TEXTS[3] + "!"])
    with pytest.raises(StageError, match="document d/3 has no scores: its text is not one that was scored"):
        distill(tmp_path / "text", inputs | {"documents": changed}, losses=["alm"], batch_windows=1)

    scores = shutil.copytree(world["scores"], tmp_path / "scores")
    AutoTokenizer.from_pretrained(tiny_tokenizer_dirs[1]).save_pretrained(scores / "tokenizer")
    with pytest.raises(StageError, match="tokenizer is not the tokenizer with which the scores beside it were made"):
        distill(tmp_path / "tokenizer", inputs | {"teacher": scores}, losses=["alm"])

    store = ScoreStore(world["scores"])
    encoding = ByteView.from_tokenizer(tiny_tokenizer_dirs[1]).encode(TEXTS[0])
    with pytest.raises(StageError, match=r"d/0: the scores are those of \d+ tokens, but the teacher's tokenizer cuts"):
        ScoredDocuments(store).text(Document("d/0", TEXTS[0], 1.0), encoding)

    scores = shutil.copytree(world["scores"], tmp_path / "damaged")
    file = next(scores.glob("shards/*/boundary_logp.npy"))
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(StageError, match=r"boundary_logp\.npy is not what was written"):
        distill(tmp_path / "damage", inputs | {"teacher": scores}, losses=["alm"])


def test_a_conversation_that_was_not_scored_to_the_end_of_its_window(tmp_path, tiny_chat_dirs, tiny_model_dir):
    teacher, student = (tiny_model_dir(each, seed=seed) for seed, each in enumerate(tiny_chat_dirs))
    documents = write_documents(tmp_path / "documents", [CONVERSATION])
    inputs = {"student": student, "documents": documents}
    options = {"losses": ["dpca"], "batch_windows": 1, "train_on": "all"}
    short = score(teacher, documents, tmp_path / "score", window_tokens=40)
    with pytest.raises(StageError, match="the first 40 tokens of the conversation are scored, but a window"):
        distill(tmp_path / "long", inputs | {"teacher": short}, **options)
    distill(tmp_path / "short", inputs | {"teacher": short}, **options, window_tokens=40)
    # Other markup around the same contents is another text to the teacher.
    tokenizer = AutoTokenizer.from_pretrained(short / "tokenizer")
    tokenizer.chat_template = tokenizer.chat_template.replace("\n\n", "\n")
    tokenizer.save_pretrained(short / "tokenizer")
    with pytest.raises(StageError, match="as the teacher's template renders it, is not one that was scored"):
        distill(tmp_path / "template", inputs | {"teacher": short}, **options)


@pytest.mark.slow
def test_two_processes_read_the_same_scores(world, tmp_path):
    import process_world

    inputs = {"student": world["student"], "documents": world["documents"], "teacher": world["scores"]}
    options = {"losses": [ALM, "bpm"], "steps": 4, "batch_windows": 4, "window_tokens": 128, "learning_rate": 3e-3}
    expected, _ = distill(tmp_path / "one", inputs, **options)
    config = DistillConfig(dtype="fp32", log_every=1, **options)
    job = process_world.write_job(tmp_path / "two", inputs, config, {"zero": {"student": 3}})
    done = process_world.run(job, 2)
    assert done.codes == (0, 0), done.text[-3000:]
    lines = (tmp_path / "two" / "out" / "training.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == pytest.approx(expected, rel=1e-5)
