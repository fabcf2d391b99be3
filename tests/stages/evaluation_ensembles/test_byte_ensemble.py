"""Models of different tokenizers as one, byte by byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment.byte_view import ByteView
from stages.evaluation.core import Request
from stages.evaluation.ensembles.byte_level import ByteEnsemble
from stages.evaluation.ensembles.means import Combination
from stages.evaluation.ensembles.options import EnsembleOptions
from stages.evaluation.exact_bytes.masses import END
from stages.evaluation.exact_bytes.scorer import ExactByteScorer
from stages.evaluation.exact_bytes.writing import sample
from stages.evaluation.text_start import TextStart

PREFIXES = [b"", b"The qu", "naïve 東".encode()[:-1]]
REQUESTS = [Request("The str", "awberry, 東"), Request("", "The fox")]


@pytest.fixture(scope="module")
def members(tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]) -> list[ExactByteScorer]:
    """Two models of different tokenizers, with opinions."""
    found = []
    for seed, directory in enumerate(tiny_tokenizer_dirs):
        tokenizer = AutoTokenizer.from_pretrained(directory)
        view = ByteView.from_tokenizer(tokenizer)
        model = AutoModelForCausalLM.from_pretrained(tiny_model_dir(directory, seed=seed, tied=False)).eval()
        model.get_output_embeddings().weight.data *= 12
        start = TextStart.of(tokenizer, view)
        found.append(ExactByteScorer.of_model("ab"[seed], model, tokenizer, view, start, batch_tokens=200))
    return found


def ensemble(members: list[ExactByteScorer], **options) -> ByteEnsemble:
    names = {} if "proxy" in options else {"members": [f"model{number}" for number in range(len(members))]}
    return ByteEnsemble("both", members, Combination.of(EnsembleOptions(**names, **options)))


def test_next_bytes_are_means_of_the_members(members: list[ExactByteScorer]) -> None:
    left, right = (np.exp(member.next_byte(PREFIXES).astype(np.float64)) for member in members)
    product = left**0.8 * right**0.2
    for mean, expected in {
        "arithmetic": 0.8 * left + 0.2 * right,
        "geometric": product / product.sum(1, keepdims=True),
    }.items():
        logp = ensemble(members, mean=mean, weights=[4, 1]).next_byte(PREFIXES)
        assert logp.shape == (3, END + 1)
        assert logp.dtype == np.float32
        assert np.exp(logp) == pytest.approx(expected, abs=1e-6)
        assert np.exp(logp.astype(np.float64)).sum(1) == pytest.approx(1)
    # UTF-8 cannot go on with an A inside a character, whoever is asked.
    assert logp[2, ord("A")] == -np.inf
    assert ensemble(members).next_byte([]).shape == (0, END + 1)


def test_a_mixture_weighs_members_by_what_they_made_of_the_text(members: list[ExactByteScorer]) -> None:
    prefix = b"The quick fox"
    weights = [0.5 * np.exp(member.log_probability([prefix])[0]) for member in members]
    expected = sum(
        weight / sum(weights) * np.exp(member.next_byte([prefix])[0])
        for weight, member in zip(weights, members, strict=True)
    )
    assert np.exp(ensemble(members, mean="mixture").next_byte([prefix])[0]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_a_score_is_the_sum_over_next_bytes(members: list[ExactByteScorer], mean: str) -> None:
    both = ensemble(members, mean=mean)
    for request, reading in zip(REQUESTS, both.read(REQUESTS), strict=True):
        context, continuation = (text.encode() for text in request)
        prefixes = [context + continuation[:place] for place in range(len(continuation))]

        def nats(model, prefixes=prefixes, continuation=continuation) -> float:
            return -sum(float(row[byte]) for row, byte in zip(model.next_byte(prefixes), continuation, strict=True))

        assert reading.score.nats == pytest.approx(nats(both), rel=1e-5)
        assert reading.members == pytest.approx([nats(member) for member in members], rel=1e-5)
        assert reading.score.tokens == reading.score.bytes == len(continuation)
        tops = [member.next_byte(prefixes).argmax(1) for member in members]
        assert reading.disagreements == int((tops[0] != tops[1]).sum())


def test_the_mixture_of_texts(members: list[ExactByteScorer]) -> None:
    # log(3/4 P_1(text) + 1/4 P_2(text)), whole and cut inside a token and inside a character.
    text = "The strawberry, 東"
    mixture = ensemble(members, mean="mixture", weights=[3, 1])
    logp = [member.log_probability([text.encode()])[0] for member in members]
    whole, head, tail = mixture.read([Request("", text), Request("", text[:7]), Request(text[:7], text[7:])])
    assert whole.score.nats == pytest.approx(-np.logaddexp(np.log(0.75) + logp[0], np.log(0.25) + logp[1]))
    assert whole.members == pytest.approx([-value for value in logp])
    assert head.score.nats + tail.score.nats == pytest.approx(whole.score.nats)


@pytest.mark.parametrize("mean", ["arithmetic", "geometric", "mixture"])
def test_one_model_twice_is_that_model(members: list[ExactByteScorer], mean: str) -> None:
    twice = ensemble([members[1]] * 2, mean=mean)
    assert twice.next_byte(PREFIXES) == pytest.approx(members[1].next_byte(PREFIXES), abs=1e-5)
    (reading,) = twice.read(REQUESTS[:1])
    assert reading.score.nats == pytest.approx(reading.members[0], rel=1e-6)
    assert reading.disagreements == 0


def test_proxy_tuning_across_tokenizers(members: list[ExactByteScorer]) -> None:
    first, second = members
    proxy = {"base": "a", "expert": "b", "anti": "c"}
    moved = ensemble([first, second, first], proxy=proxy)
    # base + (expert - anti) with one model as base and anti-expert is the expert.
    assert moved.next_byte(PREFIXES[:2]) == pytest.approx(second.next_byte(PREFIXES[:2]), abs=1e-5)


def test_greedy_text_is_the_most_probable_byte_each_time(members: list[ExactByteScorer]) -> None:
    both = ensemble(members)
    (text,) = both.generate(["The qu"], max_bytes=5)
    data = b""
    for _ in range(5):
        symbol = int(both.next_byte([b"The qu" + data])[0].argmax())
        if symbol == END:
            break
        data += bytes([symbol])
    assert text == data.decode(errors="ignore")
    if text:
        assert both.score([Request("The qu", text)])[0].greedy
    assert not both.score([Request("The qu", "ZZZZ")])[0].greedy


def test_draws_follow_the_ensemble(members: list[ExactByteScorer]) -> None:
    both = ensemble(members)
    draws = np.random.default_rng(0).random((2, 4))
    together = sample(both, [b"The", b"naive"], draws)
    assert together == [sample(both, [prefix], draws[[row]])[0] for row, prefix in enumerate((b"The", b"naive"))]
    # A draw of 0 takes the first byte that is possible at all, one of nearly 1 the last symbol.
    logp = both.next_byte([b"The"])[0]
    assert sample(both, [b"The"], np.array([[0.0]])) == [bytes([int(np.flatnonzero(logp > -np.inf)[0])])]


def test_a_member_that_cannot_be_asked(members: list[ExactByteScorer]) -> None:
    both = ensemble(members)
    problems = [score.problem for score in both.score([Request("The", ""), Request("", "The fox " * 400), REQUESTS[1]])]
    assert problems == ["empty", "too_long", None]
    assert both.generate(["The fox " * 400], max_bytes=2) == [None]


def test_what_was_read_is_not_read_again(members: list[ExactByteScorer]) -> None:
    both = ensemble(members)
    shares: list[float] = []
    first = both.read(REQUESTS, shares.append)
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] == 1
    passes = members[0].tokens.cost.passes
    assert both.read([REQUESTS[1], REQUESTS[0]]) == [first[1], first[0]]
    assert members[0].tokens.cost.passes == passes
