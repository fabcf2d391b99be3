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

from stages.artifacts import EvaluationArtifact
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
    EvaluationArtifact.verify(ctx.out)
    return json.loads((ctx.out / "report.json").read_text(encoding="utf-8"))


def section(report: dict[str, Any], name: str = "retention") -> dict[str, Any]:
    (found,) = [section for section in report["sections"] if section["name"] == name]
    return found


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
