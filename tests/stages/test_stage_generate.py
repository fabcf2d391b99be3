"""The generate stage on a tiny model: what the teacher writes, and that nothing but the options decides it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.artifacts import DocumentsArtifact
from stages.generate import Generate
from stages.generation.continuation import document_draws
from stages.generation.prompts import cut_prompt
from stages.generation.sampling import ChosenToken, Sampling
from stages.stage import StageContext, StageError, StageInterrupted

TEXTS = {
    "prose": ["The quick brown fox jumps over the lazy dog.", "Foxes sleep.", "Two boundaries meet where they meet."],
    "code": ["def subtract(left, right):\n    return left - right\n", "print(subtract(345, 12))"],
}


@pytest.fixture(scope="module")
def teacher(tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]) -> Path:
    """A random model with preferences, in float64, so that a batch's padding rounds nothing that matters."""
    directory = tiny_model_dir(tiny_tokenizer_dirs[0], tied=False)
    model = AutoModelForCausalLM.from_pretrained(directory).double()
    model.get_output_embeddings().weight.data *= 5
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_documents(
        tmp_path_factory.mktemp("documents"),
        [
            {"id": f"{domain}/{number}", "domain": domain, "weight": 2.0, "text": text}
            for domain, texts in TEXTS.items()
            for number, text in enumerate(texts)
        ],
    )


def write_documents(directory: Path, records: list[dict[str, Any]]) -> Path:
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (directory / "documents.jsonl").write_text(lines, encoding="utf-8")
    return directory


def context(directory: Path, teacher: Path, documents: Path, **options: Any) -> StageContext:
    for name in ("work", "out"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    return StageContext(
        config=Generate.Config(**{"prompt_bytes": 16, "new_tokens": 12, "seed": 5} | options),
        inputs={"teacher": {"sources/teacher": teacher}, "documents": {"sources/train": documents}},
        work=directory / "work",
        out=directory / "out",
    )


def run(ctx: StageContext) -> list[dict[str, Any]]:
    Generate().run(ctx)
    DocumentsArtifact.verify(ctx.out)
    return [json.loads(line) for line in (ctx.out / "documents.jsonl").read_text(encoding="utf-8").splitlines()]


def greedy(teacher: Path, prompt: str, new_tokens: int) -> str:
    """The most probable tokens one after the other, by transformers alone, up to the end of text."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype="auto")
    ids = tokenizer(prompt, add_special_tokens=False).input_ids
    for _ in range(new_tokens):
        with torch.no_grad():
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        ids.append(token)
    return tokenizer.decode(ids, errors="ignore")


def test_greedy_text_is_the_teachers_most_probable_one(tmp_path, teacher, documents):
    records = run(context(tmp_path, teacher, documents, temperature=0))
    assert [record["id"] for record in records] == ["prose/0", "prose/1", "prose/2", "code/0", "code/1"]
    for record in records:
        prompt = record["text"].encode()[: record["prompt_bytes"]].decode()
        assert len(prompt) <= 16
        if record["ending"] != "broken":
            expected = greedy(teacher, prompt, 12)
            assert record["text"] == expected.rstrip("\N{REPLACEMENT CHARACTER}")


def test_the_manifest_says_what_was_made_and_how(tmp_path, teacher, documents):
    records = run(context(tmp_path, teacher, documents, max_documents=2, top_p=0.9))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert [record["id"] for record in records] == ["prose/0", "prose/1", "code/0", "code/1"]
    assert all(record["weight"] == 2.0 for record in records)
    assert manifest["documents"] == sum(manifest["endings"].values()) == 4
    assert manifest["domains"]["code"] == {
        "documents": 2,
        "bytes": sum(len(record["text"].encode()) for record in records[2:]),
        "weight": 2.0,
    }
    assert manifest["options"]["top_p"] == 0.9
    assert manifest["teacher"]["architecture"] == "LlamaForCausalLM"
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["finished_share"] + metrics["cut_share"] + metrics["broken_share"] == pytest.approx(1)


def test_the_batch_and_the_neighbours_change_nothing_but_the_seed_does(tmp_path, teacher, documents):
    whole = run(context(tmp_path / "whole", teacher, documents))
    assert run(context(tmp_path / "single", teacher, documents, batch_documents=1)) == whole
    few = run(context(tmp_path / "few", teacher, documents, max_documents=1))
    assert few == [whole[0], whole[3]]
    assert run(context(tmp_path / "again", teacher, documents, seed=6)) != whole


def test_a_stopped_run_goes_on_after_its_last_whole_batch(tmp_path, teacher, documents):
    expected = run(context(tmp_path / "whole", teacher, documents, batch_documents=2))
    ctx = context(tmp_path / "stopped", teacher, documents, batch_documents=2)
    # Each batch of 12 tokens asks about as often; the second one is stopped in its middle.
    asked = iter(range(1000))
    ctx.should_stop = lambda: next(asked) > 18
    with pytest.raises(StageInterrupted):
        Generate().run(ctx)
    drafts = ctx.work / "documents.jsonl"
    assert len(drafts.read_text(encoding="utf-8").splitlines()) == 2
    assert Generate.resume_point(ctx.work) == "2 written documents"
    # A crash in the middle of a write leaves part of a batch, and part of a line.
    lines = [json.dumps({**record, "text": "spoilt"}) for record in expected[2:4]]
    with drafts.open("a", encoding="utf-8") as file:
        file.write(lines[0] + "\n" + lines[1][:20])
    again = context(tmp_path / "stopped", teacher, documents, batch_documents=2)
    assert run(again) == expected


def test_what_cannot_be_continued_is_refused(tmp_path, teacher, documents):
    chat = write_documents(tmp_path, [{"id": "chat/0", "domain": "chat", "weight": 1.0, "messages": []}])
    with pytest.raises(StageError, match="chat/0 is a conversation"):
        run(context(tmp_path / "chat", teacher, chat))
    with pytest.raises(StageError, match="do not fit the teacher's context of 512 tokens; lower new_tokens"):
        run(context(tmp_path / "long", teacher, documents, new_tokens=511))
    ctx = context(tmp_path / "many", teacher, documents)
    ctx.world_size = 2
    with pytest.raises(StageError, match="one process"):
        run(ctx)
    with pytest.raises(ValidationError, match="greater than or equal to 4"):
        Generate.Config(prompt_bytes=3)


@pytest.mark.parametrize(
    ("text", "limit", "prompt"),
    [
        ("short", 16, "short"),
        ("one two three", 9, "one two"),
        ("one two three", 7, "one two"),
        ("if x:\n    return 1", 10, "if x:"),
        ("a bcdefghijkl", 8, "a bcdefg"),
        ("東京タワー", 10, "東京タ"),
        ("🙂🙂", 4, "🙂"),
        ("  word", 5, "  wor"),
    ],
)
def test_prompts_end_before_white_space_or_between_characters(text, limit, prompt):
    assert cut_prompt(text, limit) == prompt


@given(st.text(min_size=1), st.integers(4, 40))
def test_a_prompt_is_a_beginning_that_fits(text, limit):
    prompt = cut_prompt(text, limit)
    assert prompt
    assert text.startswith(prompt)
    assert len(prompt.encode()) <= limit


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_teacher_with_damaged_weights_is_refused(tmp_path, teacher, documents, temperature):
    damaged = tmp_path / "teacher"
    shutil.copytree(teacher, damaged)
    model = AutoModelForCausalLM.from_pretrained(damaged)
    model.model.norm.weight.data[0] = float("nan")
    model.save_pretrained(damaged)
    with pytest.raises(StageError, match="logits are not finite: its weights are damaged"):
        run(context(tmp_path, damaged, documents, temperature=temperature))
    assert list((tmp_path / "out").iterdir()) == []


def test_tokens_are_drawn_as_often_as_the_nucleus_has_them():
    probabilities = torch.tensor([0.05, 0.5, 0.15, 0.3], dtype=torch.float64)
    draws = torch.arange(1000, dtype=torch.float64)[:, None] / 1000
    real = torch.tensor([True, True, True, True])
    scores = torch.cat([probabilities.log(), torch.tensor([9.0])]).expand(1000, 5)  # the last row is padding

    def counts(temperature: float, top_p: float, top_k: int | None = None) -> list[int]:
        sampling = Sampling(temperature, top_p, top_k)
        chosen = ChosenToken(real, 3, draws, sampling)(torch.zeros(1000, 3), scores).argmax(1)
        return chosen.bincount(minlength=5).tolist()

    assert counts(1.0, 1.0) == pytest.approx([50, 500, 150, 300, 0], abs=1)
    assert counts(1.0, 0.79) == pytest.approx([0, 625, 0, 375, 0], abs=1)
    assert counts(1.0, 0.81) == pytest.approx([0, 526, 158, 316, 0], abs=1)
    squared = probabilities.square() / probabilities.square().sum() * 1000
    assert counts(0.5, 1.0) == pytest.approx([*squared.tolist(), 0], abs=1)
    assert counts(1.0, 1.0, 2) == pytest.approx([0, 625, 0, 375, 0], abs=1)
    assert counts(1.0, 0.6, 2) == [0, 1000, 0, 0, 0]
    assert counts(1.0, 1.0, 9) == counts(1.0, 1.0)
    assert ChosenToken(real, 3, None, Sampling())(torch.zeros(1000, 3), scores).argmax(1).eq(1).all()


def test_draws_belong_to_the_seed_and_the_document():
    first = document_draws(1, "a", 5)
    assert (document_draws(1, "a", 9)[:5] == first).all()
    assert (document_draws(1, "b", 5) != first).all()
    assert (document_draws(2, "a", 5) != first).all()
