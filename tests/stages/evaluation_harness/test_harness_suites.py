"""Our suites as lm-eval's tasks: lm-eval's own model and evaluator come to the accuracy that we come to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment.byte_view import ByteView
from stages.evaluation.harness.suites import task_of
from stages.evaluation.harness.tasks import alone
from stages.evaluation.suites.asking import ask
from stages.evaluation.suites.marking import marks
from stages.evaluation.suites.options import CuteOptions, LangGameOptions
from stages.evaluation.suites.registry import make_suite
from stages.evaluation.text_start import TextStart
from stages.evaluation.token_scorer import TokenScorer
from stages.stage import StageError


def test_lm_eval_gives_the_same_accuracies(
    tmp_path: Path, tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]
) -> None:
    directory = tiny_model_dir(tiny_tokenizer_dirs[1], seed=5, tied=False)
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    model.get_output_embeddings().weight.data *= 20
    tokenizer = AutoTokenizer.from_pretrained(directory)
    suite = make_suite("langgame", LangGameOptions(items=24), "test")
    with alone(0):
        loaded = TaskManager(include_path=str(tmp_path), include_defaults=False).load([task_of(suite)])
        theirs = evaluate(
            lm=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, max_length=512),
            task_dict=loaded,
            bootstrap_iters=0,
        )["results"]["tokenferry_langgame"]
    view = ByteView.from_tokenizer(tokenizer)
    scorer = TokenScorer("row", model, view, TextStart.of(tokenizer, view), batch_tokens=512)
    own = marks(suite, ask(suite, scorer))
    assert not any(mark.problem or mark.tied for found in own.values() for mark in found)
    assert theirs["acc,none"] == pytest.approx(sum(mark.credit for mark in own["accuracy"]) / 24)


def test_a_suite_without_options_is_no_task() -> None:
    with pytest.raises(StageError, match="no choice questions"):
        task_of(make_suite("cute", CuteOptions(items=28, forms=("generation",)), "test"))
