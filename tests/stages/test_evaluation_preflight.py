"""The preflight: what is checked of a model, what is recorded, and what a failed check denies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from alignment.byte_view import ByteView
from stages.evaluation.core import ABILITIES
from stages.evaluation.preflight import (
    Check,
    Preflight,
    boundary_crossings,
    changed_documents,
    embedding_rows,
    examine,
    lost_domains,
    round_trip,
    special_tokens,
    text_start,
    vocabulary,
)
from stages.evaluation.text_start import TextStart
from stages.evaluation.windows import Document

DOCUMENTS = [
    Document("prose/0", "prose", "The quick fox sleeps where two boundaries meet."),
    Document("german/0", "german", "Ein Häuschen steht im Wald."),
]


@pytest.fixture(scope="module")
def directory(tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]) -> Path:
    return tiny_model_dir(tiny_tokenizer_dirs[0], tied=False)


@pytest.fixture
def model(directory: Path):
    return AutoModelForCausalLM.from_pretrained(directory).eval()


@pytest.fixture
def tokenizer(directory: Path):
    return AutoTokenizer.from_pretrained(directory)


def superword_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and tokens that hold the end of one word and the next: `Xy z` is `X`, `y z`."""
    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate([*alphabet, "Ġb", "aĠb"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "b"), ("a", "Ġb")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = ByteLevelDecoder()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_a_sound_model_passes_everything(model, tokenizer) -> None:
    view = ByteView.from_tokenizer(tokenizer)
    found = examine(model, tokenizer, view, TextStart.of(tokenizer, view), DOCUMENTS, {})
    names = [check.name for check in found.checks]
    assert names == [
        *("round trip", "text start", "boundary crossings", "special tokens"),
        *("vocabulary", "embedding rows", "output head"),
    ]
    assert [check.failed for check in found.checks] == [None] * 7
    assert found.denied(ABILITIES) is None
    assert Preflight.from_json(found.to_json()) == found


def test_a_failed_check_denies_what_it_falsifies_and_no_more() -> None:
    found = Preflight(
        (
            Check("round trip", {}, ("score_texts",), "it changes everything"),
            Check("vocabulary", {}, (), None),
            Check("special tokens", {}, ("generate",), "no end of text"),
        )
    )
    assert found.denied(frozenset({"score_texts"})) == "preflight, round trip: it changes everything"
    assert found.denied(frozenset({"score_continuations"})) is None
    both = found.denied(frozenset({"score_texts", "generate"}))
    assert both == "preflight, round trip: it changes everything; preflight, special tokens: no end of text"


def test_round_trip_counts_documents_and_fails_for_lost_domains(tokenizer) -> None:
    from tokenizers.normalizers import Replace

    tokenizer.backend_tokenizer.normalizer = Replace("ä", "ae")
    view = ByteView.from_tokenizer(tokenizer)
    changed = changed_documents(view, DOCUMENTS)
    assert list(changed) == ["german/0"]
    assert "from byte 5" in changed["german/0"]
    failed = round_trip(view, DOCUMENTS, changed)
    assert failed.failed == "the tokenizer changes more than half of the documents of german"
    assert (failed.found["documents"], failed.found["changed"], failed.falsifies) == (2, 1, ("score_texts",))
    more = [*DOCUMENTS, Document("german/1", "german", "Im Wald.")]
    assert lost_domains(more, changed) == []
    assert round_trip(view, more, changed).failed is None


def test_a_text_start_says_what_is_added_and_refuses_a_doubled_bos(tokenizer) -> None:
    view = ByteView.from_tokenizer(tokenizer)
    plain = text_start(tokenizer, view, TextStart.of(tokenizer, view))
    assert plain.failed is None
    assert plain.found["tokenizer adds behind"] == []
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> <|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.bos_token_id)]
    )
    view = ByteView.from_tokenizer(tokenizer)
    twice = text_start(tokenizer, view, TextStart.of(tokenizer, view))
    assert "the same token twice" in twice.failed
    assert set(twice.falsifies) == ABILITIES


def test_a_text_start_shows_an_end_of_text_that_the_tokenizer_appends() -> None:
    tokenizer = ByT5Tokenizer(extra_ids=0)
    view = ByteView.from_tokenizer(tokenizer)
    found = text_start(tokenizer, view, TextStart.of(tokenizer, view))
    assert found.found["tokenizer adds behind"] == ["</s>"]
    assert found.failed is None


def test_boundary_crossings_counts_word_ends_inside_tokens() -> None:
    view = ByteView.from_tokenizer(superword_tokenizer())
    # Word ends: `a| b` is inside `a b`; `c| b` is not; the space before `東` follows two-byte é.
    few = boundary_crossings(view, ["xa bc b", "é 東"])
    assert few.found == {"word ends": 3, "inside a token": 1}
    assert few.failed is None
    most = boundary_crossings(view, ["a b", "a b  b"])
    assert most.found == {"word ends": 3, "inside a token": 2}
    assert most.failed == "2 of 3 word ends lie inside a token, so most continuations have no score of their own"
    assert most.falsifies == ("score_continuations",)
    assert boundary_crossings(view, []).failed is None


def test_special_tokens_are_listed_and_the_end_of_text_is_one(model, tokenizer) -> None:
    view = ByteView.from_tokenizer(tokenizer)
    sound = special_tokens(model, view)
    assert sound.found == {"count": 1, "tokens": ["<|endoftext|>"], "end of text": ["<|endoftext|>"]}
    assert sound.failed is None
    model.config.eos_token_id = [tokenizer.eos_token_id, 50]
    unsound = special_tokens(model, view)
    assert "ends texts with id 50, which is no special token" in unsound.failed
    assert unsound.falsifies == ("generate",)
    model.config.eos_token_id = None
    assert special_tokens(model, view).failed is None


def test_the_vocabulary_is_told_by_its_hash(tiny_tokenizer_dirs: tuple[Path, Path], tokenizer) -> None:
    view = ByteView.from_tokenizer(tokenizer)
    other = ByteView.from_tokenizer(tiny_tokenizer_dirs[1])
    assert vocabulary(view).found["hash"] == ByteView.from_tokenizer(tiny_tokenizer_dirs[0]).fingerprint
    assert vocabulary(view).found["hash"] != vocabulary(other).found["hash"]
    assert vocabulary(view).falsifies == ()


def test_a_tokenizer_larger_than_its_model_denies_everything(model, tokenizer) -> None:
    view = ByteView.from_tokenizer(tokenizer)
    model.resize_token_embeddings(300)
    (check,) = embedding_rows(model, view, TextStart.of(tokenizer, view))
    assert check.failed == f"the tokenizer has {view.vocab_size} ids, the model only 300 input rows and 300 output rows"
    assert set(check.falsifies) == ABILITIES


def test_a_head_that_does_more_denies_scores_and_not_generation(model, tokenizer) -> None:
    view = ByteView.from_tokenizer(tokenizer)
    with torch.no_grad():
        model.get_output_embeddings().weight *= 50
    model.config.final_logit_softcapping = 1.0  # which Llama does not apply
    _, head = embedding_rows(model, view, TextStart.of(tokenizer, view))
    assert "does more than multiply hidden states by a matrix" in head.failed
    assert set(head.falsifies) == {"score_texts", "score_continuations"}
