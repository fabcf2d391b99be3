"""The align stage on tiny models: what it writes, what it tells, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from alignment.vocab import Match, VocabAlignment
from stages.align import Align
from stages.artifacts import AlignmentArtifact
from stages.stage import StageContext, StageError

Dirs = tuple[Path, Path]
MakeModel = Callable[..., Path]


def run_align(student: Path, tokenizer: Path, out: Path, **options: Any) -> tuple[VocabAlignment, dict[str, Any], str]:
    """The alignment, the report and what was told."""
    out.mkdir()
    inputs = {"student": {"sources/student": student}, "tokenizer": {"sources/tokenizer": tokenizer}}
    lines: list[str] = []
    config = Align.Config(**options)
    Align().run(StageContext(config=config, inputs=inputs, work=out, out=out, progress=lines.append))
    AlignmentArtifact.verify(out)
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return VocabAlignment.load(out / "alignment.npz"), report, "\n".join(lines)


def changed(tokenizer: Path, out: Path, change: Callable[[PreTrainedTokenizerFast], object]) -> Path:
    """A copy of a tokenizer directory with something changed."""
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    change(loaded)
    loaded.save_pretrained(out)
    return out


def cut_digits(tokenizer: PreTrainedTokenizerFast) -> None:
    """Cut numbers after every digit."""
    steps = [pre_tokenizers.Digits(individual_digits=True), tokenizer.backend_tokenizer.pre_tokenizer]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)


def free_digits(tokenizer: PreTrainedTokenizerFast) -> None:
    """Make the numbers 00 and 99 tokens."""
    tokenizer.backend_tokenizer.add_tokens(["00", "99"])


def test_align_writes_an_alignment_its_report_and_what_a_person_wants_to_know(
    tmp_path: Path, tiny_tokenizer_dirs: Dirs, tiny_model_dir: MakeModel
) -> None:
    small, large = tiny_tokenizer_dirs
    alignment, report, told = run_align(tiny_model_dir(small), large, tmp_path / "align")
    source, target = (set(AutoTokenizer.from_pretrained(path).get_vocab()) for path in (small, large))
    # Both are byte-level, so equal bytes are equal strings; the one special token is matched by its role instead.
    assert report["matches"]["bytes"] == len(source & target) - 1
    assert report["matches"]["role"] == 1
    assert report["matches"]["pieces"] == len(target - source)
    assert alignment.target_size == len(target)
    assert alignment.fingerprint == report["fingerprint"]
    assert f"{len(target - source)} are made of" in told
    metrics = json.loads((tmp_path / "align" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["exact_share"] == pytest.approx((len(source & target) - 1) / len(target))
    assert metrics["coverage"] == 1.0
    assert report["schema_version"] == 1
    assert report["vocabulary_tensors"] == {
        "matrix_rows": len(source),
        "tied": True,
        "tensors": [
            {"name": "model.embed_tokens.weight", "role": "input", "shape": [len(source), 32], "tied_to": None}
        ],
    }


def test_options_reach_the_alignment(tmp_path: Path, tiny_tokenizer_dirs: Dirs, tiny_model_dir: MakeModel) -> None:
    small, large = tiny_tokenizer_dirs
    student = tiny_model_dir(small)
    tokens = AutoTokenizer.from_pretrained(large).get_vocab()
    plain, _, _ = run_align(student, large, tmp_path / "plain")
    end = "<|endoftext|>"
    overridden, report, told = run_align(student, large, tmp_path / "override", override={end: "a", " the": 5})
    assert overridden.match[tokens[end]] == Match.OVERRIDE
    assert report["matches"]["override"] == 2
    assert "2 tokens by `override`" in told
    assert overridden.fingerprint != plain.fingerprint
    _, folded, told = run_align(student, large, tmp_path / "fold", fold=["case", "space"])
    assert folded["matches"]["folded"] > 0
    assert f"{folded['matches']['folded']} tokens but for what `fold` overlooks" in told


@pytest.mark.parametrize("policy", ["warn", "refuse", "ignore"])
def test_a_clash_of_digit_schemes_is_told_refused_or_ignored(
    tmp_path: Path, tiny_tokenizer_dirs: Dirs, tiny_model_dir: MakeModel, policy: str
) -> None:
    single = changed(tiny_tokenizer_dirs[0], tmp_path / "single", cut_digits)
    free = changed(tiny_tokenizer_dirs[1], tmp_path / "free", free_digits)
    student = tiny_model_dir(single)
    sentence = "the student cuts numbers after every digit, the target wherever its merges do"
    if policy == "refuse":
        with pytest.raises(StageError, match=sentence):
            run_align(student, free, tmp_path / "clash", digits=policy)
    else:
        _, report, told = run_align(student, free, tmp_path / "clash", digits=policy)
        assert report["digits"]["verdict"] == "clash"
        assert (f"warning: {sentence}" in told) is (policy == "warn")
    _, report, told = run_align(student, single, tmp_path / "same", digits=policy)
    assert report["digits"]["verdict"] == "same"
    assert "warning" not in told


def test_a_tokenizer_that_lower_cases_is_refused_unless_case_is_folded(
    tmp_path: Path, tiny_tokenizer_dirs: Dirs, tiny_model_dir: MakeModel
) -> None:
    def lower(tokenizer: PreTrainedTokenizerFast) -> None:
        tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()

    target = changed(tiny_tokenizer_dirs[1], tmp_path / "lower", lower)
    student = tiny_model_dir(tiny_tokenizer_dirs[0])
    with pytest.raises(StageError, match=r"lower-cases all text"):
        run_align(student, target, tmp_path / "refused")
    _, report, _ = run_align(student, target, tmp_path / "folded", fold=["case"])
    assert report["target"]["exact"] is False
    assert report["target"]["inexact_reasons"]


def test_an_override_of_an_unknown_token_is_refused_by_name(
    tmp_path: Path, tiny_tokenizer_dirs: Dirs, tiny_model_dir: MakeModel
) -> None:
    small, large = tiny_tokenizer_dirs
    with pytest.raises(
        StageError, match=r"tokenizer 'target' has no token '<\|endoftxt\|>'; close to it are '<\|endoftext\|>'"
    ):
        run_align(tiny_model_dir(small), large, tmp_path / "align", override={"<|endoftxt|>": "a"})


def test_added_tokens_without_a_row_are_left_out_and_a_vocabulary_without_rows_is_refused(
    tmp_path: Path, tiny_tokenizer_dirs: Dirs, tiny_model_dir: MakeModel
) -> None:
    def add(tokenizer: PreTrainedTokenizerFast) -> None:
        tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])

    small, large = tiny_tokenizer_dirs
    student = tiny_model_dir(small)
    changed(small, student, add)
    target = changed(small, tmp_path / "target", add)
    rows = len(AutoTokenizer.from_pretrained(small))
    alignment, _, _ = run_align(student, target, tmp_path / "added")
    assert alignment.source_size == rows
    assert alignment.match[rows] == Match.PIECES

    AutoTokenizer.from_pretrained(large).save_pretrained(student)
    last = len(AutoTokenizer.from_pretrained(large)) - 1
    with pytest.raises(StageError, match=rf"ids up to {last}, its model has only {rows} rows"):
        run_align(student, target, tmp_path / "refused")


def test_a_model_whose_tensors_cannot_be_told_is_aligned_with_a_warning(
    tmp_path: Path, tiny_tokenizer_dirs: Dirs, tiny_model_dir: MakeModel
) -> None:
    student = tiny_model_dir(tiny_tokenizer_dirs[0])
    weights = load_file(student / "model.safetensors")
    weights["model.other.embed_tokens.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, student / "model.safetensors")
    _, report, told = run_align(student, tiny_tokenizer_dirs[1], tmp_path / "align")
    assert (
        "several tensors have the name and the shape of the input matrix"
        in report["vocabulary_tensors"]["unknown_because"]
    )
    assert "warning: the student's vocabulary tensors are not known" in told


@pytest.mark.parametrize("options", [{"fold": ["lower"]}, {"digits": "error"}, {"override": {"a": 1.5}}, {"folds": []}])
def test_options_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Align.Config(**options)


def test_the_end_of_a_turn_is_matched_whatever_it_is_called(
    tmp_path: Path, tiny_chat_dirs: Dirs, tiny_model_dir: MakeModel
) -> None:
    def rename_turn(tokenizer: PreTrainedTokenizerFast) -> None:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<eot>"]})
        tokenizer.chat_template = tokenizer.chat_template.replace("<|turn|>", "<eot>")

    source, target = tiny_chat_dirs[0], changed(tiny_chat_dirs[1], tmp_path / "target", rename_turn)
    alignment, _, _ = run_align(tiny_model_dir(source), target, tmp_path / "align")
    ends = [AutoTokenizer.from_pretrained(path).convert_tokens_to_ids(end) for path, end in
            ((target, "<eot>"), (source, "<|turn|>"))]  # fmt: skip
    assert alignment.match[ends[0]] == Match.ROLE
    assert alignment.pieces_of(ends[0]).tolist() == [ends[1]]
