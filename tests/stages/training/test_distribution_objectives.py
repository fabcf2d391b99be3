"""The objectives that compare distributions over one set of tokens: their options, their pairs, what they report."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from objective_world import World, evaluate, hidden_states, make_world
from pydantic import ValidationError

from alignment.byte_view import ByteView
from stages.objectives import LossEntry
from stages.stage import StageError
from stages.training.objectives import Pair, build_terms


@pytest.fixture(scope="module")
def pair(tiny_tokenizer_dirs) -> World:
    smaller, larger = tiny_tokenizer_dirs
    return make_world(larger, smaller)


@pytest.fixture(scope="module")
def identical(tiny_tokenizer_dirs) -> World:
    return make_world(tiny_tokenizer_dirs[0], tiny_tokenizer_dirs[0], width=5)


def log_probs(world: World, side: str, seed: int) -> torch.Tensor:
    """Log-probabilities [B, T, V] of the made-up model, padding rows of the output matrix left out."""
    size = getattr(world.pair, side).view.vocab_size
    return (hidden_states(world, world.batch(), side, seed=seed) @ world.weights[side][:size].t()).log_softmax(-1)


def test_one_vocabulary_gives_the_ordinary_kl_of_every_predicted_token(identical):
    teacher, student = log_probs(identical, "teacher", 1)[:, :-1], log_probs(identical, "student", 2)[:, :-1]
    predicted = identical.batch().student.scored[:, 1:]
    expected = torch.nn.functional.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)[predicted]
    found = evaluate(identical, identical.build("same_vocabulary"), identical.batch())
    assert found.count == predicted.sum()
    torch.testing.assert_close(found.total, expected.sum())


def test_strict_on_one_vocabulary_keeps_every_token_and_all_mass(identical):
    strict = evaluate(identical, identical.build("strict", divergence="kl"), identical.batch())
    whole = evaluate(identical, identical.build("same_vocabulary"), identical.batch())
    assert strict.count == whole.count
    torch.testing.assert_close(strict.total, whole.total)
    for share in (strict.metrics["token_coverage"], strict.metrics["teacher_shared_mass"]):
        assert float(share[0] / share[1]) == pytest.approx(1)


def test_strict_compares_where_both_cut_alike_and_reports_the_rest(pair):
    batch = pair.batch()
    single = 0
    for teacher, student in zip(batch.teacher.chunk, batch.student.chunk, strict=True):
        for chunk in range(batch.num_chunks):
            places = [(side == chunk).nonzero().flatten().tolist() for side in (teacher, student)]
            single += all(len(place) == 1 and place[0] > 0 for place in places)
    found = evaluate(pair, pair.build("strict", top_k=4), batch)
    assert found.count == single
    kept, scored = found.metrics["token_coverage"]
    assert (kept, scored) == (single, batch.student.scored.sum())
    mass, rows = found.metrics["teacher_shared_mass"]
    assert rows == single
    assert 0 < mass / rows < 1


def test_options_reach_the_loss(identical):
    batch = identical.batch()

    def total(**options: object) -> float:
        return float(evaluate(identical, identical.build("same_vocabulary", **options), batch).total)

    assert total(divergence="jsd", beta=0.0) == pytest.approx(total())
    assert total(divergence="jsd", beta=0.2) != pytest.approx(total(divergence="jsd"))
    hot = total(temperature=2.0)
    assert hot < total()
    assert total(temperature=2.0, scale_by_temperature=True) == pytest.approx(4 * hot)


def test_two_vocabularies_are_refused_with_what_would_work(pair):
    with pytest.raises(StageError, match=r"same_vocabulary .* vocabularies differ: .*strict"):
        pair.build("same_vocabulary")


def with_vocabularies(world: World, *vocabularies: list[bytes]) -> Pair:
    """The pair with tokenizers of the given tokens for teacher and student."""
    sides = [
        replace(facts, view=ByteView.from_token_bytes(tokens), roles={})
        for facts, tokens in zip((world.pair.teacher, world.pair.student), vocabularies, strict=True)
    ]
    return replace(world.pair, teacher=sides[0], student=sides[1])


def test_the_first_token_that_differs_is_named(identical):
    changed = with_vocabularies(identical, [b"a", b"b", b"c"], [b"a", b"x", b"y"])
    with pytest.raises(StageError, match="token 1 is b'b' for the teacher and b'x' for the student"):
        build_terms([LossEntry.model_validate("same_vocabulary")], changed)
    longer = with_vocabularies(identical, [b"a", b"b"], [b"a", b"b", b"c"])
    with pytest.raises(StageError, match="the teacher has 2 tokens, the student 3"):
        build_terms([LossEntry.model_validate("same_vocabulary")], longer)


def test_two_vocabularies_without_a_common_token_are_refused(identical):
    changed = with_vocabularies(identical, [b"a", b"b"], [b"c", b"d"])
    with pytest.raises(StageError, match="of which there are 0"):
        build_terms([LossEntry.model_validate("strict")], changed)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("same_vocabulary", {"beta": 0.5}, "beta is a parameter of divergence: jsd"),
        ("same_vocabulary", {"divergence": "jsd", "alpha": 0.5}, "alpha is a parameter of"),
        ("same_vocabulary", {"divergence": "jsd", "beta": 1.5}, "less than or equal to 1"),
        ("same_vocabulary", {"divergence": "skew_kl", "alpha": 1}, "with itself"),
        ("same_vocabulary", {"divergence": "hinge"}, "reverse_kl"),
        ("same_vocabulary", {"temperature": 0}, "greater than 0"),
        ("strict", {"top_k": 1}, "greater than or equal to 2"),
    ],
)
def test_options_out_of_range_are_refused(name, options, message):
    with pytest.raises(ValidationError, match=message):
        LossEntry.model_validate({name: options})
