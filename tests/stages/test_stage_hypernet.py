"""The hypernet stage on tiny models: what it learns, how it resumes, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.artifacts import ArtifactError, HypernetArtifact
from stages.hypernet import Hypernet, HypernetConfig
from stages.stage import StageContext, StageError, StageInterrupted

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on while the fox runs far away. " * 4,
    "Tokens are byte strings; two tokenizations of one text meet where their boundaries coincide. " * 4,
    "def add(left, right):\n    return left + right\n\nprint(add(12, 345))\n" * 4,
    "Ein Häuschen steht im Wald, naïve façade, 東京 and Москва, 🙂 at 3.14159. " * 4,
]
TINY = {
    **{"steps": 4, "hidden_size": 32, "heads": 4, "layers": 1, "max_pieces": 8, "vocabulary_size": 400},
    **{"tokenizer_texts": 8, "batch_windows": 4, "window_tokens": 32, "learning_rate": 3e-3, "dtype": "fp32"},
}


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_documents(tmp_path_factory.mktemp("documents"), [{"text": text} for text in TEXTS])


@pytest.fixture(scope="module")
def student(tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]) -> Path:
    return tiny_model_dir(tiny_tokenizer_dirs[1], seed=2, tied=False)


def write_documents(directory: Path, contents: list[dict]) -> Path:
    directory.mkdir(exist_ok=True)
    with (directory / "documents.jsonl").open("w", encoding="utf-8") as file:
        for number, content in enumerate(contents):
            file.write(json.dumps({"id": f"d/{number}", "domain": "d", "weight": 1.0, **content}) + "\n")
    return directory


def run(student: Path, documents: Path, root: Path, *, polls: int | None = None, **options: object) -> Path:
    """Run the stage; with ``polls`` it is asked to stop when it has asked so many times."""
    work, out = root / "work", root / "out"
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(exist_ok=True)
    left = iter(range(polls)) if polls is not None else None
    ctx = StageContext(
        config=HypernetConfig(**(TINY | options)),
        inputs={"student": {"s": student}, "documents": {"d": documents}},
        work=work,
        out=out,
        should_stop=lambda: left is not None and next(left, None) is None,
    )
    Hypernet().run(ctx)
    HypernetArtifact.verify(out)
    return out


def test_training_lowers_the_loss_with_tokenizers_it_has_not_seen(
    student: Path, documents: Path, tmp_path: Path
) -> None:
    out = run(student, documents, tmp_path, steps=25, learning_rate=1e-2)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["held_out_loss.hypernet"] < metrics["held_out_loss.piece_mean"] - 0.05
    curve = [json.loads(line) for line in (out / "training.jsonl").read_text().splitlines()]
    assert [point["step"] for point in curve] == [5, 10, 15, 20, 25]


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(student: Path, documents: Path, tmp_path: Path) -> None:
    whole = run(student, documents, tmp_path / "whole", priors=True)
    with pytest.raises(StageInterrupted, match="after step 2 of 4"):
        run(student, documents, tmp_path / "parts", priors=True, polls=2)
    resumed = run(student, documents, tmp_path / "parts", priors=True)
    again = run(student, documents, tmp_path / "again", priors=True)
    for other in (resumed, again):
        for name in ("hypernet.safetensors", "hypernet.json", "metrics.json", "training.jsonl"):
            assert (whole / name).read_bytes() == (other / name).read_bytes(), name
    seeded = load_file(run(student, documents, tmp_path / "seeded", priors=True, seed=1) / "hypernet.safetensors")
    assert not torch.equal(seeded["head.weight"], load_file(whole / "hypernet.safetensors")["head.weight"])


def test_a_damaged_checkpoint_gives_way_to_the_one_before(student: Path, documents: Path, tmp_path: Path) -> None:
    out = run(student, documents, tmp_path, checkpoint_every=1)
    before = (out / "hypernet.safetensors").read_bytes()
    newest = tmp_path / "work/ckpt/step-4/training.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert (run(student, documents, tmp_path, checkpoint_every=1) / "hypernet.safetensors").read_bytes() == before


def test_the_student_is_not_changed_and_the_manifest_says_whose_rows_it_predicts(
    student: Path, documents: Path, tmp_path: Path
) -> None:
    before = (student / "model.safetensors").read_bytes()
    manifest = json.loads((run(student, documents, tmp_path, steps=1) / "hypernet.json").read_text())
    assert (student / "model.safetensors").read_bytes() == before
    facts = manifest["student"]
    assert (facts["width"], facts["tied"], facts["bias"], facts["dtype"]) == (32, False, False, "F32")
    assert manifest["network"]["columns"] == 64
    assert manifest["options"]["steps"] == 1


def test_a_model_in_bf16_with_a_prefix_and_tied_rows_trains(
    tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path], documents: Path, tmp_path: Path
) -> None:
    from tokenizers.processors import TemplateProcessing

    tied = tiny_model_dir(tiny_tokenizer_dirs[1], tied=True)
    tokenizer = AutoTokenizer.from_pretrained(tied)
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(f"{end} $A", None, [(end, tokenizer.eos_token_id)])
    tokenizer.save_pretrained(tied)
    model = AutoModelForCausalLM.from_pretrained(tied, dtype=torch.bfloat16)
    model.save_pretrained(tied)
    out = run(tied, documents, tmp_path, steps=12, dtype="bf16")
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["held_out_loss.hypernet"] < metrics["held_out_loss.piece_mean"]


def test_what_cannot_work_is_refused(student: Path, documents: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"width \(32\) is not divisible by heads \(5\)"):
        run(student, documents, tmp_path / "a", heads=5)
    chat = write_documents(tmp_path / "chat", [{"messages": [{"role": "user", "content": "hello"}]}])
    with pytest.raises(StageError, match="document d/0 is a conversation"):
        run(student, chat, tmp_path / "b")
    with pytest.raises(StageError, match="no text"):
        run(student, write_documents(tmp_path / "empty", [{"text": ""}]), tmp_path / "c")
    with pytest.raises(StageError, match="too short"):
        run(student, write_documents(tmp_path / "short", [{"text": "a"}]), tmp_path / "d")
    with pytest.raises(ValidationError, match=r"batch_windows .* cannot be more"):
        HypernetConfig(steps=1, tokenizer_texts=4)
    with pytest.raises(ValidationError, match="warmup_steps"):
        HypernetConfig(steps=1, warmup_steps=1)


def test_the_artifact_notices_missing_weights(student: Path, documents: Path, tmp_path: Path) -> None:
    out = run(student, documents, tmp_path, steps=1)
    weights = out / "hypernet.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ArtifactError, match="cut off"):
        HypernetArtifact.verify(out)
    weights.unlink()
    with pytest.raises(ArtifactError, match="missing"):
        HypernetArtifact.verify(out)
