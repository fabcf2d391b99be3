"""What rows of tokens have in common is computed once, and their scores are those of every row on its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from stages.evaluation.scoring import score_windows
from stages.evaluation.shared_contexts import Branch, SharedScoring, computed_tokens, plan
from stages.evaluation.token_scorer import RequestRow
from stages.stage import StageError

VOCABULARY = 40
_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
_GPT2 = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256}
_NARROW = {**_SMALL, "num_key_value_heads": 1, "sliding_window": 24}
"""A window that is shorter than what rows share."""


@pytest.fixture(scope="module", params=["llama", "gpt2", "mistral with a sliding window"])
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    torch.manual_seed(3)
    match request.param:
        case "llama":
            return LlamaForCausalLM(LlamaConfig(**_SMALL)).eval()
        case "gpt2":
            return GPT2LMHeadModel(GPT2Config(**_GPT2, initializer_range=0.3)).eval()
    return MistralForCausalLM(MistralConfig(**_NARROW)).eval()


def row(ids: Sequence[int], first_scored: int) -> RequestRow:
    return RequestRow(np.array(ids, dtype=np.int32), 0, first_scored)


def questions(tasks: int = 2, each: int = 3, options: int = 3) -> list[RequestRow]:
    """Solved examples of a task, a question, an option: of every length, the scored option last."""
    rng = np.random.default_rng(7)
    rows = []
    for task in range(tasks):
        examples = rng.integers(0, VOCABULARY, 40 + 5 * task).tolist()
        for number in range(each):
            context = examples + rng.integers(0, VOCABULARY, 18 + number).tolist()
            rows += [
                row(context + rng.integers(0, VOCABULARY, 2 + option).tolist(), len(context))
                for option in range(options)
            ]
    return [rows[index] for index in rng.permutation(len(rows))]


def one_by_one(model: torch.nn.Module, rows: Sequence[RequestRow]) -> tuple[list[float], list[int]]:
    """Log-probability and greedy token of every scored token: a row at a time, in float64."""
    logp, greedy = [], []
    model = model.double()
    for one in rows:
        with torch.no_grad():
            table = model(torch.from_numpy(one.ids).long()[None]).logits[0].log_softmax(-1)
        for place in range(one.first_scored, len(one.ids)):
            logp.append(float(table[place - 1, one.ids[place]]))
            greedy.append(int(table[place - 1].argmax()))
    model.float()
    return logp, greedy


@pytest.mark.parametrize("batch_tokens", [16, 150, 4096])
def test_scores_are_those_of_every_row_on_its_own(model: torch.nn.Module, batch_tokens: int) -> None:
    rows = questions()
    branches = plan(rows)
    shares: list[float] = []
    scores = SharedScoring(model, VOCABULARY, batch_tokens=batch_tokens, on_batch=shares.append)(rows, branches)
    logp, greedy = one_by_one(model, rows)
    np.testing.assert_allclose(scores.logp, logp, atol=2e-5)
    assert scores.greedy.tolist() == greedy
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_what_is_shared_is_a_tree_of_examples_questions_and_options() -> None:
    rows = questions(tasks=2, each=3, options=3)
    branches = plan(rows)
    assert [(len(task.ids), task.row, len(task.branches)) for task in branches] in (
        [(40, None, 3), (45, None, 3)],
        [(45, None, 3), (40, None, 3)],
    )
    for task in branches:
        # 18, 19 and 20 tokens of question; each option computes the last one of them itself.
        assert sorted(len(question.ids) - len(task.ids) for question in task.branches) == [17, 18, 19]
        assert all(len(question.branches) == 3 for question in task.branches)
    # 40 + 45 of examples; 17 + 18 + 19 of questions, twice; 1 and 2, 3 or 4 of each of 18 options.
    assert computed_tokens(branches) == 85 + 2 * 54 + 6 * (3 + 4 + 5)


def leaves(branches: Sequence[Branch], known: tuple[int, ...] = ()) -> list[tuple[int, tuple[int, ...]]]:
    """Every row of a tree with its tokens, having checked that each branch goes on from its parent."""
    found = []
    for branch in branches:
        assert branch.ids[: len(known)] == known
        assert len(branch.ids) > len(known)
        found += leaves(branch.branches, branch.ids) if branch.row is None else [(branch.row, branch.ids)]
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 60), st.integers(1, 5)), min_size=1, max_size=12))
def test_every_row_is_once_in_the_tree_behind_what_it_begins_with(drawn: list[tuple[int, int, int]]) -> None:
    """Rows are pieces of four periodic texts, so that they share anything from nothing to all of a context."""
    rows = [
        row([(period + 2) * place % 7 for place in range(context + more)], context) for period, context, more in drawn
    ]
    branches = plan(rows)
    if branches is None:
        return
    texts = [tuple(one.ids.tolist()) for one in rows]
    assert sorted(leaves(branches)) == sorted(enumerate(texts))
    assert computed_tokens(branches) <= 0.8 * sum(map(len, texts))


def test_rows_that_share_little_are_not_worth_it() -> None:
    rng = np.random.default_rng(0)
    assert plan([row(rng.integers(0, VOCABULARY, 50), 40) for _ in range(8)]) is None
    assert plan([row([1] * 10 + [option], 10) for option in range(9)]) is None


def test_a_model_whose_log_probabilities_are_not_finite_is_refused() -> None:
    torch.manual_seed(3)
    broken = LlamaForCausalLM(LlamaConfig(**_SMALL)).eval()
    rows = questions(tasks=1)
    score = SharedScoring(broken, VOCABULARY, batch_tokens=512, on_batch=lambda share: None)
    # One token's own embedding, out of the first sixteen that the head is checked with.
    token = int(rows[0].ids[-2])
    broken.model.embed_tokens.weight.data[token] = math.nan
    with pytest.raises(StageError, match="not finite"):
        score(rows, plan(rows))


def test_the_two_ways_to_score_agree(model: torch.nn.Module) -> None:
    rows = questions(tasks=1)
    alone = score_windows(
        model, rows, prefix_ids=(), vocab_size=VOCABULARY, batch_tokens=256, on_batch=lambda share: None
    )
    shared = SharedScoring(model, VOCABULARY, batch_tokens=256, on_batch=lambda share: None)(rows, plan(rows))
    np.testing.assert_allclose(shared.logp, alone.logp, atol=2e-5)
    assert shared.greedy.tolist() == alone.greedy.tolist()
