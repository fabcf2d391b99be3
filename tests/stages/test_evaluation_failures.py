"""What goes wrong inside a section is told with the section's and the model's name."""

from __future__ import annotations

import errno
import math
from typing import Any

import pytest
import torch
from evaluation_world import context, run

from stages.evaluate import Evaluate
from stages.evaluation.failures import SectionFailed, check_finite, naming
from stages.evaluation.generations import Generation
from stages.stage import StageError, StageInterrupted

OPTIONS = {"generation": {"prompts": 1, "prompt_bytes": 20, "max_bytes": 16}}


def test_an_error_names_section_and_model_and_keeps_what_is_finished(
    tmp_path, documents, tiny_models, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, student, _ = tiny_models
    score = Generation.score

    def breaks_on_the_student(section: Generation, subject: Any, watch: Any) -> Any:
        if subject.name == "student":
            raise IndexError("index 7 is out of range\nin a second line")
        return score(section, subject, watch)

    ctx = context(tmp_path, documents, teacher, {"student": student}, **OPTIONS)
    with monkeypatch.context() as patch:
        patch.setattr(Generation, "score", breaks_on_the_student)
        with pytest.raises(StageError) as failed:
            Evaluate().run(ctx)
    message = str(failed.value)
    assert message.startswith("the section generation of student failed with IndexError: index 7 is out of range; ")
    assert "leave generation out" in message
    assert "in breaks_on_the_student" in capsys.readouterr().err
    assert not any(ctx.out.iterdir())

    kept = (ctx.work / "retention-student.json").stat().st_mtime_ns
    report = run(ctx)
    assert (ctx.work / "retention-student.json").stat().st_mtime_ns == kept
    (found,) = [section for section in report["sections"] if section["name"] == "generation"]
    assert set(found["tables"][0]["rows"]) == {"teacher", "student"}


def test_a_number_that_is_none_names_section_model_and_place(
    tmp_path, documents, tiny_models, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, student, _ = tiny_models
    monkeypatch.setattr(Generation, "score", lambda *_: {"nats": [1.5, math.nan]})
    ctx = context(tmp_path, documents, teacher, {"student": student}, **OPTIONS)
    with pytest.raises(StageError, match=r"section generation of teacher .* at result\['nats'\]\[1\] = nan"):
        Evaluate().run(ctx)
    assert not (ctx.work / "generation-teacher.json").exists()


def test_an_error_in_a_report_names_the_section(
    tmp_path, documents, tiny_models, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, student, _ = tiny_models
    monkeypatch.setattr(Generation, "report", lambda *_: {}["exact"])
    ctx = context(tmp_path, documents, teacher, {"student": student}, **OPTIONS)
    with pytest.raises(StageError, match=r"^the report of the section generation failed with KeyError: 'exact'"):
        Evaluate().run(ctx)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")])
def test_too_little_memory_says_which_option_to_lower(error: Exception) -> None:
    told = r"section cute of distill does not fit into memory: .* lower batch_tokens"
    with pytest.raises(SectionFailed, match=told), naming("cute", "distill"):
        raise error


@pytest.mark.parametrize(
    "error", [StageError("the model has 16 positions"), OSError(errno.ENOSPC, "no space"), StageInterrupted("stopped")]
)
def test_what_others_understand_passes_as_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as passed, naming("cute", "distill"):
        raise error
    assert passed.value is error


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": [1, {"b": math.inf}]}, r"result\['a'\]\[1\]\['b'\] = inf"),
        (-math.inf, "result = -inf"),
        ([[0.0, None], ["nan", math.nan]], r"result\[1\]\[1\] = nan"),
    ],
)
def test_the_first_number_that_is_not_finite_is_found_wherever_it_stands(value: Any, place: str) -> None:
    with pytest.raises(SectionFailed, match=place):
        check_finite(value, "cute", "distill")


def test_finite_results_pass() -> None:
    check_finite({"a": [1.0, None, "nan", True, 10**400], "b": {}}, "cute", "distill")
