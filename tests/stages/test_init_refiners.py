"""Refiners: what they improve, measured in another way, and what they must leave bit by bit as it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from init_world import make_transplant
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from alignment.byte_view import ByteView
from alignment.spans import align_texts
from losses.predictions import LinearHead
from stages.init import Init
from stages.initialisation.refining import REFINERS, build_refiner
from stages.initialisation.shared_body import SharedBody, trained_cross_entropy
from stages.initialisation.snippets import count_tokens, find_snippets, most_frequent
from stages.initialisation.task import Transplant
from stages.initializers.refiners import NormCalibrationOptions, RefinerEntry, TokenDistillOptions
from stages.stage import StageError, StageInterrupted
from stages.training.data.batch import collate

WORDS = (
    *("The quick brown fox", "jumps over the lazy dog", "Tokens are byte strings", "two tokenizations of one text"),
    *("meet where their boundaries coincide", "and the dog sleeps on", "return left + right", "naïve façade"),
)
TEXTS = tuple(f"{a}, {b}. {c}; {a}!" for a in WORDS for b in WORDS for c in WORDS[:3])
UNSEEN_TEXT = "The dog sleeps where two lazy strings of text meet, and the quick fox jumps over their boundaries."


@dataclasses.dataclass(frozen=True)
class Student:
    """A random student, the transplant to a tokenizer with longer tokens, and means of pieces for the new rows."""

    transplant: Transplant
    rows: dict[str, Tensor]
    new: Tensor

    def copy(self) -> dict[str, Tensor]:
        return {role: matrix.clone() for role, matrix in self.rows.items()}

    def model(self, rows: dict[str, Tensor]) -> nn.Module:
        """The student with ``rows``, as transformers runs it."""
        model = AutoModelForCausalLM.from_pretrained(self.transplant.student).eval()
        model.resize_token_embeddings(len(rows["input"]), mean_resizing=False)
        with torch.no_grad():
            model.get_input_embeddings().weight.copy_(rows["input"])
            if "output" in rows:
                model.get_output_embeddings().weight.copy_(rows["output"])
        return model


def _student(directory: Path, tokenizer: Path, work: Path, texts=TEXTS) -> Student:
    views = ByteView.from_tokenizer(directory), ByteView.from_tokenizer(tokenizer)
    transplant = make_transplant(views=views, texts=texts, directory=directory)
    transplant = dataclasses.replace(transplant, work=work)
    model = AutoModelForCausalLM.from_pretrained(directory)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    layers = {"input": model.get_input_embeddings()} | ({} if tied else {"output": model.get_output_embeddings()})
    rows = {
        role: torch.stack(
            [
                layer.weight[torch.from_numpy(transplant.alignment.pieces_of(token)).long()].mean(dim=0)
                for token in range(views[1].vocab_size)
            ]
        ).detach()
        for role, layer in layers.items()
    }
    return Student(transplant, rows, torch.from_numpy(~transplant.alignment.copied))


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def student(request, tiny_model_dir, tiny_tokenizer_dirs, tmp_path) -> Student:
    return _student(tiny_model_dir(tiny_tokenizer_dirs[0], tied=request.param), tiny_tokenizer_dirs[1], tmp_path)


def _distill(student: Student, rows: dict[str, Tensor], **options: object) -> dict[str, float]:
    options = {"learning_rate": 3e-3, "snippets": 8, "snippet_tokens": 24, "batch_snippets": 8} | options
    refiner = build_refiner(TokenDistillOptions(method="token_distill", **options), student.transplant)
    return refiner.refine(rows, student.new)


def _distance(student: Student, rows: dict[str, Tensor], text: str, layer: int, trained: Tensor) -> float:
    """The squared distance of the two readings of a whole text, from two ordinary models, position by position."""
    source, target, _ = align_texts(student.transplant.source, student.transplant.target, text)
    own = AutoModelForCausalLM.from_pretrained(student.transplant.student).eval()
    states = []
    for model, encoding in ((own, source), (student.model(rows), target)):
        ids = torch.from_numpy(encoding.ids).long()[None]
        with torch.no_grad():
            states.append(model.base_model(ids, output_hidden_states=True).hidden_states[layer][0].double())
    where = {int(end): index for index, end in enumerate(source.byte_ends)}
    first = min(int(end) for token, end in zip(target.ids, target.byte_ends, strict=True) if token in trained)
    pairs = [(where[int(end)], i) for i, end in enumerate(target.byte_ends) if int(end) in where and end >= first]
    return float(np.mean([float((states[0][i] - states[1][j]).square().mean()) for i, j in pairs]))


def test_the_readings_come_closer_on_text_that_was_not_trained_on(student):
    rows = student.copy()
    numbers = _distill(student, rows, epochs=4)
    assert numbers["held_out_distance"] < 0.6 * numbers["held_out_distance_before"]
    changed = (rows["input"] != student.rows["input"]).any(dim=1).nonzero().flatten()
    before, after = (_distance(student, each, UNSEEN_TEXT, -1, changed) for each in (student.rows, rows))
    assert after < 0.7 * before


def test_only_rows_of_new_tokens_in_the_text_change(student):
    rows = student.copy()
    numbers = _distill(student, rows)
    view = student.transplant.target
    seen = set(np.concatenate([view.encode(text).ids for text in TEXTS]).tolist())
    expected = student.new & torch.tensor([token in seen for token in range(view.vocab_size)])
    assert 0 < int(expected.sum()) < int(student.new.sum())
    for role, matrix in rows.items():
        assert torch.equal((matrix != student.rows[role]).any(dim=1), expected), role
    assert numbers["tokens"] == int(expected.sum())
    assert numbers["tokens_left_as_they_were"] == int((student.new & ~expected).sum())


def test_the_seed_decides_the_rows(student):
    results = []
    for seed, number in ((1, 0), (1, 1), (2, 2)):
        work = student.transplant.work / str(number)
        seeded = dataclasses.replace(student, transplant=dataclasses.replace(student.transplant, seed=seed, work=work))
        results.append(seeded.copy())
        _distill(seeded, results[-1], max_tokens=5)
    for role in student.rows:
        assert torch.equal(results[0][role], results[1][role])
        assert not torch.equal(results[0][role], results[2][role])


def test_an_interrupted_training_ends_like_an_uninterrupted_one(student):
    expected = student.copy()
    _distill(student, expected)
    steps = iter(range(1000))
    lines: list[str] = []

    # Reading the text asks as well; only then does training begin.
    def stop() -> bool:
        return any("training the rows" in line for line in lines) and next(steps) == 3

    again = dataclasses.replace(
        student.transplant, should_stop=stop, progress=lines.append, work=student.transplant.work / "again"
    )
    rows = student.copy()
    with pytest.raises(StageInterrupted):
        _distill(dataclasses.replace(student, transplant=again), rows)
    for role in rows:
        assert torch.equal(rows[role], student.rows[role])
    assert Init.resume_point(again.work) == "step 3 of token_distill"
    _distill(dataclasses.replace(student, transplant=again), rows)
    assert "token_distill: resuming after step 3" in lines
    for role in rows:
        assert torch.equal(rows[role], expected[role])


def test_output_rows_learn_to_predict_the_new_tokens(tiny_model_dir, tiny_tokenizer_dirs, tmp_path):
    student = _student(tiny_model_dir(tiny_tokenizer_dirs[0], tied=False), tiny_tokenizer_dirs[1], tmp_path)
    losses, inputs = {}, {}
    for output in ("cross_entropy", "keep"):
        rows = student.copy()
        _distill(student, rows, epochs=2, output=output)
        assert torch.equal(rows["output"], student.rows["output"]) == (output == "keep")
        inputs[output] = rows["input"]
        ids = torch.from_numpy(student.transplant.target.encode(UNSEEN_TEXT).ids).long()
        is_new = student.new[ids[1:]]
        with torch.no_grad():
            logits = student.model(rows)(ids[None]).logits[0, :-1]
        losses[output] = float(F.cross_entropy(logits[is_new], ids[1:][is_new]))
    assert losses["cross_entropy"] < losses["keep"] - 0.1
    # What is to be read is learned from the other reading alone.
    assert torch.equal(inputs["cross_entropy"], inputs["keep"])


def test_half_precision_rows_stay_half_precision(tiny_model_dir, tiny_tokenizer_dirs, tmp_path):
    directory = tiny_model_dir(tiny_tokenizer_dirs[0])
    AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).save_pretrained(directory)
    student = _student(directory, tiny_tokenizer_dirs[1], tmp_path)
    rows = student.copy()
    numbers = _distill(student, rows, epochs=2)
    assert rows["input"].dtype == torch.bfloat16
    assert torch.equal(rows["input"][~student.new], student.rows["input"][~student.new])
    assert numbers["held_out_distance"] < 0.9 * numbers["held_out_distance_before"]


def test_text_without_new_tokens_changes_nothing_and_says_so(tiny_model_dir, tiny_tokenizer_dirs, tmp_path):
    student = _student(tiny_model_dir(tiny_tokenizer_dirs[0]), tiny_tokenizer_dirs[1], tmp_path, texts=["q q q", ""])
    lines: list[str] = []
    student = dataclasses.replace(student, transplant=dataclasses.replace(student.transplant, progress=lines.append))
    rows = student.copy()
    assert _distill(student, rows)["tokens"] == 0
    assert torch.equal(rows["input"], student.rows["input"])
    assert any(line.startswith("warning: token_distill found no new token") for line in lines)


FAMILIES = {
    "llama": {},
    "gemma3_text": {"head_dim": 8},  # scales its embeddings inside the embedding module
    "gpt2": {},
}


@pytest.mark.parametrize("layer", [-1, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_readings_by_one_body_are_those_of_two_models(tiny_tokenizer_dirs, tmp_path, family, layer):
    torch.manual_seed(3)
    distinct = np.unique(ByteView.from_tokenizer(tiny_tokenizer_dirs[1]).encode(UNSEEN_TEXT).ids)
    config = AutoConfig.for_model(
        family,
        vocab_size=len(AutoTokenizer.from_pretrained(tiny_tokenizer_dirs[0])),
        **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": 0, "eos_token_id": 0},
        **({"intermediate_size": 64, "num_key_value_heads": 2} if family != "gpt2" else {}),
        # The embedding drops the gradient of this row, which is no row of the few that a batch reads.
        pad_token_id=len(distinct) - 1,
        **FAMILIES[family],
    )
    directory = tmp_path / family
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    AutoTokenizer.from_pretrained(tiny_tokenizer_dirs[0]).save_pretrained(directory)
    student = _student(directory, tiny_tokenizer_dirs[1], tmp_path, texts=[UNSEEN_TEXT])
    trained = student.new.nonzero().flatten()
    body = SharedBody(
        directory,
        student.transplant.source.vocab_size,
        layer=layer,
        rows={"input": student.rows["input"]},
        tokens=trained,
        device=torch.device("cpu"),
    )
    rows = student.copy()
    # Other rows than it was given: so the trained ones are seen to be what it reads.
    rows["input"][trained] *= 1.5
    with torch.no_grad():
        body.trained["input"].mul_(1.5)
    counts = count_tokens(student.transplant)
    found = find_snippets(student.transplant, trained.numpy(), counts, snippets=9, tokens=500)
    (window,) = found.training
    total, count, _ = body.compare(collate([window]))
    expected = _distance(student, rows, UNSEEN_TEXT, layer, trained)
    assert float(total.detach() / count) == pytest.approx(expected, rel=1e-4)
    total.backward()
    reached = trained[body.trained["input"].grad.any(dim=1)]
    assert reached.tolist() == [token for token in distinct.tolist() if token in trained]


def test_cross_entropy_over_trained_and_frozen_rows_is_that_over_all():
    draw = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 5, generator=draw, dtype=torch.float64) for n in (40, 13))
    labels = torch.randint(13, (40,), generator=draw)
    tokens = torch.tensor([2, 7, 11])
    whole = weight.clone().requires_grad_()
    expected = F.cross_entropy(4.0 * torch.tanh(1.5 * (hidden @ whole.T) / 4.0), labels)
    (gradient,) = torch.autograd.grad(expected, whole)
    rows = weight[tokens].clone().requires_grad_()
    stale = weight.clone()
    stale[tokens] = 99.0
    head = LinearHead(hidden, stale, softcap=4.0, scale=1.5)
    found = trained_cross_entropy(head, labels, tokens, rows)
    torch.testing.assert_close(found, expected.detach(), check_dtype=False)
    torch.testing.assert_close(torch.autograd.grad(found, rows)[0], gradient[tokens])


def test_snippets_read_the_same_bytes_on_both_sides_and_are_not_held_out_too(student):
    transplant = student.transplant
    counts = count_tokens(transplant)
    wanted = most_frequent(counts, student.new.numpy(), 12, transplant.row_keys)
    few = find_snippets(transplant, wanted, counts, snippets=3, tokens=16)
    every = find_snippets(transplant, wanted, counts, snippets=10**6, tokens=16)
    assert few.tokens.tolist() == every.tokens.tolist() == wanted.tolist()
    assert len(few.training) < len(every.training)
    assert (len(few.held_out), len(every.held_out)) == (64, 0)
    for window in (*few.training, *few.held_out):
        sides = ((transplant.source, window.teacher), (transplant.target, window.student))
        spelled = [b"".join(view.token_bytes(int(token)) for token in side.ids) for view, side in sides]
        assert spelled[0] == spelled[1]
        assert np.isin(window.student.ids, wanted).any()
        assert max(len(side.ids) for _, side in sides) <= 16
    assert not {id(window) for window in few.training} & {id(window) for window in few.held_out}


def test_the_most_frequent_tokens_do_not_depend_on_the_order_of_ids():
    counts = np.array([5, 9, 2, 2, 0, 2, 7])
    candidates = np.array([True, False, True, True, True, True, True])
    keys = np.array([8, 1, 5, 3, 0, 4, 6], dtype=np.uint64)
    assert most_frequent(counts, candidates, 3, keys).tolist() == [0, 3, 6]
    assert most_frequent(counts, candidates, 99, keys).tolist() == [0, 2, 3, 5, 6]
    order = np.random.default_rng(0).permutation(7)
    again = most_frequent(counts[order], candidates[order], 3, keys[order])
    assert sorted(order[again].tolist()) == [0, 3, 6]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layer": 3}, r"layer is 3; the student has the layers 1 to 2, or -2 to -1"),
        ({"layer": -3}, "layer is -3"),
        ({"snippet_tokens": 513}, "snippet_tokens is 513, but the student reads at most 512"),
    ],
)
def test_options_that_do_not_fit_the_student_are_refused_at_once(student, options, said):
    with pytest.raises(StageError, match=said):
        build_refiner(TokenDistillOptions(method="token_distill", **options), student.transplant)


def test_token_distillation_without_text_is_refused(student):
    without = dataclasses.replace(student.transplant, texts=None)
    with pytest.raises(StageError, match=r"looks for the new tokens in data\.train"):
        build_refiner(TokenDistillOptions(method="token_distill"), without)


def test_a_learning_rate_that_diverges_is_an_error(tiny_model_dir, tiny_tokenizer_dirs, tmp_path):
    student = _student(tiny_model_dir(tiny_tokenizer_dirs[0], tied=False), tiny_tokenizer_dirs[1], tmp_path)
    with pytest.raises(StageError, match=r"diverged at step 2; lower its learning_rate"):
        _distill(student, student.copy(), learning_rate=1e37)


def test_entries_are_written_as_names_or_mappings():
    adapter = TypeAdapter(tuple[RefinerEntry, ...])
    first, second = adapter.validate_python(["norm_calibration", {"method": "token_distill", "layer": 4}])
    assert first == NormCalibrationOptions(method="norm_calibration")
    assert second == TokenDistillOptions(method="token_distill", layer=4)
    assert second.wanted_inputs == {"documents"}
    assert set(REFINERS) == {"norm_calibration", "token_distill"}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("norm_calibrate", "norm_calibrate"),
        ({"method": "norm_calibration", "roles": []}, "each of them once"),
        ({"method": "norm_calibration", "roles": ["input", "input"]}, "each of them once"),
        ({"method": "norm_calibration", "fewest": 0}, "greater than or equal to 1"),
        ({"method": "token_distill", "layer": 0}, "layer 0 is the embedding itself"),
        ({"method": "token_distill", "snippets": 0}, "greater than or equal to 1"),
        ({"method": "token_distill", "output": "mean"}, "'cross_entropy' or 'keep'"),
    ],
)
def test_entries_that_make_no_sense_are_refused(entry, said):
    with pytest.raises(ValidationError, match=said):
        TypeAdapter(RefinerEntry).validate_python(entry)
