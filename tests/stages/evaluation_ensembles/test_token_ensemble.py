"""Models of one tokenizer as one: against whole distributions in float64, and against the members alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from alignment.byte_view import ByteView
from stages.evaluation.core import Request
from stages.evaluation.ensembles import token_level
from stages.evaluation.ensembles.means import Combination
from stages.evaluation.ensembles.options import EnsembleOptions
from stages.evaluation.ensembles.token_level import Member, TokenEnsemble
from stages.evaluation.text_start import TextStart
from stages.evaluation.token_scorer import RequestRow, TokenScorer
from stages.generation.sampling import Sampling

REQUESTS = [
    Request("The quick fox sleeps", " where two boundaries meet."),
    Request("", "The dog jumps on, 東京 🙂."),
    Request("Lazy", " dogs"),
]
PROMPTS = ["The quick brown", "", "naïve dogs sleep where two"]


class World:
    """Two models with opinions and one tokenizer; the second has more rows than it has tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, directories: list[Path]) -> None:
        self.view = ByteView.from_tokenizer(tokenizer)
        self.start = TextStart.of(tokenizer, self.view)
        self.models = [AutoModelForCausalLM.from_pretrained(directory).eval() for directory in directories]
        for model in self.models:
            model.get_output_embeddings().weight.data *= 12
        self.models[1].resize_token_embeddings(self.view.vocab_size + 16, mean_resizing=False)
        # What no token has must not count, however probable it would be.
        self.models[1].get_output_embeddings().weight.data[self.view.vocab_size :] *= 50

    def members(self, starts: tuple[TextStart, ...] | None = None) -> list[Member]:
        starts = starts or (self.start,) * len(self.models)
        return [
            Member(name, model, start, self.view.vocab_size)
            for name, model, start in zip("ab", self.models, starts, strict=True)
        ]

    def ensemble(self, batch_tokens: int = 100, starts=None, **options) -> TokenEnsemble:
        combination = Combination.of(EnsembleOptions(**({"members": ["a", "b"]} | options)))
        return TokenEnsemble("both", self.members(starts), self.view, combination, batch_tokens=batch_tokens)

    def alone(self, index: int, start: TextStart | None = None) -> TokenScorer:
        return TokenScorer("ab"[index], self.models[index], self.view, start or self.start, batch_tokens=100)

    def distributions(self, ids: list[int]) -> torch.Tensor:
        """float64 [M, T, V]: after each of the tokens, by transformers alone."""
        with torch.no_grad():
            logits = [model.double()(torch.tensor([ids])).logits[0, :, : self.view.vocab_size] for model in self.models]
            for model in self.models:
                model.float()
        return torch.stack(logits).softmax(-1)


@pytest.fixture(scope="module")
def world(tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]) -> World:
    directories = [tiny_model_dir(tiny_tokenizer_dirs[1], seed=seed, tied=False) for seed in (5, 6)]
    return World(AutoTokenizer.from_pretrained(directories[0]), directories)


def written(world: World, request: Request) -> tuple[list[int], int]:
    """All tokens with the start in front, and how many are scored."""
    (row,) = world.alone(0).rows([request])
    assert isinstance(row, RequestRow)
    return row.ids.tolist(), len(row.ids) - row.first_scored


@pytest.mark.parametrize("mean", ["arithmetic", "geometric", "mixture"])
def test_scores_are_those_of_whole_distributions(world: World, mean: str) -> None:
    shares = np.array([0.75, 0.25])
    for request, reading in zip(REQUESTS, world.ensemble(weights=[3, 1], mean=mean).read(REQUESTS), strict=True):
        ids, count = written(world, request)
        found = world.distributions(ids).numpy()  # after token t
        before = range(len(ids) - count - 1, len(ids) - 1)
        steps = np.array([[found[member, place, ids[place + 1]] for place in range(len(ids) - 1)] for member in (0, 1)])
        if mean == "mixture":
            context = np.prod(steps[:, : len(ids) - count - 1], axis=1)
            expected = -np.log((shares @ np.prod(steps, axis=1)) / (shares @ context))
        else:
            combined = [
                shares @ found[:, place]
                if mean == "arithmetic"
                else (product := np.prod(found[:, place] ** shares[:, None], axis=0)) / product.sum()
                for place in before
            ]
            expected = -sum(np.log(row[ids[place + 1]]) for row, place in zip(combined, before, strict=True))
        assert reading.score.nats == pytest.approx(expected, rel=1e-5)
        assert reading.score.tokens == count
        assert reading.members == pytest.approx(-np.log(steps[:, -count:]).sum(1), rel=1e-5)
        tops = [[int(found[member, place].argmax()) for place in before] for member in (0, 1)]
        assert reading.disagreements == sum(a != b for a, b in zip(*tops, strict=True))


def test_members_alone_are_as_ever(world: World) -> None:
    readings = world.ensemble().read(REQUESTS)
    for index in (0, 1):
        alone = world.alone(index).score(REQUESTS)
        assert [reading.members[index] for reading in readings] == pytest.approx([score.nats for score in alone])
    assert sum(reading.disagreements for reading in readings) > 0


@pytest.mark.parametrize("mean", ["arithmetic", "geometric", "logit", "mixture"])
def test_one_model_twice_is_that_model(world: World, mean: str) -> None:
    twice = World.__new__(World)
    twice.view, twice.start, twice.models = world.view, world.start, [world.models[1]] * 2
    ensemble, alone = twice.ensemble(mean=mean), world.alone(1)
    for ours, theirs in zip(ensemble.score(REQUESTS), alone.score(REQUESTS), strict=True):
        assert ours.nats == pytest.approx(theirs.nats, rel=1e-6)
        assert (ours.tokens, ours.bytes, ours.greedy) == (theirs.tokens, theirs.bytes, theirs.greedy)
    assert ensemble.generate(PROMPTS, max_bytes=24) == alone.generate(PROMPTS, max_bytes=24)


def test_proxy_tuning_by_tokens(world: World) -> None:
    three = World.__new__(World)
    three.view, three.start, three.models = world.view, world.start, [world.models[0], world.models[1], world.models[1]]
    members = [
        Member(name, model, world.start, world.view.vocab_size) for name, model in zip("abc", three.models, strict=True)
    ]
    proxy = {"base": "a", "expert": "b", "anti": "c"}
    # Expert and anti-expert are one model, so nothing moves.
    combination = Combination.of(EnsembleOptions(proxy=proxy))
    ensemble = TokenEnsemble("moved", members, world.view, combination, batch_tokens=100)
    assert [score.nats for score in ensemble.score(REQUESTS)] == pytest.approx(
        [score.nats for score in world.alone(0).score(REQUESTS)], rel=1e-5
    )


def test_a_mixture_is_one_model_of_texts(world: World) -> None:
    ensemble = world.ensemble(mean="mixture", weights=[1, 4])
    whole, head, tail = ensemble.score(
        [
            Request("The", " quick fox sleeps where two boundaries meet"),
            Request("The", " quick fox sleeps"),
            Request("The quick fox sleeps", " where two boundaries meet"),
        ]
    )
    assert head.nats + tail.nats == pytest.approx(whole.nats, rel=1e-6)
    alone = ensemble.read([Request("The", " quick fox sleeps")])[0].members
    assert min(alone) - np.log(5) - 1e-4 <= head.nats <= max(alone) + 1e-4


def test_neither_batches_nor_blocks_change_anything(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for mean in ("arithmetic", "mixture"):
        expected = [reading.score.nats for reading in world.ensemble(mean=mean).read(REQUESTS)]
        with monkeypatch.context() as patch:
            patch.setattr(token_level, "LOGITS_BLOCK", 3 * world.view.vocab_size)
            found = [reading.score.nats for reading in world.ensemble(batch_tokens=1, mean=mean).read(REQUESTS)]
        assert found == pytest.approx(expected, rel=1e-6)


def naive(world: World, prompt: str, tokens: int) -> list[int]:
    """Greedy tokens of the arithmetic mean, the whole text read again at every step."""
    text = world.view.encode(prompt).ids.tolist()
    ids = text or list(world.start.start_ids)
    new: list[int] = []
    while len(new) < tokens:
        token = int(world.distributions(ids)[:, -1].mean(0).argmax())
        if token in world.view.special_tokens:
            break
        new.append(token)
        ids = [*ids, token]
    return new


def test_greedy_text_is_the_most_probable_token_of_the_mean_each_time(world: World) -> None:
    texts = world.ensemble(batch_tokens=1000).generate(PROMPTS, max_bytes=12)
    for prompt, text in zip(PROMPTS, texts, strict=True):
        data = b"".join(world.view.token_bytes(token) for token in naive(world, prompt, 12))
        assert text is not None
        assert data[:12].decode(errors="ignore").startswith(text)
        assert text.encode() or not data[:12].decode(errors="ignore")
    alone = [world.alone(index).generate(PROMPTS, max_bytes=12) for index in (0, 1)]
    assert texts not in alone


def test_what_scores_as_greedy_is_what_is_written(world: World) -> None:
    for mean in ("arithmetic", "geometric", "mixture"):
        ensemble = world.ensemble(mean=mean)
        (text,) = ensemble.generate(["The quick fox"], max_bytes=10)
        (score,) = ensemble.score([Request("The quick fox", text)])
        if score.problem is None and world.view.encode("The quick fox" + text).ids.tolist() == [
            *world.view.encode("The quick fox").ids.tolist(),
            *world.view.encode(text).ids.tolist(),
        ]:
            assert score.greedy


def test_draws_are_of_the_seed_and_the_prompt_alone(world: World) -> None:
    ensemble, warm = world.ensemble(batch_tokens=1000), Sampling(temperature=1.5)
    together = ensemble.sample(PROMPTS, warm, 1, max_bytes=20)
    assert together == [ensemble.sample([prompt], warm, 1, max_bytes=20)[0] for prompt in PROMPTS]
    assert together != ensemble.sample(PROMPTS, warm, 2, max_bytes=20)
    assert ensemble.sample(PROMPTS, Sampling(temperature=0), 1, max_bytes=20) == ensemble.generate(
        PROMPTS, max_bytes=20
    )


def test_each_member_reads_its_own_start(world: World) -> None:
    end = world.start.start_ids[0]
    added = TextStart((end,), (end,), "added")
    starts = (world.start, added)
    readings = world.ensemble(starts=starts).read(REQUESTS)
    for index, start in enumerate(starts):
        expected = [score.nats for score in world.alone(index, start).score(REQUESTS)]
        assert [reading.members[index] for reading in readings] == pytest.approx(expected)
    assert None not in world.ensemble(starts=starts).generate(PROMPTS, max_bytes=8)


def test_what_cannot_be_asked_of_one_cannot_be_asked_of_all(world: World) -> None:
    long = "The dog. " * 600
    requests = [Request("The", ""), Request("The quick bro", "wn fox"), Request("", long), REQUESTS[2]]
    readings = world.ensemble().read(requests)
    assert [reading.score.problem for reading in readings] == ["empty", "crosses_boundary", "too_long", None]
    assert world.ensemble().generate([long, "The"], max_bytes=4)[0] is None


def test_rows_are_scored_as_requests_are(world: World) -> None:
    text = "The quick fox sleeps where two boundaries meet."
    ids = world.view.encode(text).ids
    row = RequestRow(ids, special=0, first_scored=1)
    scores = world.ensemble().score_rows([row])
    first = world.view.token_bytes(int(ids[0])).decode()
    (score,) = world.ensemble().score([Request(first, text[len(first) :])])
    assert -scores.logp.sum() == pytest.approx(score.nats, rel=1e-6)
    assert len(scores.greedy) == score.tokens
