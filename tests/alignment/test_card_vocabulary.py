"""Tokens that encoding never gives, and the inventory of a card."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from toy_tokenizers import byte_level, fast
from transformers import PreTrainedTokenizerFast

from alignment.byte_models import byte_model
from alignment.byte_view import ByteView
from alignment.card.card import make_card
from alignment.card.lexicon import Lexicon
from alignment.card.reachability import reachability


def _tokenizer(merges: list[tuple[str, str]], extra: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with ``extra`` entries that no merge makes."""
    pipeline = json.loads(byte_level(*merges).to_str())
    vocabulary = pipeline["model"]["vocab"]
    vocabulary.update({entry: len(vocabulary) + place for place, entry in enumerate(extra)})
    specials = {"eos_token": "<eos>", "additional_special_tokens": ["<unused0>"]}
    return fast(Tokenizer.from_str(json.dumps(pipeline)), name_or_path="toy", **specials)


def _ids(tokenizer: PreTrainedTokenizerFast, *tokens: str) -> list[int]:
    return [tokenizer.get_vocab()[token] for token in tokens]


def test_unreachable_tokens_are_found():
    # "zq" has no merge. "b a" is cut by the pre-tokenizer before it is merged. "æĿ" is two of the three bytes of 東.
    tokenizer = _tokenizer([("a", "b"), ("b", "Ġ"), ("bĠ", "a"), ("æ", "Ŀ")], ["zq", "äŃ"])
    view = ByteView.from_tokenizer(tokenizer)
    found = reachability(view, byte_model(tokenizer, view))
    assert found.unreachable.tolist() == sorted(_ids(tokenizer, "bĠ", "bĠa", "zq"))
    assert found.unreachable_parts.tolist() == _ids(tokenizer, "äŃ")
    assert found.untested_parts == 0
    asked = reachability(view)
    assert asked.unreachable.tolist() == found.unreachable.tolist()
    # The 128 bytes beyond ASCII are parts of characters, and so are the two pairs of them.
    assert (asked.untested_parts, asked.tested) == (130, found.tested - 130)


def test_every_token_of_a_trained_tokenizer_is_reached(tiny_tokenizer_dirs):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dirs[1])
    view = ByteView.from_tokenizer(tokenizer)
    found = reachability(view, byte_model(tokenizer, view))
    assert found.tested == view.vocab_size - len(view.special_tokens)
    assert not found.unreachable.size
    assert not found.unreachable_parts.size


def test_continuations_of_words_are_reached_behind_a_letter_that_they_do_not_join():
    vocabulary = {"[UNK]": 0, "a": 1, "ab": 2, "q": 3, "##b": 4, "##!": 5, "!": 6}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    view = ByteView.from_tokenizer(fast(backend, unk_token="[UNK]"))
    # Punctuation is cut off the letter before it, so it never continues a word.
    assert reachability(view).unreachable.tolist() == [5]


@pytest.fixture(scope="module")
def toy_card():
    tokenizer = _tokenizer([("a", "b"), ("Ġ", "ab")], ["zq"])
    texts = {"first": ["ab ab"], "second": ["ab é"]}
    return make_card(tokenizer, ByteView.from_tokenizer(tokenizer), texts, lexicon=Lexicon(frozenset({"ab"})))


def test_the_inventory(toy_card):
    inventory = toy_card.inventory
    assert [(token.string, token.roles) for token in inventory.special] == [("<eos>", ("eos",)), ("<unused0>", ())]
    assert (inventory.vocab_size, inventory.missing, inventory.reserved) == (261, 0, 1)
    assert (inventory.single_bytes, inventory.parts_of_characters, inventory.byte_fallback) == (256, 128, 0)
    assert inventory.longest_token == 3
    assert inventory.unreachable == 1
    assert inventory.unreachable_examples == ("258 'zq'",)
    assert toy_card.digit_scheme == "single"


def test_the_texts_of_a_card(toy_card):
    # ab|Ġab and ab|Ġ|Ã|©: ab is in both texts, Ġab in the first alone, the other three in the second alone.
    assert toy_card.text.counts["tokens"] == 6
    assert toy_card.texts["first"].measures["bytes_per_token"] == 2.5
    assert toy_card.text.vocabulary_used == 5 / 259
    assert toy_card.text.renyi_entropy == pytest.approx(np.log2((2 / 6) ** 2.5 + 4 * (1 / 6) ** 2.5) / -1.5)
    assert toy_card.text.renyi_efficiency == pytest.approx(toy_card.text.renyi_entropy / np.log2(259))
    assert toy_card.language_shares == {"second": pytest.approx(3.5 / 5), "first": pytest.approx(1.5 / 5)}
    # The text's types are ab and the parts of é; of white space alone there is none.
    assert (toy_card.lexicon.types, toy_card.lexicon.valid_types) == (3, pytest.approx(1 / 3))
    assert toy_card.lexicon.valid_tokens == pytest.approx(3 / 5)


def test_a_card_is_plain_json(toy_card):
    values = json.loads(json.dumps(toy_card.to_json(), allow_nan=False))
    assert values["taxonomy"]["classes"]["control_tokens"] == 2
    assert values["script_shares"]["latin"] > 0
