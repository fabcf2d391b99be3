"""What the evaluate stage cannot measure: refused at once, or left out, listed and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from evaluation_world import context, run, section
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.evaluate import Evaluate
from stages.stage import StageError


def test_a_section_that_one_model_cannot_be_asked_is_listed_and_the_others_are_made(
    tmp_path: Path, documents: Path, tiny_models: tuple[Path, Path, Path]
) -> None:
    """A model that reads 16 tokens at most: windows and prompts are longer."""
    teacher, student, _ = tiny_models
    short = tmp_path / "short"
    model = AutoModelForCausalLM.from_pretrained(student)
    model.config.max_position_embeddings = 16
    model.save_pretrained(short)
    AutoTokenizer.from_pretrained(student).save_pretrained(short)
    options = {"generation": {"prompts": 1, "prompt_bytes": 64, "max_bytes": 16}}
    ctx = context(tmp_path, documents, teacher, {"short": short, "student": student}, **options)
    report = run(ctx)
    (entry,) = [entry for entry in section(report)["skipped"] if entry["model"] == "short"]
    assert "the model has 16 positions; lower window_bytes" in entry["why"]
    assert set(section(report)["tables"][0]["rows"]) == {"teacher", "student"}
    generation = section(report, "generation")
    (unasked,) = [entry for entry in generation["skipped"] if entry["model"] is not None]
    assert (unasked["what"], unasked["model"]) == ("generation", "short")
    assert "1 of 1 prompts cannot be asked: the prompt leaves no room" in unasked["why"]
    assert set(generation["tables"][0]["rows"]) == {"teacher", "student"}
    assert "skipped: retention of short" in (ctx.out / "table.txt").read_text()


def test_a_teacher_that_cannot_be_scored_leaves_the_students_their_bits_per_byte(
    tmp_path: Path, documents: Path, tiny_models: tuple[Path, Path, Path]
) -> None:
    teacher, student, _ = tiny_models
    broken = tmp_path / "broken"
    model = AutoModelForCausalLM.from_pretrained(teacher)
    model.get_output_embeddings().weight.data[7] = float("nan")
    model.save_pretrained(broken)
    AutoTokenizer.from_pretrained(teacher).save_pretrained(broken)
    report = run(context(tmp_path, documents, broken, {"student": student}, initial="student"))
    failed = report["preflight"]["teacher"]["output head"]
    assert "not finite" in failed["failed"]
    (entry,) = [entry for entry in section(report)["skipped"] if entry["model"] == "teacher"]
    assert entry["why"].startswith("preflight, output head:")
    assert [table["title"] for table in section(report)["tables"]] == ["Bits per byte on held-out text"]
    alone = section(report)["data"]["models"]["student"]["domains"]["prose"]
    assert alone["agreement_nats"] is None
    assert alone["bits_per_byte"] > 0


def test_nothing_measured_is_an_error(tmp_path: Path, documents: Path, tiny_models: tuple[Path, Path, Path]) -> None:
    small = tmp_path / "small"
    model = AutoModelForCausalLM.from_pretrained(tiny_models[1])
    model.resize_token_embeddings(100)
    model.save_pretrained(small)
    AutoTokenizer.from_pretrained(tiny_models[1]).save_pretrained(small)
    with pytest.raises(StageError, match=r"nothing could be measured .* 100 input rows and 100 output rows"):
        Evaluate().run(context(tmp_path, documents, small, {"copy": small}))


def add_documents(documents: Path, *records: dict[str, Any]) -> None:
    with (documents / "documents.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({"weight": 1.0, **record}) + "\n" for record in records)


def test_documents_that_cannot_be_scored_are_listed(
    tmp_path: Path, documents: Path, tiny_models: tuple[Path, Path, Path]
) -> None:
    """One that a tokenizer changes is left out for all models, and so is one that is too short."""
    from tokenizers.normalizers import Replace

    teacher, student, _ = tiny_models
    changing = tmp_path / "changing"
    tokenizer = AutoTokenizer.from_pretrained(student)
    tokenizer.backend_tokenizer.normalizer = Replace("ß", "ss")
    tokenizer.save_pretrained(changing)
    AutoModelForCausalLM.from_pretrained(student).save_pretrained(changing)
    add_documents(
        documents,
        {"id": "german/1", "domain": "german", "text": "Der Fuß steht auf dem Boden."},
        {"id": "code/1", "domain": "code", "text": "x"},
    )
    report = run(context(tmp_path, documents, teacher, {"changing": changing}))
    found = section(report)
    why = {entry["what"]: entry["why"] for entry in found["skipped"]}
    assert set(why) == {"document german/1", "document code/1"}
    assert "does not reproduce the text from byte 6" in why["document german/1"]
    assert "no window of 1500 bytes" in why["document code/1"]
    assert found["facts"]["documents"] == "4 of 6"
    assert set(found["tables"][0]["rows"]) == {"teacher", "changing"}
    assert report["preflight"]["changing"]["round trip"]["found"]["changed"] == 1
    assert report["preflight"]["changing"]["round trip"]["failed"] is None


def test_a_tokenizer_that_changes_a_whole_domain_takes_it_from_nobody_else(
    tmp_path: Path, documents: Path, tiny_models: tuple[Path, Path, Path]
) -> None:
    from tokenizers.normalizers import Lowercase

    teacher, student, _ = tiny_models
    folding = tmp_path / "folding"
    tokenizer = AutoTokenizer.from_pretrained(student)
    tokenizer.backend_tokenizer.normalizer = Lowercase()
    tokenizer.save_pretrained(folding)
    AutoModelForCausalLM.from_pretrained(student).save_pretrained(folding)
    report = run(context(tmp_path, documents, teacher, {"folding": folding, "student": student}))
    found = section(report)
    (entry,) = found["skipped"]
    assert (entry["model"], "changes more than half of the documents of prose, german" in entry["why"]) == (
        "folding",
        True,
    )
    assert set(found["tables"][0]["rows"]) == {"teacher", "student"}
    assert found["facts"]["documents"] == "4 of 4"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"initial": "innit"}, r"initial: 'innit' is not among the models under needs: student"),
        ({"control": "contrl"}, r"control: 'contrl' is not among the models under needs: student"),
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
    add_documents(documents, {"id": "short/0", "domain": "short", "text": "a"})
    with pytest.raises(StageError, match=r"nothing to score in the evaluation data \(short\)"):
        Evaluate().run(context(tmp_path, documents, tiny_models[0], {"student": tiny_models[1]}))


def test_the_name_of_the_teacher_row_is_taken(
    tmp_path: Path, documents: Path, tiny_models: tuple[Path, Path, Path]
) -> None:
    with pytest.raises(StageError, match="rename it"):
        Evaluate().run(context(tmp_path, documents, tiny_models[0], {"teacher": tiny_models[1]}))


def test_names_of_rows_are_checked_before_anything_runs() -> None:
    config = Evaluate.Config(initial="init", control="contrl")
    upstream = {"models": {"init": config, "distill": config}, "documents": {}}
    assert config.upstream_problems(upstream) == [
        (("control",), "'contrl' is not among the models under needs: init, distill")
    ]
