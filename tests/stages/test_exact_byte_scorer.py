from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from covers_world import GPT_2, World, byte_pair
from exact_bytes_world import IdealTokens
from hypothesis import given, settings
from hypothesis import strategies as st
from ideal_models import TokenChain, worked_example
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, MambaConfig

from alignment.byte_view import ByteView
from alignment.cover_encodings import CoverEncodings
from alignment.covers import Covers
from alignment.covers_text import NotText
from alignment.tokenizer_facts import load_tokenizer
from stages.evaluation.core import Request
from stages.evaluation.exact_bytes.infilling import fill_in, infilling_ids
from stages.evaluation.exact_bytes.masses import END
from stages.evaluation.exact_bytes.next_tokens import Group, ModelTokens
from stages.evaluation.exact_bytes.scorer import ExactByteScorer, Places
from stages.evaluation.exact_bytes.writing import sample
from stages.evaluation.scoring import load_model
from stages.evaluation.text_start import TextStart
from stages.stage import StageError

A, B, AB = (ord(letter) if len(letter) == 1 else letter for letter in ("a", "b", "ab"))


@pytest.fixture(scope="module")
def markov() -> ExactByteScorer:
    """The two-state chain of the specification, on texts of eight letters."""
    tokenizer = byte_pair("ab", ["a+b"])
    view = ByteView.from_tokenizer(tokenizer)
    texts = worked_example().texts
    sequences = {(*view.encode(text).ids.tolist(), tokenizer.eos_token_id): p for text, p in texts.items()}
    chain = TokenChain(sequences, view.vocab_size)
    return ExactByteScorer("markov", Covers(tokenizer, view), IdealTokens(chain))


def test_all_62_strings_have_their_probability(markov):
    texts = worked_example()
    strings = ["".join(letters) for length in range(1, 6) for letters in itertools.product("ab", repeat=length)]
    assert len(strings) == 62
    found = np.exp(markov.log_probability([string.encode() for string in strings]))
    assert found == pytest.approx([texts.probability(string) for string in strings], abs=1e-12)


def test_the_next_byte_has_no_bias_of_tokenization(markov):
    logp = markov.next_byte([b"a", b"b", b""])
    assert logp.dtype == np.float32
    assert np.exp(logp[0, [A, B, END]]) == pytest.approx([0.5, 0.5, 0.0])  # the token a is never followed by b
    assert np.exp(logp[1, [A, B]]) == pytest.approx([0.3, 0.7])
    assert np.exp(logp[2, [A, B]]) == pytest.approx([0.6, 0.4])


def test_exact_and_canonical_bits_per_byte_of_the_worked_example(markov):
    (document,) = markov.documents(["aa"])
    assert -document.log_probability / math.log(2) / 2 == pytest.approx(0.8685, abs=1e-4)
    assert -document.canonical / math.log(2) / 2 == pytest.approx(1.3685, abs=1e-4)
    assert document.tokens == 2


def test_a_continuation_is_scored_after_any_context(markov):
    after, inside, empty = markov.score([Request("a", "b"), Request("ab", "aab"), Request("a", "")])
    assert after.nats == pytest.approx(math.log(2))  # no token ends where the context does
    assert (after.bytes, after.tokens, after.problem) == (1, 1, None)
    assert inside.nats == pytest.approx(-math.log(0.3 * 0.5 * 0.5))
    assert empty.problem == "empty"
    assert math.isnan(empty.nats)


def test_what_the_tokenizer_cannot_spell_is_a_problem(markov):
    assert [score.problem for score in markov.score([Request("a", "c"), Request("a", "\ud800")])] == [
        "not_representable",
        "not_representable",
    ]
    with pytest.raises(NotText):
        markov.log_probability([b"\xff"])


def test_greedy_is_what_the_most_probable_bytes_spell(markov):
    """After b comes b with 0.7; after a both are as likely, and the lower byte is taken."""
    requests = [Request("b", "bbb"), Request("b", "bba"), Request("ab", "b" * 6)]
    assert [score.greedy for score in markov.score(requests)] == [True, False, True]
    assert markov.generate(["b", "bc"], max_bytes=3) == ["bbb", None]
    assert markov.generate(["b"], max_bytes=7, stop=["bbbb"]) == [""]
    assert markov.generate(["bbbbbb"], max_bytes=5) == ["bb"]  # the texts end there


def test_sampled_bytes_are_distributed_as_the_texts_are(markov):
    count = 400
    draws = np.random.default_rng(0).random((count, 1))
    found = sample(markov, [b"a"] * count, draws)
    share = sum(data == b"b" for data in found) / count
    assert share == pytest.approx(0.5, abs=0.08)  # 3 standard deviations; from tokens it would be 0
    assert sample(markov, [b"bbbbbbb"], np.array([[0.0, 0.5]])) == [b"a"]  # and there the text ends
    with pytest.raises(ValueError, match="temperature"):
        sample(markov, [b"a"], draws, temperature=0.0)


MERGES = ["b+c", "a+b", "ab+a", "a+bc", "c+c", "bc+a"]


@pytest.fixture(scope="module")
def leaky() -> tuple[World, IdealTokens]:
    world = World(byte_pair("abc", MERGES), "abc", 6)
    return world, IdealTokens(world.chain, leak=0.2)


@settings(max_examples=25, deadline=None)
@given(st.text(alphabet="abc", min_size=1, max_size=4))
def test_a_leaky_model_gives_what_enumeration_gives(leaky, text):
    """Against the reference by definition, with mass on sequences that the tokenizer never writes."""
    world, tokens = leaky
    spellings = {token: world.view.token_bytes(token) for token in np.flatnonzero(world.view.byte_lengths).tolist()}
    oracle = CoverEncodings(spellings, lambda symbols: world.view.encode(bytes(symbols).decode()).ids.tolist())
    scorer = ExactByteScorer("leaky", world.covers, tokens)
    expected = oracle.log_probability(text.encode(), tokens.log_probs)
    assert scorer.log_probability([text.encode()])[0] == pytest.approx(expected, abs=1e-10)
    following = oracle.next_symbols(text.encode(), tokens.log_probs)
    canonical = tuple(world.view.encode(text).ids.tolist())
    end = tokens.log_probs(canonical)[world.end] + sum(
        tokens.log_probs(canonical[:place])[token] for place, token in enumerate(canonical)
    )
    masses = {**following, END: math.exp(end - expected)}
    (logp,) = scorer.next_byte([text.encode()])
    assert np.exp(logp.astype(np.float64)).sum() == pytest.approx(1, abs=1e-6)
    total = sum(masses.values())
    assert {symbol: math.exp(logp[symbol]) for symbol in masses} == pytest.approx(
        {symbol: mass / total for symbol, mass in masses.items()}, rel=1e-5
    )


@settings(max_examples=25, deadline=None)
@given(st.text(alphabet="abc", min_size=1, max_size=4))
def test_all_counts_any_last_token_after_valid_ones(leaky, text):
    world, tokens = leaky
    scorer = ExactByteScorer("leaky", world.covers, tokens, estimator="all")
    expected = 0.0
    for cut in range(len(text)):
        before = tuple(world.view.encode(text[:cut]).ids.tolist())
        logp = sum(tokens.log_probs(before[:place])[token] for place, token in enumerate(before))
        lasts = [token for token, data in spelled(world) if data.startswith(text[cut:].encode())]
        expected += sum(math.exp(logp + tokens.log_probs(before)[last]) for last in lasts)
    assert scorer.log_probability([text.encode()])[0] == pytest.approx(math.log(expected), abs=1e-10)
    assert (
        scorer.log_probability([text.encode()])[0]
        >= ExactByteScorer("valid", world.covers, tokens).log_probability([text.encode()])[0] - 1e-12
    )


def spelled(world: World) -> list[tuple[int, bytes]]:
    return [(token, data) for token in range(world.view.vocab_size) if (data := world.view.token_bytes(token))]


@pytest.fixture(scope="module")
def tiny(tiny_tokenizer_dirs, tiny_model_dir) -> tuple[ModelTokens, ExactByteScorer]:
    directory = tiny_model_dir(tiny_tokenizer_dirs[0])
    tokenizer = load_tokenizer(directory, trust_remote_code=False)
    view = ByteView.from_tokenizer(tokenizer)
    model = load_model(directory).double()
    scorer = ExactByteScorer.of_model("tiny", model, tokenizer, view, TextStart.of(tokenizer, view), batch_tokens=512)
    return scorer.tokens, scorer


TEXT = "The quick brown fox: naïve façade,\n\n  東京 at 3.14159. It's don"


def test_every_sequence_gets_what_the_model_gives_it_alone(tiny):
    """Shared passes, kept states and padding change nothing."""
    tokens, scorer = tiny
    assert tokens.keeps_states
    main = scorer.covers.canonical(TEXT)
    sequences = [(), main[:3], main, (*main[:5], 7), (*main[:5], 7, 9), (*main, 4), (3, 1, 2), main[:-1]]
    for remember in (False, True):
        assert len(list(tokens.answer([Group(main, sequences), Group((5,), [(5, 6)])], remember=remember))) == 2
    answer, _ = list(tokens.answer([Group((*main, 8), sequences), Group((5,), [(5, 6)])]))
    with torch.inference_mode():
        for index, sequence in enumerate(sequences):
            ids = torch.tensor([[*tokens.start, *sequence]])
            logits = tokens._model(input_ids=ids).logits[0]
            expected = logits[-1].log_softmax(-1)
            found = answer.predictions.log_probs(slice(index, index + 1))[0]
            torch.testing.assert_close(found, expected[: len(found)], atol=1e-9, rtol=0)
        ids = torch.tensor([[*tokens.start, *main]])
        steps = tokens._model(input_ids=ids).logits[0, len(tokens.start) - 1 : -1].log_softmax(-1)
        labels = steps.gather(1, torch.tensor(main)[:, None]).sum()
        assert answer.cumulative[len(main)] == pytest.approx(float(labels), abs=1e-9)


SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "bos_token_id": 0, "eos_token_id": 0}
SLIDING = {
    **SMALL,
    **{"intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 6},
}


@pytest.mark.parametrize(
    ("config", "keeps"),
    [
        (GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0), True),
        (Gemma3TextConfig(**SLIDING, layer_types=["sliding_attention", "full_attention"]), True),
        (MambaConfig(**SMALL, state_size=4), False),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_learned_places_sliding_windows_and_states_that_are_not_kept(config, keeps):
    """Sequences longer than the window, of several lengths in one pass, some of them in two steps."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).double().eval()
    tokens = ModelTokens(model, 50, (0,), batch_tokens=200)
    assert tokens.keeps_states == keeps
    main, short = tuple(range(1, 31)), (9, 8, 7)
    groups = [Group(main, [main[:20], (*main[:25], 3, 4), (*main, 5)]), Group(short, [(), (*short, 2)])]
    list(tokens.answer([Group(main[:22], []), Group(short[:2], [])], remember=True))
    for group, answer in zip(groups, tokens.answer(groups), strict=True):
        for index, sequence in enumerate(group.sequences):
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([[0, *sequence]]), use_cache=False).logits[0, -1]
            found = answer.predictions.log_probs(slice(index, index + 1))[0]
            torch.testing.assert_close(found, logits.double().log_softmax(-1), atol=1e-5, rtol=0)


def test_one_pass_over_a_text_serves_all_its_places(tiny):
    tokens, scorer = tiny
    data = TEXT.encode()
    ends = range(len(data) + 1)
    before = tokens.cost.passes
    (together,) = scorer.masses([Places(data, ends)], what_next=True)
    assert tokens.cost.passes - before <= 3
    for end in [0, 1, 5, 24, 37, 41, 44, len(data)]:
        (alone,) = scorer.next_byte([data[:end]])
        np.testing.assert_allclose(together[end].next_logp, alone, atol=1e-5)
        assert np.exp(alone.astype(np.float64)).sum() == pytest.approx(1, abs=1e-5)
    totals = [masses.log_probability for masses in together]
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(totals))
    assert totals[0] == 0


def test_valid_next_bytes_make_text(tiny):
    """A byte that UTF-8 does not allow has no probability, nor has an end inside a character."""
    _, scorer = tiny
    logp = scorer.next_byte([TEXT.encode()[:12], "東".encode()[:2]])
    assert np.isneginf(logp[0, 0x80:0xC0]).all()
    assert np.isneginf(np.delete(logp[1], range(0x80, 0xC0))).all()


def test_exact_probability_is_never_below_canonical(tiny):
    _, scorer = tiny
    for document in scorer.documents([TEXT, TEXT[:20], "tokens are by"]):
        assert document.log_probability >= document.canonical - 1e-9


def test_a_model_without_room_or_start_says_so(tiny):
    tokens, scorer = tiny
    with pytest.raises(StageError, match="positions; give shorter texts"):
        scorer.log_probability([b"fox " * 2000])
    assert scorer.score([Request("fox " * 2000, "a")])[0].problem == "too_long"
    with pytest.raises(StageError, match="neither BOS nor EOS"):
        ModelTokens(tokens._model, 10, (), batch_tokens=8)


def test_infilling_reads_the_part_after_where_there_are_tokens_for_it(markov):
    assert infilling_ids(markov.covers.view) is None
    assert fill_in(markov, b"b", "a", max_bytes=2) == (b"bb", "prefix only")
    tokenizer = byte_pair("ab ", ["a+b"], GPT_2)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]})
    view = ByteView.from_tokenizer(tokenizer)
    before, after, middle = infilling_ids(view)
    seen = []

    class Recording(IdealTokens):
        def behind(self, ids):
            seen.append(ids)
            return self

    world = World(tokenizer, "ab ", 4)
    scorer = ExactByteScorer("ideal", world.covers, Recording(world.chain))
    found = fill_in(scorer, b"a", "b a", max_bytes=3, draws=np.full(3, 0.5))
    assert found.method == "suffix-prefix-middle"
    assert len(found.middle) == 3
    assert seen == [(before, after, *scorer.covers.canonical("b a"), middle)]
