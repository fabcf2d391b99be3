"""The evaluate stage from models and documents to the report."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_world import TEXTS, context, run, section
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from stages.evaluate import Evaluate
from stages.stage import StageContext, StageInterrupted


def retention(ctx: StageContext) -> dict[str, Any]:
    """Run, and take the numbers of retention."""
    return section(run(ctx))["data"]


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
    report = retention(context(tmp_path, documents, teacher, {"student": student}))
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
    found = section(run(context(tmp_path, documents, teacher, {"other": student, "copy": teacher})))
    models = found["data"]["models"]
    for result in models["copy"]["domains"].values():
        assert result["agreement_nats"] == 0.0
        assert result["top1"] == 1.0
    assert all(result["agreement_nats"] > 0.1 for result in models["other"]["domains"].values())
    differences = found["tables"][0]["differences"]["teacher"]
    assert all(cell["value"] == 0.0 for cell in differences["copy"].values())
    assert all(cell["value"] != 0.0 for cell in differences["other"].values())


def test_a_uniform_model_costs_log2_of_its_vocabulary_a_token(
    tmp_path: Path, documents: Path, tiny_models: tuple[Path, Path, Path]
) -> None:
    teacher, _, uniform = tiny_models
    report = retention(context(tmp_path, documents, teacher, {"uniform": uniform}, window_bytes=40))
    vocabulary = len(AutoTokenizer.from_pretrained(uniform))
    for result in report["models"]["uniform"]["domains"].values():
        assert result["bits_per_byte"] == pytest.approx(result["tokens_per_byte"] * math.log2(vocabulary))


def test_every_model_is_scored_on_the_same_bytes_and_the_rows_keep_their_order(
    tmp_path: Path, documents: Path, tiny_models: tuple[Path, Path, Path]
) -> None:
    teacher, student, uniform = tiny_models
    report = retention(context(tmp_path, documents, teacher, {"uniform": uniform, "student": student}, window_bytes=30))
    assert list(report["models"]) == ["teacher", "uniform", "student"]
    for entry in report["documents"]:
        assert len({scores["bytes"] for scores in entry["models"].values()}) == 1


def test_an_interrupted_evaluation_goes_on_with_the_next_section(
    tmp_path: Path, documents: Path, tiny_models: tuple[Path, Path, Path]
) -> None:
    teacher, student, uniform = tiny_models
    models = {"student": student, "uniform": uniform}
    options = {"generation": {"prompts": 1, "prompt_bytes": 20, "max_bytes": 16}}
    whole = run(context(tmp_path / "whole", documents, teacher, models, **options))

    first = context(tmp_path / "cut", documents, teacher, models, **options)
    first.should_stop = lambda: (first.work / "retention-student.json").exists()
    with pytest.raises(StageInterrupted, match="student 2/3, generation"):
        Evaluate().run(first)
    assert not any(first.out.iterdir())
    saved = {path.name: path.stat().st_mtime_ns for path in first.work.iterdir()}
    assert set(saved) == {
        *("preflight-teacher.json", "retention-teacher.json", "generation-teacher.json"),
        *("preflight-student.json", "retention-student.json"),
    }
    assert Evaluate.resume_point(first.work) == "3 finished sections"

    first.out.rmdir()
    second = context(tmp_path / "cut", documents, teacher, models, **options)
    lines: list[str] = []
    second.progress = lines.append
    assert run(second) == whole
    assert {name: (second.work / name).stat().st_mtime_ns for name in saved} == saved
    assert any("teacher 1/3" in line and "earlier attempt" in line for line in lines)
    assert any("student 2/3, loading" in line for line in lines)


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
        {"init": sharp_student, "control": sharp_student, "distill": trained},
        initial="init",
        control="control",
        trained_domains=("prose",),
    )
    report = run(ctx)
    table = (ctx.out / "table.txt").read_text(encoding="utf-8")
    for words in ("Bits per byte", "Agreement with the teacher", "top-1", "gap", "lower is better", "higher is closer"):
        assert words in table
    lines = [line.split() for line in table.splitlines()]
    heading = next(number for number, line in enumerate(lines) if line[:3] == ["prose", "code", "german"])
    assert lines[heading + 1][:4] == ["model", "trained", "untrained", "untrained"]
    assert [line[0] for line in lines[heading + 3 : heading + 7]] == ["teacher", "init", "vs", "control"]
    assert ["vs", "initial"] in [line[:2] for line in lines]
    assert ["vs", "control"] in [line[:2] for line in lines]
    assert max(map(len, table.splitlines())) <= 120
    page = (ctx.out / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in ("teacher", "init", "control", "distill", "Retention"))
    metrics = json.loads((ctx.out / "metrics.json").read_text())
    assert {
        f"retention.distill.{measure}.{domain}"
        for measure in ("bits_per_byte", "agreement_nats", "top1")
        for domain in TEXTS
    } <= set(metrics)
    assert "retention.init.gap_closed_mean" in metrics
    assert all(isinstance(value, float) for value in metrics.values())
    assert report["schema_version"] == 2
    assert report["curves"]["distill"]["measures"]["loss"] == [[1, 2.5], [2, 2.0]]
    assert report["settings"]["control"] == "control"
    assert set(report["preflight"]) == {"teacher", "init", "control", "distill"}
    assert set(report["versions"]) == {"torch", "transformers", "tokenizers", "numpy"}
