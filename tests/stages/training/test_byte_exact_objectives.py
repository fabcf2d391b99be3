"""``byte_level`` and ``likelihood_scoring`` on pairs that the harness of all objectives does not have."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from objective_world import World, evaluate, hidden_states, make_world, signals
from pydantic import ValidationError
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from stages.objectives import LossEntry
from stages.stage import StageError
from stages.training.data.batch import Batch
from stages.training.models import Reads


def cut_vocabulary(source: Path, size: int, directory: Path) -> Path:
    """The tokenizer with its first ``size`` ids and the merges that make them."""
    content = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    model = content["model"]
    model["vocab"] = {entry: token for entry, token in model["vocab"].items() if token < size}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]
    end = AutoTokenizer.from_pretrained(source).eos_token
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), bos_token=end, eos_token=end, pad_token=end
    ).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def subset(tiny_tokenizer_dirs, tmp_path_factory) -> World:
    teacher = tiny_tokenizer_dirs[1]
    return make_world(teacher, cut_vocabulary(teacher, 300, tmp_path_factory.mktemp("cut")))


def comparable(batch: Batch) -> Tensor:
    """bool [B, T]: student tokens of all chunks but a window's first, which has no context before it."""
    return batch.student.chunk > 0


def test_every_student_token_of_a_cut_vocabulary_has_a_target(subset):
    batch = subset.batch()
    found = evaluate(subset, subset.build("likelihood_scoring"), batch)
    assert int(found.count) == int(comparable(batch).sum())
    assert found.metrics["token_coverage"].tolist() == [int(found.count), int(batch.student.scored.sum())]


def dense_loss(world: World, batch: Batch, q: Tensor, p: Tensor) -> float:
    """Sum of the divergences, trying every teacher token at every realised beginning; [T, V] probabilities a side."""
    teacher, student = world.pair.teacher, world.pair.student
    model = AutoTokenizer.from_pretrained(student.directory).backend_tokenizer.model
    entries = AutoTokenizer.from_pretrained(teacher.directory).get_vocab()
    special = set(teacher.view.special_tokens)
    pieces = {
        token: (student.roles["eos"],) if token in special else tuple(each.id for each in model.tokenize(entry))
        for entry, token in entries.items()
    }
    tokens, text = batch.teacher.ids[0].tolist(), batch.student.ids[0].tolist()
    cut = [piece for token in tokens[1:] for piece in pieces[token]]
    assert cut == text[1:]
    total = 0.0
    for place in range(len(cut)):
        target, ended, before, begin = torch.zeros(p.shape[1], dtype=torch.float64), 0.0, 1.0, 0
        for row, realised in enumerate(tokens[1:]):
            if begin > place:
                break
            done = tuple(cut[begin:place])
            for token, spelled in pieces.items():
                if spelled[: len(done)] == done and len(spelled) > len(done):
                    target[spelled[len(done)]] += before * q[row, token]
                elif spelled == done and token != realised:
                    ended += before * float(q[row, token])
            before *= float(q[row, realised])
            begin += len(pieces[realised])
        mass = target.sum() + ended
        target, ended, cells = target / mass, float(ended / mass), target > 0
        total += float((target[cells] * (target[cells] / p[place, cells]).log()).sum())
        if ended:
            total += ended * math.log(ended / float(p[place, ~cells].sum()))
    return total


def test_the_loss_is_that_of_trying_every_teacher_token_everywhere(subset):
    batch = subset.batch(subset.windows[-1:])
    objective = subset.build("likelihood_scoring")
    teacher, student = (
        signals(subset, batch, side, Reads(label=True), hidden_states(subset, batch, side, seed=seed))
        for side, seed in (("teacher", 1), ("student", 2))
    )
    found = objective.loss(batch, teacher, student, objective.statistics(batch, teacher))
    expected = dense_loss(subset, batch, *(side.head.log_probs(slice(None)).exp() for side in (teacher, student)))
    assert float(found.total) == pytest.approx(expected, rel=1e-9)
    assert 0 < found.metrics["lower_bound"][0] < found.count


def test_padding_and_micro_batches_change_nothing_for_a_real_subset(subset):
    objective = subset.build("likelihood_scoring")
    whole = evaluate(subset, objective, subset.batch())
    parts = [evaluate(subset, objective, subset.batch([window])) for window in subset.windows]
    assert sum(float(part.total) for part in parts) == pytest.approx(float(whole.total), rel=1e-10)
    assert sum(int(part.count) for part in parts) == int(whole.count)


def test_a_vocabulary_that_is_no_subset_is_refused_with_the_way_out(subset):
    with pytest.raises(StageError, match=r"lies inside the teacher's.*no tokens of the teacher.*Use bpm"):
        make_world(subset.pair.student.directory, subset.pair.teacher.directory).build("likelihood_scoring")


def test_tables_are_kept_for_the_pair(subset, tmp_path):
    world = replace(subset, pair=replace(subset.pair, cache=tmp_path))
    batch = world.batch()
    for name in ("likelihood_scoring", "byte_level"):
        places = (world, world, subset)
        first, second, without = (float(evaluate(each, each.build(name), batch).total.detach()) for each in places)
        assert first == second == without
    assert len(list(tmp_path.iterdir())) == 2


def test_bytes_beyond_the_last_head_have_no_loss(subset):
    batch = subset.batch()
    counts = [int(evaluate(subset, subset.build("byte_level", heads=heads), batch).count) for heads in (1, 2, 10)]
    lengths = batch.student.lengths[comparable(batch)]
    assert counts == [int(lengths.clamp(max=heads).sum()) for heads in (1, 2, 10)]


def test_each_head_learns_the_bytes_of_its_place(subset):
    """The gradient of a head's bias is its mean prediction less its targets: negative at bytes of that place alone."""
    objective = subset.build("byte_level", heads=3, kl_weight=0)
    batch = subset.batch()
    evaluate(subset, objective, batch).total.backward()
    gradient = objective.auxiliary.bias.grad.view(3, 256)
    view = subset.pair.student.view
    spelled = [view.token_bytes(token) for token in batch.student.ids[comparable(batch)].tolist()]
    for place in range(3):
        occurring = {token[place] for token in spelled if len(token) > place}
        assert set((gradient[place] < 0).nonzero().flatten().tolist()) == occurring


def test_the_heads_are_drawn_from_the_seed(subset):
    first, second = (subset.build("byte_level").auxiliary.weight for _ in range(2))
    other = replace(subset, pair=replace(subset.pair, seed=8)).build("byte_level").auxiliary.weight
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_heads_without_any_part_of_the_loss_are_refused():
    with pytest.raises(ValidationError, match="are both 0"):
        LossEntry.model_validate({"byte_level": {"cross_entropy_weight": 0, "kl_weight": 0}})
