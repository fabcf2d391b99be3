"""What splitting tokens at random costs: ``python benchmarks/split_speed.py TOKENIZER TEXTS.jsonl…``.

One process, one thread; processor time, the best of ``--repeat`` runs. Prints a Markdown table: the split table's
construction, then tokens a second of both laws in batches of documents of some lengths, the generators' construction
included, and beside them the loop over attempts on a linked list, which gives the same distribution. ``split_speed``
is for other scripts.
"""

from __future__ import annotations

import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from alignment.byte_view import ByteView
from alignment.split_laws import ExpansionLaw, attempts_of
from alignment.splits import SplitTable
from stages.training.random import generator

DOCUMENT_TOKENS = (200, 512, 2_000, 200_000)
PROPORTIONS = (0.1, 1.0)
TOKENS = 400_000
_END = -1  # what follows the last node of a linked list


class Row(NamedTuple):
    """One measurement: millions of tokens a second, and tokens after over tokens before."""

    method: str
    document_tokens: int
    proportion: float
    million_a_second: float
    growth: float


def split_speed(
    table: SplitTable, ids: np.ndarray, document_tokens: int, proportion: float, law: ExpansionLaw, repeat: int = 3
) -> Row:
    """How fast a batch is split.

    Args:
        ids: int32 [T], cut into documents of ``document_tokens`` tokens.
    """

    def split(documents: Sequence[np.ndarray], rngs: Sequence[np.random.Generator]) -> int:
        return sum(len(each.ids) for each in table.expand_batch(documents, proportion, rngs=rngs, law=law))

    return _measured(law, split, ids, document_tokens, proportion, repeat)


def _loop_speed(table: SplitTable, ids: np.ndarray, document_tokens: int, proportion: float, repeat: int) -> Row:
    def split(documents: Sequence[np.ndarray], rngs: Sequence[np.random.Generator]) -> int:
        return sum(len(_list_loop(table, each, proportion, rng)) for each, rng in zip(documents, rngs, strict=True))

    return _measured("loop", split, ids, document_tokens, proportion, repeat)


def _list_loop(table: SplitTable, ids: np.ndarray, proportion: float, rng: np.random.Generator) -> np.ndarray:
    """The law ``steps`` an attempt at a time, on a linked list that is walked at the end (stochastok.md §4)."""
    token_of, following = ids.tolist(), [*range(1, len(ids)), _END]
    attempts = attempts_of(len(ids), proportion, "floor", rng)
    for place, choice in zip(rng.random(attempts).tolist(), rng.random(attempts).tolist(), strict=True):
        node = int(place * len(token_of))
        start, stop = table.offsets[token_of[node]], table.offsets[token_of[node] + 1]
        if start < stop:
            split = start + int(choice * (stop - start))
            token_of[node] = table.left[split]
            token_of.append(table.right[split])
            following.append(following[node])
            following[node] = len(following) - 1
    order, node = [], 0
    while node != _END:
        order.append(token_of[node])
        node = following[node]
    return np.array(order, dtype=np.int32)


def _measured(
    method: str,
    split: Callable[[Sequence[np.ndarray], Sequence[np.random.Generator]], int],
    ids: np.ndarray,
    document_tokens: int,
    proportion: float,
    repeat: int,
) -> Row:
    documents = [ids[start : start + document_tokens] for start in range(0, len(ids), document_tokens)]
    seconds, after = [], 0
    for _ in range(repeat):
        started = time.process_time()
        after = split(documents, [generator(0, 0, number) for number in range(len(documents))])
        seconds.append(time.process_time() - started)
    return Row(method, document_tokens, proportion, len(ids) / min(seconds) / 1e6, after / len(ids))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("texts", type=Path, nargs="+", help="JSONL files with a field text")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    view = ByteView.from_tokenizer(options.tokenizer)
    started = time.process_time()
    table = SplitTable.from_view(view)
    built = time.process_time() - started
    texts = [json.loads(line)["text"] for path in options.texts for line in path.read_text().splitlines()]
    own = np.concatenate([encoding.ids for encoding in view.encode_batch(texts, exact=False)])
    ids = np.resize(own, TOKENS)
    print(f"{view.vocab_size:,} tokens, {len(table.left):,} splits, table made in {built:.2f} s")
    print(f"{table.splittable[own].mean():.3f} of {len(own):,} tokens of text can be split\n")
    print("| law | tokens a document | proportion | million tokens a second | growth |\n|---|---|---|---|---|")
    for proportion in PROPORTIONS:
        for size in DOCUMENT_TOKENS:
            rows = [split_speed(table, ids, size, proportion, law, options.repeat) for law in ("steps", "binomial")]
            rows.append(_loop_speed(table, ids, size, proportion, options.repeat))
            for row in rows:
                speed = f"{row.million_a_second:.2f} | {row.growth:.4f}"
                print(f"| {row.method} | {row.document_tokens:,} | {row.proportion} | {speed} |")


if __name__ == "__main__":
    main()
