"""What a student writes after prompts."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from prompt_world import first_prompt, stream, texts
from transformers import AutoModelForCausalLM

from alignment.byte_view import ByteView
from stages.stage import StageContext, StageError, StageInterrupted
from stages.training.backends import process_group
from stages.training.on_policy.options import OnPolicyOptions
from stages.training.on_policy.prompts import Prompt
from stages.training.on_policy.rollouts import Author, whole_characters


@pytest.fixture(scope="module")
def model(tiny_tokenizer_dirs, tiny_model_dir):
    """A random student with preferences, in float64, so that a batch's padding rounds nothing that matters."""
    student = AutoModelForCausalLM.from_pretrained(tiny_model_dir(tiny_tokenizer_dirs[1], tied=False)).double()
    student.get_output_embeddings().weight.data *= 5
    return student.train()


def author(model, view: ByteView, **options) -> Author:
    settings = {name: options.pop(name) for name in list(options) if name in Author.__dataclass_fields__}
    student = SimpleNamespace(model=model, training=True, eval=model.eval, train=model.train)
    return Author(student, view, OnPolicyOptions(**{"max_new_tokens": 12} | options), seed=3, **settings)


def test_a_rollout_depends_on_its_number_and_not_on_its_neighbours_or_processes(aligner, model):
    view = aligner.views[1]
    prompts = stream(aligner, texts()).take(7)
    whole = author(model, view).write(prompts)
    assert author(model, view, batch=1).write(prompts) == whole
    shares = []

    def collect(mine):
        shares.append(mine)
        return [mine]

    for rank in range(3):
        with pytest.raises(KeyError):  # alone, a process has its own share only
            author(model, view, batch=2, rank=rank, world_size=3, exchange=collect).write(prompts)
    joined = author(model, view, batch=2, rank=2, world_size=3, exchange=lambda mine: shares).write(prompts)
    assert [rollout.ids for rollout in joined] == [rollout.ids for rollout in whole]
    assert model.training
    assert len({rollout.ids for rollout in whole}) == 7
    again = author(model, view).write([Prompt(**{**vars(prompts[0]), "number": 99})])
    assert again[0].ids != whole[0].ids


def test_tokens_are_sampled_from_the_students_distribution(aligner, model):
    view = aligner.views[1]
    prompt = first_prompt(aligner)
    prompts = [Prompt(**{**vars(prompt), "number": n}) for n in range(4000)]
    first = [rollout for rollout in author(model, view, max_new_tokens=1).write(prompts)]
    model.eval()
    with torch.no_grad():
        logits = model(torch.tensor([prompt.ids])).logits[0, -1, : view.vocab_size]
    expected = logits.softmax(-1)
    found = Counter(rollout.ids[0] for rollout in first if rollout.ids)
    for token in expected.topk(3).indices.tolist():
        if view.special_tokens.get(token) is None and rollout_spells(token, view):
            assert found[token] / 4000 == pytest.approx(float(expected[token]), abs=0.035)
    special = list(view.special_tokens)
    assert first[0].end_mass == pytest.approx(float(expected[special].sum()), rel=1e-5)
    model.train()


def rollout_spells(token: int, view: ByteView) -> bool:
    """Whether a token is whole characters by itself."""
    return bool(whole_characters([token], view)[1])


def test_a_student_with_damaged_weights_is_an_error_in_every_process(aligner, model):
    prompts = [first_prompt(aligner)]

    def fails(mine):
        assert isinstance(mine, StageError)
        return [{}, mine]

    norm = model.model.norm.weight
    kept = norm.data.clone()
    norm.data[0] = float("nan")
    with pytest.raises(StageError, match="the student's logits are not finite"):
        author(model, aligner.views[1], exchange=fails).write(prompts)
    norm.data.copy_(kept)
    assert model.training


@pytest.mark.parametrize("sharded", [False, True])
def test_a_process_that_is_asked_to_stop_while_it_writes_ends_all_of_them(
    aligner, model, tmp_path, monkeypatch, sharded
):
    prompts = stream(aligner, texts()).take(6)
    polls, parts, shares, generate = iter([False] * 3), [], [], model.generate

    def generated(ids, **options):
        parts.append(len(ids))
        return generate(ids, **options)

    def collect(mine):
        shares.append(mine)
        return [mine]

    monkeypatch.setattr(model, "generate", generated)
    asked = {"rank": 1, "world_size": 2, "exchange": collect, "should_stop": lambda: next(polls, True)}
    with process_group.left_in_the_end():
        ctx = StageContext(config=None, inputs={}, work=tmp_path, out=tmp_path)
        process_group.join(ctx, torch.device("cpu"), alone=sharded)
        with pytest.raises(StageInterrupted):
            author(model, aligner.views[1], batch=1, sharded=sharded, **asked).write(prompts)
    # Where the parameters are split, the other process needs this one for each of its parts.
    assert parts == ([1, 1, 1] if sharded else [1])
    assert model.training

    def exchanged(mine):
        assert set(mine) == {0, 2, 4}, "the other one has written all of its share"
        return [mine, *shares]

    with pytest.raises(StageInterrupted):
        author(model, aligner.views[1], batch=1, rank=0, world_size=2, exchange=exchanged).write(prompts)


def test_the_models_own_settings_for_generation_come_back(aligner, model):
    before = model.generation_config.to_dict()
    author(model, aligner.views[1]).write([first_prompt(aligner)])
    assert model.generation_config.to_dict() == before


def test_what_is_no_text_is_left_out_from_there_on():
    view = ByteView.from_token_bytes([b"a", b"\xc3", b"\xa4", b"\xff", "東".encode()[:2], None])
    assert whole_characters([0, 1, 2, 0], view) == ([0, 1, 2, 0], "aäa")
    assert whole_characters([0, 1], view) == ([0], "a")
    assert whole_characters([0, 3, 0], view) == ([0], "a")
    assert whole_characters([4], view) == ([], "")
