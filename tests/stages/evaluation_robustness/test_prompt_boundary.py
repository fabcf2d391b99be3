"""Cut prompts: where texts are cut, which tokens both sides have, and what that costs by a walk in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from alignment.byte_view import ByteView
from stages.evaluation.core import ignore
from stages.evaluation.robustness.cut_places import Cut, choose_cuts, tokens_of
from stages.evaluation.robustness.options import PromptBoundaryOptions
from stages.evaluation.robustness.prompt_boundary import PromptBoundary, sections
from stages.evaluation.scoring import load_model
from stages.evaluation.sections import SectionContext, Subject
from stages.evaluation.text_start import TextStart
from stages.evaluation.token_scorer import TokenScorer
from stages.evaluation.windows import Document
from stages.stage import StageError

PROSE = (
    "The quick foxes sleep where several boundaries meet, and lonely dogs jumped on without a second thought. Nobody "
    "remembers whether those tokens were split before, but bytes were always there, under every letter and token."
)
CODE = (
    "def subtract_numbers(left, right):\n    return compute(left) - rightMost\n\nprint(subtract_numbers(345, x))\n" * 2
)
DOCUMENTS = [
    Document("prose/0", "prose", PROSE),
    Document("prose/1", "prose", PROSE[50:]),
    Document("code/0", "code", CODE),
    Document("zh/0", "zh", "東京在日本的東部，人口很多。大阪在西部。" * 4),
]


def _section(options: PromptBoundaryOptions, documents: list[Document] = DOCUMENTS) -> PromptBoundary:
    context = SectionContext({}, {}, (), None, None, {}, [], 512, None)
    (section,) = sections(options, documents, context)
    return section


def test_texts_are_cut_at_places_of_their_kind():
    options = PromptBoundaryOptions(positions=12, context_bytes=60, characters=9)
    cuts = choose_cuts(DOCUMENTS, options)
    assert {cut.kind for cut in cuts} == {"space", "word", "identifier", "chinese"}
    for cut in cuts:
        source = next(document.text for document in DOCUMENTS if cut.id.startswith(f"{document.id}/"))
        assert cut.prompt + cut.continuation in source
        assert len(cut.continuation) == 9
        assert 16 <= len(cut.prompt.encode()) <= 60
        before, after = cut.prompt[-1], cut.continuation[0]
        if cut.kind == "space":
            assert before == " "
            assert after.isalpha()
        elif cut.kind == "chinese":
            assert "\u4e00" <= before <= "\u9fff"
            assert "\u4e00" <= after <= "\u9fff"
        else:
            assert (before + after).replace("_", "").isalnum()


def test_cuts_are_a_function_of_the_seed_and_come_from_every_document():
    options = PromptBoundaryOptions(positions=4, context_bytes=60, characters=9)
    cuts = choose_cuts(DOCUMENTS, options)
    assert cuts == choose_cuts(DOCUMENTS, options)
    assert cuts != choose_cuts(DOCUMENTS, options.model_copy(update={"seed": 1}))
    of_words = [cut.id.rsplit("/", 2)[0] for cut in cuts if cut.kind == "word"]
    assert len(of_words) == 4
    assert set(of_words) == {"prose/0", "prose/1", "code/0"}


def test_text_without_places_is_refused_and_kinds_without_are_listed():
    with pytest.raises(StageError, match=r"no document of data\.eval has a word"):
        _section(PromptBoundaryOptions(), [Document("n/0", "n", "12 34 56")])
    section = _section(PromptBoundaryOptions(characters=5), DOCUMENTS[:1])
    report = section.report({"teacher": [{"cost": 0.0, "inside": False}] * len(section._cuts)})
    assert {entry.what for entry in report.skipped} == {"kind identifier", "kind chinese"}


@pytest.mark.demo
def test_a_word_cut_in_gpt2_s_vocabulary(gpt2_tokenizer_dir):
    view = ByteView.from_tokenizer(gpt2_tokenizer_dir)
    cut = tokens_of(view, Cut("a", "word", "The str", "awberry"))
    spelled = [[view.token_bytes(token) for token in ids.tolist()] for ids in (cut.whole, cut.parts)]
    assert spelled == [[b"The", b" strawberry"], [b"The", b" str", b"aw", b"berry"]]
    assert (cut.first_scored, cut.continuation, cut.inside) == (1, 2, True)
    whole = tokens_of(view, Cut("b", "space", "The strawberry", " jam"))
    assert np.array_equal(whole.whole, whole.parts)
    assert (whole.first_scored, whole.continuation, whole.inside) == (2, 2, False)


@pytest.fixture(scope="module")
def dummy_prefix() -> ByteView:
    """A tokenizer that puts a space in front of every text, as Llama 2's does."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=120, show_progress=False)
    tokenizer.train_from_iterator([PROSE, "strawberry straw berry\n" * 9], trainer)
    return ByteView.from_tokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer))


def test_a_continuation_has_no_space_of_the_tokenizer_s_own(dummy_prefix):
    cut = tokens_of(dummy_prefix, Cut("a", "word", "berry straw", "berry"))
    spelled = b"".join(dummy_prefix.token_bytes(token) for token in cut.parts.tolist())
    assert spelled == b" berry strawberry"
    alone = dummy_prefix.encode("berry").ids.tolist()
    assert dummy_prefix.token_bytes(alone[0])[:1] == b" "


def test_text_that_a_tokenizer_does_not_spell_is_not_asked(dummy_prefix):
    assert tokens_of(dummy_prefix, Cut("a", "chinese", "The 東京在日本的東部", "人口")) is None


@pytest.fixture(scope="module")
def subject(tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]) -> Subject:
    path = tiny_model_dir(tiny_tokenizer_dirs[1], seed=5)
    view, model = ByteView.from_tokenizer(path), load_model(path)
    start = TextStart.of(AutoTokenizer.from_pretrained(path), view)
    return Subject("teacher", path, view, TokenScorer("teacher", model, view, start, batch_tokens=512), model)


def test_costs_are_those_of_a_walk_in_float64(subject):
    section = _section(PromptBoundaryOptions(positions=3, context_bytes=40, characters=6))
    model = AutoModelForCausalLM.from_pretrained(subject.path).double()
    tokenizer = AutoTokenizer.from_pretrained(subject.path)

    def nats(ids: list[int]) -> np.ndarray:
        with torch.no_grad():
            logp = model(torch.tensor([[tokenizer.eos_token_id, *ids]])).logits[0].log_softmax(-1)
        return np.array([-float(logp[place, token]) for place, token in enumerate(ids)])

    found = section.score(subject, ignore)
    assert any(cost["inside"] for cost in found)
    assert not all(cost["inside"] for cost in found)
    for cut, cost in zip(section._cuts, found, strict=True):
        prompt, continuation, whole = (
            tokenizer(text, add_special_tokens=False).input_ids
            for text in (cut.prompt, cut.continuation, cut.prompt + cut.continuation)
        )
        of_parts = nats([*prompt, *continuation])
        assert cost["cost"] == pytest.approx(float(of_parts.sum() - nats(whole).sum()), abs=1e-4)
        assert cost["tokens"] == pytest.approx(float(of_parts[len(prompt) :].sum()), abs=1e-4)
        if cut.prompt.isascii():
            offsets = tokenizer(cut.prompt + cut.continuation, return_offsets_mapping=True)["offset_mapping"]
            assert cost["inside"] == (len(cut.prompt) not in {end for _, end in offsets})


def test_costs_are_given_per_character_and_inside_tokens_apart():
    section = _section(PromptBoundaryOptions(positions=2, context_bytes=40, characters=4), DOCUMENTS[:1])
    costs = [
        {"cost": 8 * math.log(2), "inside": True},
        {"cost": 0.0, "inside": False},
        {"cost": 4 * math.log(2), "inside": True},
        None,
    ]
    assert [cut.kind for cut in section._cuts] == ["space", "space", "word", "word"]
    report = section.report({"teacher": costs})
    key, inside, there = (table.rows["teacher"] for table in report.tables)
    assert {kind: measure.value for kind, measure in key.items()} == pytest.approx(
        {"all": 1.0, "space": 1.0, "word": 1.0}
    )
    assert inside["space"].value == 50
    assert there["space"].value == pytest.approx(2.0)
    assert there["all"].value == pytest.approx(1.5)
    assert report.metrics["teacher.all"] == pytest.approx(1.0)
    assert [entry.model for entry in report.skipped if entry.what == "1 places of kind word"] == ["teacher"]


def test_texts_that_are_too_long_for_a_model_are_refused(subject):
    section = _section(
        PromptBoundaryOptions(positions=1, context_bytes=2000, characters=5), [Document("p", "p", PROSE * 9)]
    )
    with pytest.raises(StageError, match="the model has 512 positions; lower context_bytes"):
        section.score(subject, ignore)


def test_ensembles_are_not_asked():
    section = _section(PromptBoundaryOptions(positions=2))
    with pytest.raises(StageError, match="ensemble"):
        section.score(Subject("both", None, None, None, None), ignore)


@pytest.mark.parametrize(("name", "value"), [("positions", 0), ("context_bytes", 31), ("characters", 0), ("seed", -1)])
def test_options_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        PromptBoundaryOptions.model_validate({name: value})
