"""What exact byte probabilities cost beside canonical ones: forward passes, tokens computed, seconds.

    python -m benchmarks.evaluation MODEL TEXTS.jsonl [--passages 20] [--passage-bytes 512] [--places 50]
    python -m benchmarks.evaluation MODEL --suite-items 52

MODEL is a directory of a Hugging Face causal language model, TEXTS a file of JSON lines with a ``text``. Passages are
cut after so many bytes, wherever that falls. Canonical scoring computes each passage's own tokens once; the rows below
it say how much more it takes to sum over the coverings of the passage's end, to know the next byte at places drawn from
the passages, and to write byte by byte. The second form scores the options of a suite's questions, with what they share
computed once and without.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from alignment.byte_view import ByteView
from alignment.tokenizer_facts import load_tokenizer
from benchmarks.machine import measured_on
from stages.evaluation.core import Request, ignore
from stages.evaluation.exact_bytes.next_tokens import Group
from stages.evaluation.exact_bytes.passages import passages
from stages.evaluation.exact_bytes.scorer import ExactByteScorer, Places
from stages.evaluation.exact_bytes.writing import sample
from stages.evaluation.scoring import load_model, score_windows
from stages.evaluation.shared_contexts import computed_tokens, plan
from stages.evaluation.suites.asking import continuations
from stages.evaluation.suites.options import CuteOptions
from stages.evaluation.suites.registry import make_suite
from stages.evaluation.text_start import TextStart
from stages.evaluation.token_scorer import RequestRow, TokenScorer
from stages.evaluation.windows import Document

BATCH_TOKENS = 4096
Result = TypeVar("Result")


def main() -> None:
    """Print the table."""
    options = _options()
    print(measured_on(("torch", "transformers"), threads=torch.get_num_threads()))
    if options.texts is None:
        _suite(options.model, options.suite_items)
        return
    texts = [json.loads(line)["text"] for line in options.texts.read_text(encoding="utf-8").splitlines()]
    documents = [Document(str(number), "text", text) for number, text in enumerate(texts)]
    cut = [passage.text for passage in passages(documents, options.passage_bytes)][: options.passages]
    scorer = _scorer(options.model)
    sizes = sum(len(text.encode()) for text in cut)
    canonical = [scorer.covers.canonical(text) for text in cut]
    print(f"{len(cut)} passages, {sizes} bytes, {sum(map(len, canonical))} tokens; {scorer.covers.method}")
    print(f"{'':28}{'passes':>8}{'tokens':>9}{'per canonical':>15}{'seconds':>9}")

    measure = _Measure(scorer)
    answers = measure("canonical", lambda: list(scorer.tokens.answer([Group(ids, []) for ids in canonical])))
    nats = -sum(float(answer.cumulative[-1]) for answer in answers)
    for estimator in ("valid", "all"):
        scorer.estimator = estimator
        found = measure(f"exact, {estimator}", lambda: scorer.documents(cut))
        exact = -sum(document.log_probability for document in found)
        print(f"{'':4}{exact / math.log(2) / sizes:.4f} bits per byte, canonical {nats / math.log(2) / sizes:.4f}")
    scorer.estimator = "valid"
    places = _places(cut, options.places)
    measure(f"next byte at {options.places} places", lambda: scorer.masses(places, what_next=True))
    measure("the same again", lambda: scorer.masses(places, what_next=True))
    draws = np.random.default_rng(0).random((1, 64))
    (written,) = measure("64 bytes written", lambda: sample(scorer, [cut[0].encode()], draws))
    print(f"{'':4}{written!r}")


class _Measure:
    """Runs something and prints what it took, beside what came first."""

    def __init__(self, scorer: ExactByteScorer) -> None:
        self._cost = scorer.tokens.cost
        self._canonical = 0

    def __call__(self, name: str, work: Callable[[], Result]) -> Result:
        passes, tokens, start = self._cost.passes, self._cost.tokens, time.perf_counter()
        result = work()
        seconds = time.perf_counter() - start
        passes, tokens = self._cost.passes - passes, self._cost.tokens - tokens
        self._canonical = self._canonical or tokens
        print(f"{name:28}{passes:8}{tokens:9}{tokens / self._canonical:15.2f}{seconds:9.2f}")
        return result


def _suite(directory: Path, items: int) -> None:
    """Tokens and processor seconds of scoring every option of the suite ``cute``."""
    tokenizer = load_tokenizer(directory, trust_remote_code=False)
    view = ByteView.from_tokenizer(tokenizer)
    model, start = load_model(directory), TextStart.of(tokenizer, view)
    suite = make_suite("cute", CuteOptions(items=items), "test")
    requests = [Request(each.prompt, text) for each in suite.questions for text in continuations(suite, each)]
    scorer = TokenScorer(directory.name, model, view, start, batch_tokens=BATCH_TOKENS)
    rows = [row for row in scorer.rows(requests) if isinstance(row, RequestRow)]
    plain = sum(len(row.ids) for row in rows)
    shared = computed_tokens(plan(rows))
    began = time.process_time()
    together = [score.nats for score in scorer.score(requests) if score.problem is None]
    seconds = time.process_time() - began
    print(f"{len(suite.questions)} questions, {len(rows)} options; {str(model.dtype).removeprefix('torch.')}")
    print(f"shared: {shared} tokens, {seconds:.1f} s of processor time")
    for batch_tokens in (BATCH_TOKENS, BATCH_TOKENS // 8):
        began = time.process_time()
        found = score_windows(
            model, rows, prefix_ids=(), vocab_size=view.vocab_size, batch_tokens=batch_tokens, on_batch=ignore
        )
        seconds = time.process_time() - began
        ends = np.cumsum([len(row.ids) - row.first_scored for row in rows])[:-1]
        alone = np.array([-part.sum(dtype=np.float64) for part in np.split(found.logp, ends)])
        apart = np.abs(alone - together)
        print(
            f"row by row, batches of {batch_tokens}: {plain} tokens, {seconds:.1f} s; nats differ by "
            f"{apart.mean():.3f} in the mean, {apart.max():.3f} at most"
        )


def _scorer(directory: Path) -> ExactByteScorer:
    tokenizer = load_tokenizer(directory, trust_remote_code=False)
    view = ByteView.from_tokenizer(tokenizer)
    start = TextStart.of(tokenizer, view)
    return ExactByteScorer.of_model(
        directory.name, load_model(directory), tokenizer, view, start, batch_tokens=BATCH_TOKENS
    )


def _places(texts: Sequence[str], count: int) -> list[Places]:
    """``count`` places, as many in each text as chance has it."""
    data = [text.encode() for text in texts]
    every = [(index, end) for index, text in enumerate(data) for end in range(1, len(text))]
    chosen = np.random.default_rng(0).choice(len(every), size=min(count, len(every)), replace=False).tolist()
    asked = [every[place] for place in sorted(chosen)]
    return [Places(text, [end for where, end in asked if where == index]) for index, text in enumerate(data)]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path, nargs="?")
    parser.add_argument("--suite-items", type=int, default=52)
    parser.add_argument("--passages", type=int, default=20)
    parser.add_argument("--passage-bytes", type=int, default=512)
    parser.add_argument("--places", type=int, default=50)
    return parser.parse_args()


if __name__ == "__main__":
    main()
