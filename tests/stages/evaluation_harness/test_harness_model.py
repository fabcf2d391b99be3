"""A Scorer as a model of lm-evaluation-harness: beside lm-eval's own HFLM, and where that goes wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

from alignment.byte_view import ByteView
from alignment.chat.template import ChatTemplate
from stages.evaluation.harness.model import ScorerModel, Unanswered, unsupported_generation
from stages.evaluation.harness.options import LmEvalOptions
from stages.evaluation.harness.rendered import RenderedScorer
from stages.evaluation.harness.running import ask
from stages.evaluation.harness.tasks import load_tasks
from stages.evaluation.harness.windows import rolling_spans
from stages.evaluation.text_start import TextStart
from stages.evaluation.token_scorer import TokenScorer
from stages.stage import StageError

PAIRS = [
    ("The quick brown fox", " jumps"),
    ("The dog", " sleeps on."),
    ("Answer: ", "head"),
    ("", "Tokens are byte strings"),
    ("Ein Häuschen steht im", " Wald, naïve façade"),
    ("two lines\n", "and one more"),
]
TEXTS = ["abab", "café ok"]


def requests(kind: str, arguments: Sequence[tuple]) -> list[Instance]:
    return [Instance(kind, {}, one, 0, metadata=("task", number, 1)) for number, one in enumerate(arguments)]


def uniform_model(vocab_size: int) -> LlamaForCausalLM:
    """Every token has probability 1 / vocab_size."""
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


def adapted(model: LlamaForCausalLM, tokenizer, window_bytes: int = 1500) -> ScorerModel:
    view = ByteView.from_tokenizer(tokenizer)
    scorer = TokenScorer("row", model, view, TextStart.of(tokenizer, view), batch_tokens=256)
    return ScorerModel(scorer, spans=lambda text: rolling_spans(text, [view], window_bytes), bytes_per_token=4)


def bits_per_byte(model: ScorerModel, texts: Sequence[str]) -> float:
    found = model.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,) for text in texts]))
    return -math.fsum(found) / math.log(2) / sum(len(text.encode()) for text in texts)


@pytest.fixture(scope="module")
def gpt2_dir(gpt2_tokenizer_dir: Path) -> Path:
    return gpt2_tokenizer_dir


@pytest.fixture(scope="module")
def tiny(tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]):
    directory = tiny_model_dir(tiny_tokenizer_dirs[1], seed=5, tied=False)
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    model.get_output_embeddings().weight.data *= 20
    return model, AutoTokenizer.from_pretrained(directory)


def test_numbers_are_those_of_lm_evals_own_model(tiny) -> None:
    model, tokenizer = tiny
    own, theirs = adapted(model, tokenizer), HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, max_length=64)
    asked = requests("loglikelihood", PAIRS)
    for (logp, greedy), (their_logp, their_greedy) in zip(
        own.loglikelihood(asked), theirs.loglikelihood(asked, disable_tqdm=True), strict=True
    ):
        assert logp == pytest.approx(their_logp, abs=2e-4)
        assert greedy == their_greedy
    assert own.unanswered == []


def test_whole_texts_and_written_ones_are_those_of_lm_evals_own_model(tiny) -> None:
    model, tokenizer = tiny
    own, theirs = adapted(model, tokenizer), HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=64)
    whole = requests("loglikelihood_rolling", [("The dog sleeps on.",), ("Москва, 東京",)])
    assert own.loglikelihood_rolling(whole) == pytest.approx(
        theirs.loglikelihood_rolling(whole, disable_tqdm=True), abs=5e-4
    )
    prompts = requests("generate_until", [("The quick", {"until": ["zzz"], "max_gen_toks": 6, "do_sample": False})])
    (written,) = own.generate_until(prompts)
    (theirs_written,) = theirs.generate_until(prompts, disable_tqdm=True)
    assert written
    assert len(written.encode()) <= 24
    assert theirs_written.startswith(written) or written.startswith(theirs_written)


@pytest.mark.parametrize(("texts", "expected"), [(TEXTS, 7.8085)])
def test_a_bos_is_never_scored(gpt2_dir: Path, texts: list[str], expected: float) -> None:
    """Six tokens of GPT-2 in twelve bytes; lm-eval's own model scores the added BOS of each text as well: 10.4114."""
    tokenizer = AutoTokenizer.from_pretrained(gpt2_dir)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 50256)]
    )
    model = uniform_model(50257)
    assert bits_per_byte(adapted(model, tokenizer), texts) == pytest.approx(expected, abs=5e-5)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=64)
    asked = requests("loglikelihood_rolling", [(text,) for text in texts])
    doubled = -math.fsum(theirs.loglikelihood_rolling(asked, disable_tqdm=True)) / math.log(2) / 12
    assert doubled == pytest.approx(10.4114, abs=5e-5)


def test_an_eos_is_never_scored() -> None:
    """ByT5 appends one: log2 of its 259 rows a byte without, 9.353 with."""
    tokenizer = ByT5Tokenizer(extra_ids=0)
    model = adapted(uniform_model(259), tokenizer)
    ((logp, _),) = model.loglikelihood(requests("loglikelihood", [("Answer:", " head")]))
    assert -logp / math.log(2) / 5 == pytest.approx(8.0168, abs=5e-5)


def test_a_token_across_the_border_is_no_certain_event(gpt2_dir: Path) -> None:
    """``"The str" + "awberry"`` leaves no token for the continuation in lm-eval's own model."""
    tokenizer = AutoTokenizer.from_pretrained(gpt2_dir)
    network = uniform_model(50257)
    asked = requests("loglikelihood", [("The str", "awberry"), ("The str", "ong")])
    model = adapted(network, tokenizer)
    assert [logp for logp, _ in model.loglikelihood(asked)] == [-math.inf, -math.inf]
    assert model.unanswered == [Unanswered("task", number, 0, "crosses_boundary") for number in (0, 1)]
    theirs = HFLM(pretrained=network, tokenizer=tokenizer, batch_size=1, max_length=64)
    assert theirs._encode_pair("The str", "awberry")[1] == []


def test_white_space_between_context_and_continuation_may_stand_on_either_side(tiny) -> None:
    model = adapted(*tiny)
    (left, _), (right, _) = model.loglikelihood(
        requests("loglikelihood", [("The fox ", "jumps"), ("The fox", " jumps")])
    )
    assert left == right > -math.inf


@pytest.mark.parametrize("arguments", [("context", ""), ("a \ud83d", " b")])
def test_what_cannot_be_scored_is_minus_infinity_and_kept(tiny, arguments: tuple[str, str]) -> None:
    model = adapted(*tiny)
    assert model.loglikelihood(requests("loglikelihood", [arguments])) == [(-math.inf, False)]
    assert [entry.problem for entry in model.unanswered] == ["empty" if not arguments[1] else "not_representable"]


def test_a_long_text_is_the_sum_of_its_windows(tiny) -> None:
    """Every byte counts once: a uniform model says so whatever the windows are."""
    _, tokenizer = tiny
    size = ByteView.from_tokenizer(tokenizer).vocab_size
    text = " ".join(["The dog sleeps on."] * 8)
    tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    model = adapted(uniform_model(size), tokenizer, window_bytes=48)
    (logp,) = model.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,)]))
    assert logp == pytest.approx(-tokens * math.log(size), rel=1e-6)
    assert model.loglikelihood_rolling(requests("loglikelihood_rolling", [("",), ("\ud83d",)])) == [-math.inf] * 2
    assert [entry.problem for entry in model.unanswered] == ["empty", "not_representable"]


def test_written_text_ends_at_its_stop_string_and_its_bytes(tiny) -> None:
    model = adapted(*tiny)

    def ask_for(**options: object) -> str:
        return model.generate_until(requests("generate_until", [("The quick", options)]))[0]

    long = ask_for(until=[], max_gen_toks=10)
    assert 1 < len(long.encode()) <= 40
    assert long.startswith(ask_for(until=[], max_gen_toks=1))
    stop = long[1]
    assert ask_for(until=stop, max_gen_toks=10) == long[: long.index(stop)]
    prompts = [("The quick", {"until": [], "max_gen_toks": 2}), ("a \ud83d", {"until": [], "max_gen_toks": 3})]
    assert model.generate_until(requests("generate_until", prompts))[1] == ""
    assert model.unanswered == [Unanswered("task", 1, 0, "no_answer")]
    with pytest.raises(StageError, match="asks for samples"):
        ask_for(until=[], do_sample=True)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"until": ["\n"], "do_sample": False, "temperature": 0.7}, None),
        ({"temperature": 0.7}, "asks for samples"),
        ({"do_sample": True}, "asks for samples"),
        ({"num_beams": 4, "until": []}, "num_beams"),
        ({}, None),
    ],
)
def test_only_greedy_text_is_promised(options: dict, reason: str | None) -> None:
    found = unsupported_generation(options)
    assert found is None if reason is None else reason in found


def test_control_tokens_of_a_chat_template_are_control_tokens(tiny_chat) -> None:
    model, tokenizer, view = tiny_chat
    scorer = RenderedScorer("row", model, view, batch_tokens=256)
    chat = ScorerModel(
        scorer,
        spans=lambda text: (),
        bytes_per_token=4,
        chat=ChatTemplate.from_tokenizer(tokenizer),
        tokenizer_name="name",
    )
    prompt = chat.apply_chat_template([{"role": "user", "content": "Hello"}])
    assert chat.tokenizer_name == "name"
    ((logp, _),) = chat.loglikelihood(requests("loglikelihood", [(prompt, "Hi you")]))
    context = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    whole = tokenizer(prompt + "Hi you", add_special_tokens=False)["input_ids"]
    assert whole[: len(context)] == context
    with torch.no_grad():
        logps = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    expected = sum(logps[place - 1, whole[place]].item() for place in range(len(context), len(whole)))
    assert logp == pytest.approx(expected, abs=1e-4)
    begun = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Well,"}]
    assert chat.apply_chat_template(begun, add_generation_prompt=False) == prompt + "Well,"
    with pytest.raises(StageError, match="control token"):
        chat.apply_chat_template([{"role": "user", "content": f"Hello {tokenizer.eos_token}"}])
    with pytest.raises(StageError, match="no chat template"):
        adapted(model, tokenizer).apply_chat_template(begun)


@pytest.fixture(scope="module")
def tiny_chat(tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]):
    directory = tiny_model_dir(tiny_tokenizer_dirs[0], seed=3, tied=False)
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    end = tokenizer.eos_token
    tokenizer.chat_template = (
        "{% for m in messages %}" + end + "{{ m.role }}\n{{ m.content }}" + end + "\n{% endfor %}"
        "{% if add_generation_prompt %}" + end + "assistant\n{% endif %}"
    )
    return model, tokenizer, ByteView.from_tokenizer(tokenizer)


def test_a_model_without_preference_scores_chance_and_lm_eval_says_it_is_perfect(
    tmp_path: Path, gpt2_dir: Path
) -> None:
    """Four options of one token each, the right one always first (evaluation.md §2, trap 4)."""
    lines = [{"q": f"{number} is", "options": ["one", "two", "four", "five"]} for number in range(3)]
    (tmp_path / "ties.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (tmp_path / "ties.yaml").write_text(
        "task: ties\ndataset_path: json\ndataset_kwargs: {data_files: {test: ties.jsonl}}\ntest_split: test\n"
        'output_type: multiple_choice\ndoc_to_text: "{{q}}"\ndoc_to_choice: options\ndoc_to_target: 0\n'
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n",
        encoding="utf-8",
    )
    options = LmEvalOptions(tasks=("ties",), include=str(tmp_path))
    model = adapted(uniform_model(50257), AutoTokenizer.from_pretrained(gpt2_dir))
    found = ask(load_tasks(options), model, options, "uniform")
    assert json.loads(found["files"]["results.json"])["results"]["ties"]["acc,none"] == 1.0
    assert [answer["measures"]["acc"] for answer in found["answers"]["ties"]] == [(0.25, 1.0)] * 3
    assert all(answer["tied"] for answer in found["answers"]["ties"])
