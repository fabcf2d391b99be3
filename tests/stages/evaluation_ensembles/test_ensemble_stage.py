"""Ensembles as rows of an evaluation, with real models."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from stages.artifacts import EvaluationArtifact
from stages.evaluate import Evaluate
from stages.stage import StageContext, StageError

TEXTS = {
    "prose": [
        "The quick fox sleeps where two boundaries meet, and the dog jumps on.",
        "Lazy dogs sleep; foxes do not.",
    ],
    "code": ["def subtract(left, right):\n    return left - right\n"],
}
ENSEMBLES = {
    "tokens": {"members": ["first", "second"], "weights": [2, 1]},
    "product": {"members": ["first", "second"], "mean": "geometric"},
    "moved": {"proxy": {"base": "first", "expert": "second", "anti": "first"}},
    "bytes": {"members": ["teacher", "second"], "level": "byte"},
}
OPTIONS = {
    "ensembles": ENSEMBLES,
    "generation": {"prompts": 1, "prompt_bytes": 20, "max_bytes": 8, "match_bytes": 4},
    "suites": {"addition": {"items": 4, "digits": [1, 2], "unseen_digits": [], "shots": 0}},
    "card": {},
    "invariance": {"excerpts": 2, "excerpt_bytes": 60, "segmentations": 2},
}


def sharp(directory: Path) -> Path:
    model = AutoModelForCausalLM.from_pretrained(directory)
    model.get_output_embeddings().weight.data *= 12
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def directories(tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]) -> dict[str, Path]:
    small, large = tiny_tokenizer_dirs
    tokenizers = {"teacher": small, "first": large, "second": large}
    return {
        row: sharp(tiny_model_dir(tokenizer, seed=seed, tied=False))
        for seed, (row, tokenizer) in enumerate(tokenizers.items())
    }


def context(directory: Path, models: dict[str, Path], options: dict[str, Any]) -> StageContext:
    for name in ("work", "out", "eval"):
        (directory / name).mkdir(parents=True)
    with (directory / "eval" / "documents.jsonl").open("w", encoding="utf-8") as file:
        for domain, texts in TEXTS.items():
            for number, text in enumerate(texts):
                record = {"id": f"{domain}/{number}", "domain": domain, "weight": 1.0, "text": text}
                file.write(json.dumps(record) + "\n")
    return StageContext(
        config=Evaluate.Config.model_validate(options),
        inputs={
            "models": {row: path for row, path in models.items() if row != "teacher"},
            "teacher": {"sources/teacher": models["teacher"]},
            "documents": {"sources/eval": directory / "eval"},
        },
        work=directory / "work",
        out=directory / "out",
    )


@pytest.fixture(scope="module")
def report(directories: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    ctx = context(tmp_path_factory.mktemp("ensembles"), directories, OPTIONS)
    Evaluate().run(ctx)
    EvaluationArtifact.verify(ctx.out)
    return json.loads((ctx.out / "report.json").read_text(encoding="utf-8"))


def section(report: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [section for section in report["sections"] if section["name"] == name]
    return found


def test_ensembles_are_rows_like_any_other(report: dict[str, Any]) -> None:
    rows = ["teacher", "first", "second", *ENSEMBLES]
    for name in ("retention", "generation", "addition"):
        assert list(section(report, name)["tables"][0]["rows"]) == rows, name
    models = section(report, "retention")["data"]["models"]
    for of_row in models.values():
        assert all(math.isfinite(domain["bits_per_byte"]) for domain in of_row["domains"].values())
    # One by tokens has chunks, and so is compared with the teacher; one by bytes has none.
    assert models["tokens"]["domains"]["prose"]["agreement_nats"] > 0
    assert models["bytes"]["domains"]["prose"]["agreement_nats"] is None
    documents = section(report, "retention")["data"]["documents"]
    assert all(len({found["bytes"] for found in document["models"].values()}) == 1 for document in documents)


def test_members_best_oracle_and_disagreement(report: dict[str, Any]) -> None:
    found = section(report, "ensembles")
    rows = found["tables"][0]["rows"]
    assert list(rows) == list(ENSEMBLES)
    for row, cells in rows.items():
        value = {name: cell["value"] for name, cell in cells.items()}
        assert value["oracle"] <= value["best member"] + 1e-12, row
        assert value["against best"] == pytest.approx(value["ensemble"] - value["best member"])
        assert 0 < value["disagreement"] <= 100
    names = {table["title"]: list(table["rows"]) for table in found["tables"][1:]}
    assert names["Members of tokens"] == ["first", "second", "tokens"]
    assert names["Members of bytes"] == ["teacher", "second", "bytes"]
    assert found["metrics"]["tokens.bits_per_byte"] == rows["tokens"]["ensemble"]["value"]
    assert found["skipped"] == []


def test_what_the_section_says_is_what_retention_says(report: dict[str, Any]) -> None:
    retention = section(report, "retention")["tables"][0]["rows"]
    for row in ENSEMBLES:
        (members,) = [
            table for table in section(report, "ensembles")["tables"] if table["title"] == f"Members of {row}"
        ]
        for domain in TEXTS:
            assert members["rows"][row][domain]["value"] == pytest.approx(retention[row][domain]["value"], rel=1e-5)
    # By tokens a member is in the ensemble what it is alone.
    (members,) = [table for table in section(report, "ensembles")["tables"] if table["title"] == "Members of tokens"]
    for row in ("first", "second"):
        assert members["rows"][row]["prose"]["value"] == pytest.approx(retention[row]["prose"]["value"], rel=1e-5)


def test_a_base_that_is_its_own_anti_expert_becomes_the_expert(report: dict[str, Any]) -> None:
    rows = section(report, "retention")["tables"][0]["rows"]
    assert rows["moved"]["prose"]["value"] == pytest.approx(rows["second"]["prose"]["value"], rel=1e-5)
    continuations = section(report, "generation")["samples"][0]["continuations"]
    assert continuations["moved"] == continuations["second"]
    assert report["preflight"]["moved"].keys() == report["preflight"]["tokens"].keys()


def test_what_needs_one_model_says_so(report: dict[str, Any]) -> None:
    skipped = {entry["model"]: entry["why"] for entry in section(report, "invariance")["skipped"]}
    assert set(ENSEMBLES) <= set(skipped)
    assert all("ensemble" in skipped[row] for row in ENSEMBLES)
    # Tokenizers: an ensemble by tokens has one.
    assert set(section(report, "card")["tables"][0]["rows"]) == {"teacher", "first", "second", *ENSEMBLES} - {"bytes"}


def test_the_preflight_is_that_of_all_members(report: dict[str, Any]) -> None:
    checks = report["preflight"]
    assert {"first: round trip", "second: round trip", "first: boundary crossings"} <= set(checks["tokens"])
    # Bytes have no token that could cross anything.
    assert "teacher: round trip" in checks["bytes"]
    assert "teacher: boundary crossings" not in checks["bytes"]


def test_tokens_of_different_vocabularies_are_not_averaged(directories: dict[str, Path], tmp_path: Path) -> None:
    ctx = context(tmp_path, directories, {"ensembles": {"both": {"members": ["teacher", "first"]}}})
    with pytest.raises(
        StageError, match=r"ensembles\.both: teacher and first have different tokenizers .* level: byte"
    ):
        Evaluate().run(ctx)
    assert not any(ctx.work.iterdir())


def test_a_member_that_is_not_there(directories: dict[str, Path], tmp_path: Path) -> None:
    ctx = context(tmp_path, directories, {"ensembles": {"both": {"members": ["frist", "second"]}}})
    with pytest.raises(StageError, match=r"ensembles\.both\.members\.0: 'frist' .*did you mean 'first'"):
        Evaluate().run(ctx)


def test_kept_answers_are_not_asked_again(directories: dict[str, Path], tmp_path: Path) -> None:
    options = {"ensembles": {"tokens": ENSEMBLES["tokens"]}}
    ctx = context(tmp_path, directories, options)
    Evaluate().run(ctx)
    first = json.loads((ctx.out / "report.json").read_text(encoding="utf-8"))
    for file in ctx.out.iterdir():
        file.unlink()
    lines: list[str] = []
    ctx.progress = lines.append
    Evaluate().run(ctx)
    assert json.loads((ctx.out / "report.json").read_text(encoding="utf-8"))["sections"] == first["sections"]
    assert any("tokens 4/4, done by an earlier attempt" in line for line in lines)
