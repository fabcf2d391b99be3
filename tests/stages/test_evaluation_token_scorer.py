"""A model of tokens answers requests in text: what is scored, what has no score, and what it writes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

from alignment.byte_view import ByteView
from stages.evaluation.core import Request
from stages.evaluation.text_start import TextStart
from stages.evaluation.token_scorer import TokenScorer

STORY = "The quick brown fox jumps over the lazy dog, and the naïve dog sleeps on 東京 🙂."


def uniform_model(vocab_size: int) -> LlamaForCausalLM:
    """Every token has probability 1 / vocab_size, whatever stands before it."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=4,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    torch.nn.init.zeros_(model.lm_head.weight)
    return model


def uniform_scorer(tokenizer) -> TokenScorer:
    view = ByteView.from_tokenizer(tokenizer)
    return TokenScorer("uniform", uniform_model(view.vocab_size), view, TextStart.of(tokenizer, view), batch_tokens=256)


def bits_per_byte(scorer: TokenScorer, texts: list[str]) -> float:
    scores = scorer.score([Request("", text) for text in texts])
    return sum(score.nats for score in scores) / math.log(2) / sum(score.bytes for score in scores)


@pytest.fixture(scope="module")
def gpt2(gpt2_tokenizer_dir: Path):
    return AutoTokenizer.from_pretrained(gpt2_tokenizer_dir)


@pytest.fixture(scope="module")
def uniform_gpt2(gpt2) -> TokenScorer:
    return uniform_scorer(gpt2)


@pytest.fixture(scope="module")
def tiny(tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]):
    """A random model with opinions, its tokenizer and byte view."""
    directory = tiny_model_dir(tiny_tokenizer_dirs[1], seed=5, tied=False)
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    model.get_output_embeddings().weight.data *= 20
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return model, tokenizer, ByteView.from_tokenizer(tokenizer)


@pytest.fixture(scope="module")
def scorer(tiny) -> TokenScorer:
    model, tokenizer, view = tiny
    return TokenScorer("tiny", model, view, TextStart.of(tokenizer, view), batch_tokens=100)


@pytest.fixture(scope="module")
def bos_scorer(tiny) -> TokenScorer:
    """The same model with a tokenizer that adds a BOS by itself."""
    tokenizer = AutoTokenizer.from_pretrained(tiny[1].name_or_path)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.bos_token_id)]
    )
    view = ByteView.from_tokenizer(tokenizer)
    assert view.prefix_ids == [tokenizer.bos_token_id]
    return TokenScorer("tiny", tiny[0], view, TextStart.of(tokenizer, view), batch_tokens=100)


def token_log_probabilities(tiny, ids: list[int]) -> list[float]:
    """Of every token but the first, one at a time and in float64."""
    model = AutoModelForCausalLM.from_config(tiny[0].config).double().eval()
    model.load_state_dict(tiny[0].state_dict())
    with torch.no_grad():
        return [
            float(model(torch.tensor([ids[:place]])).logits[0, -1].log_softmax(-1)[ids[place]])
            for place in range(1, len(ids))
        ]


@pytest.mark.demo
def test_a_bos_is_context_once_and_never_scored(gpt2_tokenizer_dir: Path, uniform_gpt2: TokenScorer) -> None:
    # evaluation.md §2, trap 1: 6 tokens, 12 bytes. Scoring the BOS that the tokenizer adds would give 10.4114.
    tokenizer = AutoTokenizer.from_pretrained(gpt2_tokenizer_dir)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.bos_token_id)]
    )
    assert tokenizer("abab").input_ids[0] == tokenizer.bos_token_id
    for scorer in (uniform_scorer(tokenizer), uniform_gpt2):
        assert bits_per_byte(scorer, ["abab", "café ok"]) == pytest.approx(7.8085, abs=5e-5)


def test_a_bos_that_the_tokenizer_adds_stands_before_every_text_once(tiny, bos_scorer: TokenScorer) -> None:
    _, tokenizer, view = tiny
    ids = view.encode("The dog sleeps").ids.tolist()
    logp = token_log_probabilities(tiny, [tokenizer.bos_token_id, *ids])
    alone, after = bos_scorer.score([Request("", "The dog sleeps"), Request("The", " dog sleeps")])
    assert alone.nats == pytest.approx(-sum(logp), rel=1e-5)
    assert after.nats == pytest.approx(-sum(logp[len(view.encode("The").ids) :]), rel=1e-5)


def test_a_byte_tokenizer_that_appends_an_end_of_text(tmp_path: Path) -> None:
    # Trap 3: log2 259 and not 9.353, and the continuation keeps its space.
    tokenizer = ByT5Tokenizer(extra_ids=0)
    assert tokenizer("a").input_ids[-1] == tokenizer.eos_token_id
    scorer = uniform_scorer(tokenizer)
    assert bits_per_byte(scorer, ["abab", "café ok"]) == pytest.approx(8.0168, abs=5e-5)
    (score,) = scorer.score([Request("Answer:", " head")])
    assert (score.tokens, score.bytes, score.nats) == (5, 5, pytest.approx(5 * math.log(259), rel=1e-6))


@pytest.mark.demo
def test_a_token_across_the_border_is_no_empty_continuation(gpt2, uniform_gpt2: TokenScorer) -> None:
    # Trap 2: cut after as many tokens as the context alone has, the continuation is empty and costs nothing.
    together, alone = gpt2("The strawberry").input_ids, gpt2("The str").input_ids
    assert len(together) == len(alone)
    (score,) = uniform_gpt2.score([Request("The str", "awberry")])
    assert score.problem == "crosses_boundary"
    assert math.isnan(score.nats)
    assert math.isnan(score.bits_per_byte)
    assert (score.bytes, score.tokens, score.greedy) == (7, 0, False)


@pytest.mark.demo
def test_a_trailing_space_stays_in_the_context(uniform_gpt2: TokenScorer) -> None:
    # Trap 7: moving it to the continuation would hide that the prompt ends inside a token.
    scores = uniform_gpt2.score([Request("Answer: ", "head"), Request("Answer:", " head")])
    assert [score.problem for score in scores] == ["crosses_boundary", None]
    assert scores[1].tokens == 1


@pytest.mark.parametrize(
    ("roles", "source", "expected"),
    [
        ({"bos_token": "<s>", "eos_token": "</s>"}, "bos", "<s> (BOS"),
        ({"eos_token": "</s>"}, "eos", "</s> (EOS"),
        ({}, "none", "no token could begin a text"),
    ],
)
def test_what_stands_before_a_text_without_context_is_pinned_and_said(
    tiny_tokenizer_dirs: tuple[Path, Path], roles: dict[str, str], source: str, expected: str
) -> None:
    # Trap 6.
    from transformers import PreTrainedTokenizerFast

    backend = AutoTokenizer.from_pretrained(tiny_tokenizer_dirs[0]).backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **roles)
    view = ByteView.from_tokenizer(tokenizer)
    start = TextStart.of(tokenizer, view)
    assert (start.source, start.prefix_ids) == (source, ())
    assert start.describe(view).startswith(expected)
    scorer = TokenScorer("uniform", uniform_model(view.vocab_size), view, start, batch_tokens=64)
    empty, after = scorer.score([Request("", "The dog"), Request("The", " dog")])
    assert after.problem is None
    assert empty.problem == (None if roles else "no_start")
    if roles:
        tokens = len(view.encode("The dog").ids)
        assert empty.nats == pytest.approx(tokens * math.log(view.vocab_size), rel=1e-6)


def test_matches_one_token_at_a_time_in_float64(tiny, scorer: TokenScorer) -> None:
    _, tokenizer, view = tiny
    cut = STORY.index(" jumps")
    with_context, whole = scorer.score([Request(STORY[:cut], STORY[cut:]), Request("", STORY)])
    ids = view.encode(STORY).ids.tolist()
    before = len(view.encode(STORY[:cut]).ids)
    assert view.encode(STORY[:cut]).ids.tolist() == ids[:before]
    # The tokenizer adds no BOS: after a context there is none, and before a text that has no context there is one.
    logp = token_log_probabilities(tiny, ids)
    assert with_context.nats == pytest.approx(-sum(logp[before - 1 :]), rel=1e-5)
    assert with_context.tokens == len(ids) - before
    assert with_context.bytes == len(STORY[cut:].encode())
    assert whole.nats == pytest.approx(-sum(token_log_probabilities(tiny, [tokenizer.bos_token_id, *ids])), rel=1e-5)
    assert whole.bits_per_byte == pytest.approx(whole.nats / math.log(2) / len(STORY.encode()))


def test_a_text_costs_what_its_parts_cost(tiny, bos_scorer: TokenScorer) -> None:
    """The chain rule, at every place where no token is cut; elsewhere there is no number."""
    view = tiny[2]
    ends = set(view.encode(STORY).byte_ends.tolist())
    places = range(1, len(STORY))
    (whole,) = bos_scorer.score([Request("", STORY)])
    heads = bos_scorer.score([Request("", STORY[:place]) for place in places])
    tails = bos_scorer.score([Request(STORY[:place], STORY[place:]) for place in places])
    checked = 0
    for place, head, tail in zip(places, heads, tails, strict=True):
        assert (tail.problem is None) == (len(STORY[:place].encode()) in ends)
        if tail.problem is None and set(view.encode(STORY[:place]).byte_ends.tolist()) <= ends:
            assert head.tokens + tail.tokens == whole.tokens
            assert head.nats + tail.nats == pytest.approx(whole.nats, rel=1e-5)
            checked += 1
    assert checked > 10


def test_requests_do_not_touch_each_other(scorer: TokenScorer) -> None:
    requests = [
        Request("The quick", " brown fox"),
        Request("", "東京"),
        Request("x", ""),
        Request("The", " dog, and the dog sleeps on"),
        Request("", STORY),
    ]
    together = scorer.score(requests)
    for request, found in zip(requests, together, strict=True):
        (alone,) = scorer.score([request])
        assert (found.problem, found.tokens, found.greedy) == (alone.problem, alone.tokens, alone.greedy)
        if found.problem is None:
            assert found.nats == pytest.approx(alone.nats, abs=1e-4)


def test_what_has_no_score_says_why(scorer: TokenScorer, tiny_chat_dirs: tuple[Path, Path]) -> None:
    problems = [
        score.problem
        for score in scorer.score(
            [
                Request("The dog", ""),
                Request("half a pair \ud800", " more"),
                Request("", "The dog sleeps. " * 200),
                Request("The dog", " sleeps"),
            ]
        )
    ]
    assert problems == ["empty", "not_representable", "too_long", None]


def test_text_that_the_tokenizer_rewrites_is_not_scored(tiny_tokenizer_dirs: tuple[Path, Path]) -> None:
    from tokenizers.normalizers import Lowercase

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dirs[0])
    tokenizer.backend_tokenizer.normalizer = Lowercase()
    scorer = uniform_scorer(tokenizer)
    upper, lower = scorer.score([Request("the", " Dog"), Request("the", " dog")])
    assert (upper.problem, lower.problem) == ("not_representable", None)
    assert scorer.generate(["The", "the"], max_bytes=2)[0] is None


@pytest.mark.demo
def test_the_string_of_a_special_token_is_text(uniform_gpt2: TokenScorer) -> None:
    (score,) = uniform_gpt2.score([Request("", "a<|endoftext|>b")])
    assert score.problem is None
    assert score.tokens > 3


def test_greedy_says_whether_greedy_decoding_writes_it() -> None:
    scorer = fixed_writer(b"abc")
    assert scorer.generate(["xa"], max_bytes=5) == ["bcabc"]
    scores = scorer.score([Request("xa", "bcabc"), Request("xa", "bcabd"), Request("xa", "c")])
    assert [score.greedy for score in scores] == [True, False, False]


def greedy_by_hand(tiny, prompt_ids: list[int], max_bytes: int) -> bytes:
    model, _, view = tiny
    ids, data = list(prompt_ids), b""
    while len(data) < max_bytes and len(ids) < model.config.max_position_embeddings:
        with torch.no_grad():
            token = int(model(torch.tensor([ids])).logits[0, -1, : view.vocab_size].argmax())
        if view.token_bytes(token) is None:
            break
        ids.append(token)
        data += view.token_bytes(token)
    return data[:max_bytes]


PROMPTS = ["The quick brown", "def add(left", "", "東京", "Ein Häuschen steht im Wald, naïve façade"]


def test_generation_is_greedy_decoding_whatever_stands_beside_it(tiny, scorer: TokenScorer) -> None:
    _, tokenizer, view = tiny
    shares: list[float] = []
    together = scorer.generate(PROMPTS, max_bytes=24, watch=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
    for prompt, text in zip(PROMPTS, together, strict=True):
        ids = view.encode(prompt).ids.tolist() or [tokenizer.bos_token_id]
        expected = greedy_by_hand(tiny, ids, 24)
        assert expected.decode(errors="replace").startswith(text)
        assert len(text.encode()) > len(expected) - 4 or not expected[len(text.encode()) :].isascii()
        assert scorer.generate([prompt], max_bytes=24) == [text]


def test_a_stop_string_ends_a_continuation_before_it(scorer: TokenScorer) -> None:
    for prompt, text in zip(PROMPTS, scorer.generate(PROMPTS, max_bytes=30), strict=True):
        if len(text) < 4:
            continue
        stop = text[2:4]
        assert scorer.generate([prompt], max_bytes=30, stop=["\x00", stop]) == [text[: text.index(stop)]]


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 9))
def test_continuations_are_whole_characters_within_their_bytes(max_bytes: int) -> None:
    """A model that writes one three-byte character over and over, byte by byte."""
    scorer = fixed_writer("東".encode())
    (text,) = scorer.generate(["a"], max_bytes=max_bytes)
    assert text == "東" * (max_bytes // 3)


def test_bytes_that_are_no_text_end_a_continuation() -> None:
    (text,) = fixed_writer(b"ab\xffcd").generate(["d"], max_bytes=20)
    assert text == "ab"


def fixed_writer(cycle: bytes) -> TokenScorer:
    """A byte model whose next byte is the one after the last in ``cycle``, and the first of it after any other."""
    tokenizer = ByT5Tokenizer(extra_ids=0)
    view = ByteView.from_tokenizer(tokenizer)
    size = view.vocab_size
    model = uniform_model(size)
    successor = {cycle[place]: cycle[(place + 1) % len(cycle)] for place in range(len(cycle))}
    config = model.config
    config.hidden_size = config.intermediate_size = size
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "layers" in name and "norm" not in name:
            torch.nn.init.zeros_(parameter)
    model.model.embed_tokens.weight.data = torch.eye(size)
    head = torch.zeros(size, size)
    id_of = {view.token_bytes(token)[0]: token for token in range(size) if view.token_bytes(token)}
    for token in range(size):
        data = view.token_bytes(token)
        head[id_of[successor.get(data[0], cycle[0]) if data else cycle[0]], token] = 1.0
    model.lm_head.weight.data = head
    return TokenScorer("writer", model, view, TextStart.of(tokenizer, view), batch_tokens=64)


def test_a_prompt_without_room_is_not_an_empty_answer(tiny, scorer: TokenScorer) -> None:
    positions = tiny[0].config.max_position_embeddings
    full = "The dog sleeps. " * 200
    assert len(tiny[2].encode(full).ids) > positions
    nearly = tiny[2].encode(full).ids[: positions - 2].tolist()
    text = b"".join(tiny[2].token_bytes(token) for token in nearly).decode()
    assert tiny[2].encode(text).ids.tolist() == nearly
    short = scorer.generate(["The quick"], max_bytes=40)
    answers = scorer.generate(["The quick", full, text, "\udc00"], max_bytes=40)
    # The one that nears the end of the context writes two tokens and shortens no other.
    assert answers[0] == short[0]
    assert (answers[1], answers[3]) == (None, None)
    assert answers[2] is not None
    assert greedy_by_hand(tiny, nearly, 40).decode(errors="ignore").startswith(answers[2])


class Stop(BaseException):
    pass


def test_generation_and_scoring_stop_when_the_watch_says_so(scorer: TokenScorer) -> None:
    def stop(share: float) -> None:
        raise Stop

    with pytest.raises(Stop):
        scorer.generate(["The quick"], max_bytes=400, watch=stop)
    with pytest.raises(Stop):
        scorer.score([Request("The", " dog")], stop)
    assert scorer.generate(["The quick"], max_bytes=4)[0] is not None
