"""The evaluate stage from models and documents to the report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from stages.artifacts import ReportArtifact
from stages.evaluate import Evaluate
from stages.stage import StageContext, StageError, StageInterrupted

TEXTS = {
    "prose": [
        "The quick fox sleeps where two boundaries meet, and the dog jumps on.",
        "Lazy dogs sleep; foxes do not.",
    ],
    "code": ["def subtract(left, right):\n    return left - right\n\nprint(subtract(345, 12))\n"],
    "german": ["Im Wald steht ein naïves Häuschen, 東京 liegt weit weg 🙂."],
}


@pytest.fixture(scope="session")
def tiny_models(tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]) -> tuple[Path, Path, Path]:
    """A teacher and two students; the students have another tokenizer, and the second one's logits are all zero."""
    small, large = tiny_tokenizer_dirs
    uniform = tiny_model_dir(large, seed=2, tied=False)
    model = AutoModelForCausalLM.from_pretrained(uniform)
    torch.nn.init.zeros_(model.lm_head.weight)
    model.save_pretrained(uniform)
    return sharpen(tiny_model_dir(small, seed=0)), sharpen(tiny_model_dir(large, seed=1)), uniform


def sharpen(directory: Path) -> Path:
    """Scale the embeddings up, so that a random model has preferences worth comparing."""
    model = AutoModelForCausalLM.from_pretrained(directory)
    model.get_output_embeddings().weight.data *= 20
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """A documents artifact of three domains."""
    directory = tmp_path / "documents"
    directory.mkdir()
    lines = [
        json.dumps({"id": f"{domain}/{number}", "domain": domain, "weight": 1.0, "text": text})
        for domain, texts in TEXTS.items()
        for number, text in enumerate(texts)
    ]
    (directory / "documents.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return directory


def context(directory: Path, documents: Path, teacher: Path, models: dict[str, Path], **settings: Any) -> StageContext:
    (directory / "work").mkdir(parents=True, exist_ok=True)
    (directory / "out").mkdir()
    return StageContext(
        config=Evaluate.Config(**settings),
        inputs={"models": models, "teacher": {"sources/teacher": teacher}, "documents": {"sources/eval": documents}},
        work=directory / "work",
        out=directory / "out",
    )


def run(ctx: StageContext) -> dict[str, Any]:
    Evaluate().run(ctx)
    ReportArtifact.verify(ctx.out)
    return json.loads((ctx.out / "report.json").read_text(encoding="utf-8"))


@dataclass
class Spelled:
    """One text under one model: where tokens end, their log-probabilities, and the bytes of each greedy token."""

    ends: list[int]
    logp: list[float]
    greedy: list[bytes | None]


def spell(directory: Path, text: str) -> Spelled:
    """From transformers alone, in float64. The first token has no score."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}

    def token_bytes(token: int) -> bytes | None:
        if token in tokenizer.all_special_ids:
            return None
        return bytes(byte_of[character] for character in tokenizer.convert_ids_to_tokens(token))

    ids = tokenizer(text, add_special_tokens=False).input_ids
    with torch.no_grad():
        logp = AutoModelForCausalLM.from_pretrained(directory).double()(torch.tensor([ids])).logits[0].log_softmax(-1)
    return Spelled(
        ends=list(accumulate(len(token_bytes(token)) for token in ids)),
        logp=[math.nan, *(float(logp[place - 1, ids[place]]) for place in range(1, len(ids)))],
        greedy=[None, *(token_bytes(int(row.argmax())) for row in logp[:-1])],
    )


def test_matches_a_brute_force_walk(tmp_path: Path, documents: Path, tiny_models: tuple[Path, Path, Path]) -> None:
    teacher, student, _ = tiny_models
    report = run(context(tmp_path, documents, teacher, {"student": student}))
    same_top1 = 0
    for entry in report["documents"]:
        domain, number = entry["id"].split("/")
        text = TEXTS[domain][int(number)]
        sides = [spell(path, text) for path in (teacher, student)]
        common = sorted(set(sides[0].ends) & set(sides[1].ends))
        difference, nats, same = 0.0, 0.0, 0
        for begin, end in pairwise(common):
            inside = [[place for place, stop in enumerate(side.ends) if begin < stop <= end] for side in sides]
            left, right = (
                sum(side.logp[place] for place in places) for side, places in zip(sides, inside, strict=True)
            )
            difference += abs(left - right)
            nats -= right
            ours, theirs = (side.greedy[places[0]] for side, places in zip(sides, inside, strict=True))
            if ours is None or theirs is None:
                same += ours is theirs
            else:
                shorter = min(len(ours), len(theirs))
                same += ours[:shorter] == theirs[:shorter]
        found = entry["models"]["student"]
        assert found["bytes"] == len(text.encode()) - common[0]
        assert found["tokens"] == sum(end > common[0] for end in sides[1].ends)
        assert found["chunks"] == len(common) - 1
        assert found["nats"] == pytest.approx(nats, abs=1e-3)
        assert found["absolute_difference"] == pytest.approx(difference, abs=1e-3)
        assert found["same_top1"] == same
        same_top1 += same
    assert same_top1 > 0, "no greedy token agrees anywhere, so the comparison of top-1 was empty"


def test_a_model_equals_itself(tmp_path: Path, documents: Path, tiny_models: tuple[Path, Path, Path]) -> None:
    teacher, student, _ = tiny_models
    report = run(context(tmp_path, documents, teacher, {"other": student, "copy": teacher}))
    for result in report["models"]["copy"]["domains"].values():
        assert result["agreement_nats"] == 0.0
        assert result["top1"] == 1.0
        assert result["difference_to_teacher"]["value"] == 0.0
    assert all(result["agreement_nats"] > 0.1 for result in report["models"]["other"]["domains"].values())


def test_a_uniform_model_costs_log2_of_its_vocabulary_a_token(
    tmp_path: Path, documents: Path, tiny_models: tuple[Path, Path, Path]
) -> None:
    teacher, _, uniform = tiny_models
    report = run(context(tmp_path, documents, teacher, {"uniform": uniform}, window_bytes=40))
    vocabulary = len(AutoTokenizer.from_pretrained(uniform))
    for result in report["models"]["uniform"]["domains"].values():
        assert result["bits_per_byte"] == pytest.approx(result["tokens_per_byte"] * math.log2(vocabulary))


def test_every_model_is_scored_on_the_same_bytes_and_the_rows_keep_their_order(
    tmp_path: Path, documents: Path, tiny_models: tuple[Path, Path, Path]
) -> None:
    teacher, student, uniform = tiny_models
    report = run(context(tmp_path, documents, teacher, {"uniform": uniform, "student": student}, window_bytes=30))
    assert list(report["models"]) == ["teacher", "uniform", "student"]
    for entry in report["documents"]:
        assert len({scores["bytes"] for scores in entry["models"].values()}) == 1


def test_an_interrupted_evaluation_keeps_finished_models(
    tmp_path: Path, documents: Path, tiny_models: tuple[Path, Path, Path]
) -> None:
    teacher, student, uniform = tiny_models
    models = {"student": student, "uniform": uniform}
    whole = run(context(tmp_path / "whole", documents, teacher, models))

    first = context(tmp_path / "cut", documents, teacher, models)
    first.should_stop = lambda: (first.work / "teacher.npz").exists()
    with pytest.raises(StageInterrupted):
        Evaluate().run(first)
    assert not any(first.out.iterdir())
    saved = {path.name: path.stat().st_mtime_ns for path in first.work.iterdir()}
    assert list(saved) == ["teacher.npz"]

    first.out.rmdir()
    second = context(tmp_path / "cut", documents, teacher, models)
    lines: list[str] = []
    second.progress = lines.append
    assert run(second) == whole
    assert (second.work / "teacher.npz").stat().st_mtime_ns == saved["teacher.npz"]
    assert any("teacher 1/3" in line and "earlier attempt" in line for line in lines)


def test_outputs_say_what_the_comparison_needs(
    tmp_path: Path, documents: Path, tiny_models: tuple[Path, Path, Path]
) -> None:
    sharp, sharp_student, uniform = tiny_models
    trained = tmp_path / "trained"
    trained.mkdir()
    for file in sharp.iterdir():
        (trained / file.name).symlink_to(file)
    (trained / "training.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.0}\n')
    ctx = context(
        tmp_path,
        documents,
        uniform,
        {"init": sharp_student, "distill": trained},
        initial="init",
        trained_domains=("prose",),
    )
    run(ctx)
    table = (ctx.out / "table.txt").read_text(encoding="utf-8")
    for words in (
        "Bits per byte",
        "Agreement with the teacher",
        "top-1",
        "gap",
        "per byte",
        "teacher",
        "init",
        "distill",
    ):
        assert words in table
    heading, second = (line.split() for line in table.splitlines()[1:3])
    assert heading[:3] == ["prose", "code", "german"]
    assert second[1:4] == ["trained", "untrained", "untrained"]
    assert "lower is better" in table
    assert "higher is closer" in table
    assert max(map(len, table.splitlines())) <= 120
    assert (ctx.out / "curves.png").read_bytes().startswith(b"\x89PNG")
    metrics = json.loads((ctx.out / "metrics.json").read_text())
    assert {
        f"distill.{measure}.{domain}" for measure in ("bits_per_byte", "agreement_nats", "top1") for domain in TEXTS
    } <= set(metrics)
    assert "init.gap_closed_mean" in metrics
    assert all(isinstance(value, float) for value in metrics.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"initial": "innit"}, r"initial: 'innit' is not among the models under needs: student"),
        ({"trained_domains": ("prosa",)}, r"trained_domains: prosa .* domains are prose, code, german"),
    ],
)
def test_wrong_names_are_refused(
    tmp_path: Path, documents: Path, tiny_models: tuple[Path, Path, Path], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(StageError, match=message):
        Evaluate().run(context(tmp_path, documents, tiny_models[0], {"student": tiny_models[1]}, **settings))


def test_a_domain_without_anything_to_score_is_refused(
    tmp_path: Path, documents: Path, tiny_models: tuple[Path, Path, Path]
) -> None:
    with (documents / "documents.jsonl").open("a") as file:
        file.write(json.dumps({"id": "short/0", "domain": "short", "weight": 1.0, "text": "a"}) + "\n")
    with pytest.raises(StageError, match=r"nothing to score in the evaluation data \(short\)"):
        Evaluate().run(context(tmp_path, documents, tiny_models[0], {"student": tiny_models[1]}))


def test_the_name_of_the_teacher_row_is_taken(
    tmp_path: Path, documents: Path, tiny_models: tuple[Path, Path, Path]
) -> None:
    with pytest.raises(StageError, match="rename it"):
        Evaluate().run(context(tmp_path, documents, tiny_models[0], {"teacher": tiny_models[1]}))
