"""Coverings by published tokenizers: merges and pattern say what encoding again says, and real text is among them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from alignment.byte_view import ByteView
from alignment.covers import CoverTree
from alignment.covers_text import split_text
from alignment.covers_tokenizer import spelled_encoder
from alignment.covers_validity import Begun, ByEncoding
from stages.evaluation.exact_bytes.scorer import _covers_of

pytestmark = [pytest.mark.demo, pytest.mark.slow]

TokenizerOf = Callable[[str], PreTrainedTokenizerFast]
ViewOf = Callable[[str], ByteView]

BY_MERGES = ("smollm2", "llama3", "tekken", "qwen")
ODD = (
    "12345 67,890.12 it's we'll DON'T x'y 'twas I'LL\n\n\n   \t\t  def f(x):\r\n    return 'a' + \"b\"; 中文文字 日本"
    " éàü ñ 🙂🙂 1234567 _x_y camelCase ABCdef //!! a/b\n/ c"
)


def prefixes(texts: dict[str, str], rng: np.random.Generator, count: int) -> list[tuple[str, int]]:
    """Texts and places in their bytes, some of them in the odd text."""
    chosen = [ODD, *rng.choice(sorted(texts), size=8, replace=False).tolist()]
    pieces = [texts.get(name, name)[:400] for name in chosen]
    found = [pieces[0 if index % 2 else int(rng.integers(len(pieces)))] for index in range(count)]
    return [(text, int(rng.integers(1, len(text.encode()) + 1))) for text in found]


def covers_text(view: ByteView, tree: CoverTree, text: str) -> bool:
    """Whether the tokens of the whole text go through the tree."""
    ids = view.encode(text).ids.tolist()
    ends = np.cumsum(view.byte_lengths[ids])
    covering = tuple(ids[: int(np.searchsorted(ends, len(tree.prefix))) + 1])
    if len(tree.prefix) == tree.start:
        return covering == tree.trunk
    nodes = {(*tree.trunk, *node.path): node for node in tree.nodes}
    return covering[:-1] in nodes and covering[-1] in nodes[covering[:-1]].lasts


@pytest.mark.parametrize("name", [*BY_MERGES, "mistral-v1"])
def test_every_text_goes_through_the_coverings_of_its_beginnings(
    name, real_tokenizer: TokenizerOf, real_view: ViewOf, real_texts
):
    view = real_view(name)
    covers = _covers_of(real_tokenizer(name), view)
    assert covers.method.startswith("merges" if name in BY_MERGES else "encoding")
    for text, end in prefixes(real_texts, np.random.default_rng(0), 30):
        if view.encode(text, exact=False).exact:
            tree = covers.tree(text.encode()[:end], what_next=False)
            assert covers_text(view, tree, text), (text.encode()[:end][-24:], text.encode()[end:][:8])


@pytest.mark.parametrize("name", BY_MERGES)
def test_merges_and_pattern_say_what_encoding_again_says(
    name, real_tokenizer: TokenizerOf, real_view: ViewOf, real_texts
):
    """Encoding again completes a character in one way of each kind, so that it may miss tokens that end inside one."""
    view = real_view(name)
    covers = _covers_of(real_tokenizer(name), view)
    again = ByEncoding(view, spelled_encoder(view)[0], looks_ahead=True)
    rng = np.random.default_rng(1)
    tokens = np.flatnonzero(view.byte_lengths)
    short = tokens[view.byte_lengths[tokens] <= 2]
    compared = 0
    for text, end in prefixes(real_texts, rng, 14):
        begun = view.encode(split_text(text.encode()[:end]).text, exact=False)
        if not begun.exact or not len(begun.ids):
            continue
        ids = tuple(begun.ids.tolist())
        data = b"".join(view.token_bytes(token) for token in ids)
        asked = np.concatenate([rng.choice(tokens, 60), rng.choice(short, 60)])
        fast = covers._validity.following(Begun(data, ids), asked)
        slow = again.following(Begun(data, ids), asked)
        assert not (slow & ~fast).any(), [view.token_bytes(int(token)) for token in asked[slow & ~fast]]
        for token in asked[fast & ~slow].tolist():
            assert split_text(data + view.token_bytes(token)).rest, (data[-24:], view.token_bytes(token))
        compared += len(asked)
    assert compared > 500
