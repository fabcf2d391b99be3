"""What ``score`` writes is what the model says, in whatever pieces, batches and processes it was computed."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scored_world import CONVERSATION, TEXTS, context, score, with_prefix, write_documents
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment.byte_view import ByteView
from stages.artifacts import ArtifactError, ScoresArtifact
from stages.score import Score, ScoreConfig
from stages.scoring.store import ScoreStore, ShardWriter, text_digest
from stages.scoring.teacher_text import TeacherText, batches, passes_of
from stages.stage import StageError, StageInterrupted

LONG = " ".join(TEXTS) * 3


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, tiny_tokenizer_dirs, tiny_model_dir) -> Path:
    """A model whose tokenizer puts a token before every text."""
    return tiny_model_dir(with_prefix(tiny_tokenizer_dirs[0], tmp_path_factory.mktemp("with-prefix")), seed=1)


def directory_bytes(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@functools.cache
def load(teacher: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)


def log_probs(teacher: Path, ids: list[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """What the model itself says: [T, V], and its hidden states."""
    with torch.no_grad():
        output = load(teacher)(torch.tensor([ids]), output_hidden_states=True)
    return output.logits[0].log_softmax(-1), [states[0] for states in output.hidden_states]


def test_every_number_is_the_models_own(teacher, tmp_path):
    documents = write_documents(tmp_path / "documents")
    options = {"top_k": 5, "hidden_states": [0, -1], "batch_tokens": 200, "shard_bytes": 150}
    store = ScoreStore(score(teacher, documents, tmp_path / "score", **options))
    view = ByteView.from_tokenizer(teacher)
    boundary = torch.from_numpy(view.boundary_mask())
    assert len(store.manifest.shards) > 2
    for text in TEXTS:
        span = store.find(text_digest(text))
        ids = [*view.prefix_ids, *view.encode(text).ids.tolist()]
        logp, hidden = log_probs(teacher, ids)
        column = {name: store.slice(name, span) for name in ("label_logp", "boundary_logp", "tail_logp", "entropy")}
        assert store.slice("byte_lengths", span).tolist() == [len(view.token_bytes(token) or b"") for token in ids]
        assert np.isnan(column["label_logp"][0])
        np.testing.assert_allclose(column["label_logp"][1:], logp[range(len(ids) - 1), ids[1:]], atol=1e-5)
        np.testing.assert_allclose(column["boundary_logp"], logp[:, boundary].logsumexp(-1), atol=1e-5)
        top = store.slice("top_ids", span)
        np.testing.assert_allclose(store.slice("top_logp", span), logp.topk(5).values, atol=1e-5)
        np.testing.assert_allclose(logp.gather(1, torch.tensor(top).long()), logp.topk(5).values, atol=1e-5)
        np.testing.assert_allclose(np.exp(column["tail_logp"]), 1 - logp.topk(5).values.exp().sum(1), atol=1e-5)
        np.testing.assert_allclose(column["entropy"], torch.distributions.Categorical(logits=logp).entropy(), atol=1e-5)
        for layer in (0, 2):
            np.testing.assert_allclose(store.slice(f"hidden_{layer}", span), hidden[layer], atol=1e-5)


def test_a_long_text_is_read_in_pieces_that_repeat_some_context(teacher, tmp_path):
    documents = write_documents(tmp_path / "documents", [LONG])
    store = ScoreStore(score(teacher, documents, tmp_path / "score", window_tokens=40, context_tokens=16))
    view = ByteView.from_tokenizer(teacher)
    ids, span = view.encode(LONG).ids.tolist(), store.find(text_digest(LONG))
    label, boundary = store.slice("label_logp", span), store.slice("boundary_logp", span)
    mask = torch.from_numpy(view.boundary_mask())
    assert len(ids) > 120
    assert span.count == len(ids) + 1
    scored = 0
    while scored < len(ids):
        start = max(0, scored - 16)
        piece = [*view.prefix_ids, *ids[start : start + 39]]
        logp, _ = log_probs(teacher, piece)
        for token in range(scored, min(start + 39, len(ids))):
            place = token - start + 1
            assert label[token + 1] == pytest.approx(float(logp[place - 1, piece[place]]), abs=1e-5)
            assert boundary[token + 1] == pytest.approx(float(logp[place][mask].logsumexp(-1)), abs=1e-5)
        scored = start + 39


@pytest.mark.parametrize("window", [9, 16, 40])
@pytest.mark.parametrize("context_tokens", [1, 5])
@pytest.mark.parametrize("length", [0, 1, 8, 9, 15, 16, 17, 100])
def test_every_token_is_scored_in_one_pass(window, context_tokens, length):
    text = TeacherText(digest=0, ids=np.arange(length + 2), byte_lengths=np.zeros(length + 2), prefix=2)
    passes = passes_of(text, first=7, window=window, context=context_tokens)
    entries = [each.first + n for each in passes for n in range(len(each.ids) - each.context)]
    assert entries == list(range(7, 7 + length + 2))
    for each in passes:
        assert len(each.ids) <= window
        assert each.ids[:2].tolist() == [0, 1]
        assert each.ids[each.context] == each.first - 7
        assert each is passes[0] or each.context == 2 + context_tokens
    regrouped = [each for batch in batches(passes, 30) for each in batch]
    assert sorted(each.first for each in regrouped) == sorted(each.first for each in passes)


def test_a_conversation_is_scored_in_the_teachers_own_format(tiny_chat_dirs, tiny_model_dir, tmp_path):
    teacher = tiny_model_dir(tiny_chat_dirs[0], seed=1)
    documents = write_documents(tmp_path / "documents", [CONVERSATION])
    text = AutoTokenizer.from_pretrained(teacher).apply_chat_template(CONVERSATION, tokenize=False)
    ids = ByteView.from_tokenizer(teacher).encode_rendered(text).ids.tolist()
    store = ScoreStore(score(teacher, documents, tmp_path / "whole"))
    span = store.find(text_digest(text, rendered=True))
    assert store.find(text_digest(text)) is None
    logp, _ = log_probs(teacher, ids)
    np.testing.assert_allclose(store.slice("label_logp", span)[1:], logp[range(len(ids) - 1), ids[1:]], atol=1e-5)
    assert store.slice("byte_lengths", span).sum() == len(text.encode())
    cut = ScoreStore(score(teacher, documents, tmp_path / "cut", window_tokens=20))
    assert cut.find(text_digest(text, rendered=True)).count == 20


def test_two_floats_a_token_take_less_than_twelve_bytes(teacher, tmp_path):
    documents = write_documents(tmp_path / "documents", [LONG, LONG + "a"])
    out = score(teacher, documents, tmp_path / "score")
    size = sum(path.stat().st_size for folder in ("shards", "index") for path in (out / folder).rglob("*.npy"))
    tokens = sum(shard.entries for shard in ScoreStore(out).manifest.shards)
    headers = 128 * len(list(out.rglob("*.npy")))
    # Headers and index do not grow with the text.
    assert (size - headers) / tokens <= 9.2
    assert json.loads((out / "metrics.json").read_text())["tokens"] == tokens


def test_half_precision_halves_the_numbers(teacher, tmp_path):
    documents = write_documents(tmp_path / "documents")
    exact, half = (
        ScoreStore(score(teacher, documents, tmp_path / name, number_format=name, top_k=4, hidden_states=[1]))
        for name in ("float32", "float16")
    )
    entries = np.arange(exact.manifest.shards[0].entries)
    for column in ("label_logp", "boundary_logp", "top_logp", "hidden_1"):
        left, right = exact.read(column, entries), half.read(column, entries)
        assert (left.dtype, right.dtype) == (np.float32, np.float16)
        np.testing.assert_allclose(right, left, rtol=1e-3, atol=1e-4)


def test_processes_share_the_documents(teacher, tmp_path):
    documents = write_documents(tmp_path / "documents")
    alone = score(teacher, documents, tmp_path / "alone", shard_bytes=100)
    config = ScoreConfig(dtype="fp32", window_tokens=256, shard_bytes=100)
    inputs = {"teacher": teacher, "documents": documents}
    contexts = [context(tmp_path / "shared", config, inputs, rank=rank, world_size=2) for rank in (0, 1)]
    child = os.fork()
    if child == 0:
        try:
            time.sleep(0.5)  # the first process is done before, and waits
            Score().run(contexts[1])
        finally:
            os._exit(0)
    Score().run(contexts[0])
    os.waitpid(child, 0)
    assert directory_bytes(tmp_path / "shared" / "out") == directory_bytes(alone)


class _StopAfter:
    def __init__(self, polls: int) -> None:
        self.left = polls

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_an_interrupted_stage_repeats_unfinished_shards_only(teacher, tmp_path):
    documents = write_documents(tmp_path / "documents")
    options = {"shard_bytes": 100, "batch_tokens": 64}
    expected = directory_bytes(score(teacher, documents, tmp_path / "straight", **options))
    with pytest.raises(StageInterrupted):
        score(teacher, documents, tmp_path / "resumed", ctx={"should_stop": _StopAfter(3)}, **options)
    (root,) = (tmp_path / "resumed" / "work" / "shards").iterdir()
    kept = {path: path.stat().st_mtime_ns for path in root.iterdir() if "partial" not in path.name}
    assert kept
    assert Score.resume_point(tmp_path / "resumed" / "work") == f"{len(kept)} finished shard{'s'[: len(kept) - 1]}"
    lines: list[str] = []
    found = directory_bytes(score(teacher, documents, tmp_path / "resumed", ctx={"progress": lines.append}, **options))
    assert any("were finished before" in line for line in lines)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert found == expected


def test_shards_of_another_size_are_made_anew(teacher, tmp_path):
    documents = write_documents(tmp_path / "documents")
    with pytest.raises(StageInterrupted):
        score(teacher, documents, tmp_path / "s", ctx={"should_stop": _StopAfter(2)}, shard_bytes=100, batch_tokens=64)
    lines: list[str] = []
    out = score(teacher, documents, tmp_path / "s", ctx={"progress": lines.append}, shard_bytes=200)
    assert any("shard_bytes changed" in line for line in lines)
    assert directory_bytes(out) == directory_bytes(score(teacher, documents, tmp_path / "t", shard_bytes=200))


def _score_until_killed(teacher: Path, documents: Path, root: Path) -> None:
    """Score, but stay in the writing of the third shard, with its numbers there and the shard not in its place."""
    finish = ShardWriter.finish

    def slow(writer: ShardWriter) -> None:
        if len(list((root / "work" / "shards").glob("*/*"))) == 3:
            (root / "writing").touch()
            time.sleep(600)
        finish(writer)

    ShardWriter.finish = slow
    score(teacher, documents, root, shard_bytes=100)


def test_a_killed_stage_goes_on_and_ends_with_the_same_bytes(teacher, tmp_path):
    documents, root = write_documents(tmp_path / "documents"), tmp_path / "killed"
    child = os.fork()
    if child == 0:
        try:
            _score_until_killed(teacher, documents, root)
        finally:
            os._exit(1)
    while not (root / "writing").exists():
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the child ended by itself"
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    (shards,) = (root / "work" / "shards").iterdir()
    assert sorted(path.name for path in shards.iterdir()) == ["000000", "000001", "000002.partial"]
    found = score(teacher, documents, root, shard_bytes=100)
    expected = score(teacher, documents, tmp_path / "straight", shard_bytes=100)
    assert directory_bytes(found) == directory_bytes(expected)


def test_a_damaged_shard_is_noticed(teacher, tmp_path):
    out = score(teacher, write_documents(tmp_path / "documents"), tmp_path / "score")
    file = next(out.glob("shards/*/label_logp.npy"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    ScoresArtifact.verify(out)  # of the right size
    with pytest.raises(StageError, match=r"label_logp\.npy is not what was written"):
        ScoreStore(out).check()
    file.write_bytes(whole[:-1])
    with pytest.raises(ArtifactError, match=r"label_logp\.npy has \d+ bytes, the manifest says"):
        ScoresArtifact.verify(out)
    file.unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        ScoresArtifact.verify(out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_tokens": 600}, "window_tokens is 600, but the teacher reads at most 512 tokens"),
        ({"window_tokens": 8, "context_tokens": 7}, "leaves no room for a new token beside context_tokens"),
        ({"top_k": 9999}, r"top_k is 9,999, but the teacher has \d+ tokens"),
        ({"hidden_states": [3]}, "the teacher has hidden states 0 to 2, not 3"),
    ],
)
def test_what_the_teacher_cannot_do_is_refused_before_it_is_run(teacher, tmp_path, options, message):
    with pytest.raises(StageError, match=message):
        score(teacher, write_documents(tmp_path / "documents"), tmp_path / "score", **options)


def test_a_teacher_that_gives_no_distribution_is_refused(tiny_tokenizer_dirs, tiny_model_dir, tmp_path):
    teacher = tiny_model_dir(tiny_tokenizer_dirs[0], seed=1)
    model = AutoModelForCausalLM.from_pretrained(teacher)
    model.model.norm.weight.data[3] = float("nan")
    model.save_pretrained(teacher)
    with pytest.raises(StageError, match="the logits of the teacher are not finite"):
        score(teacher, write_documents(tmp_path / "documents"), tmp_path / "score")


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_scored(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr("stages.scoring.run.shutil.disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(StageError, match=r"but the disk of .* has 0.0 GB left: lower top_k"):
        score(teacher, write_documents(tmp_path / "documents"), tmp_path / "score")
    assert not list((tmp_path / "score" / "work").rglob("*.npy"))


def test_what_was_finished_before_needs_no_more_room(teacher, tmp_path, monkeypatch):
    documents, options = write_documents(tmp_path / "documents"), {"shard_bytes": 100}
    store = ScoreStore(score(teacher, documents, tmp_path / "score", **options))
    last = store.manifest.shards[-1]
    size = sum(np.load(path, mmap_mode="r").nbytes for path in (store.directory / "shards" / last.name).glob("*.npy"))
    (shards,) = (tmp_path / "score" / "work" / "shards").iterdir()
    for gone in (shards / last.name, tmp_path / "score" / "out"):
        shutil.rmtree(gone)
    monkeypatch.setattr("stages.scoring.run.shutil.disk_usage", lambda path: SimpleNamespace(free=size))
    assert len(store.manifest.shards) > 2
    score(teacher, documents, tmp_path / "score", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_tokens": 64, "window_tokens": 64}, "must be below window_tokens"),
        ({"hidden_states": [1, 1]}, "a layer is named twice"),
        ({"top_k": 1}, "greater than or equal to 2"),
        ({"hidden_states": [-2]}, "greater than or equal to -1"),
    ],
)
def test_options_that_contradict_each_other(options, message):
    with pytest.raises(ValueError, match=message):
        ScoreConfig(**options)
