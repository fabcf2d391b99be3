"""Random segmentations: which places are compared, and what a model makes of them by a walk in float64."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment.byte_view import ByteView
from alignment.splits import Expansion, SplitTable
from stages.evaluation.core import ignore
from stages.evaluation.robustness.invariance import Invariance, sections
from stages.evaluation.robustness.options import InvarianceOptions
from stages.evaluation.robustness.segmentations import (
    Reader,
    compare,
    random_segmentations,
    split_words,
    word_ends,
)
from stages.evaluation.scoring import load_model
from stages.evaluation.sections import SectionContext, SectionReport, Subject
from stages.evaluation.windows import Document
from stages.stage import StageError

TEXT = "The quick brown fox jumps over the lazy dog, and naïve façades sleep on; tokens are byte strings."
DOCUMENTS = [Document(f"prose/{number}", "prose", TEXT[number * 4 :]) for number in range(3)]


@pytest.fixture(scope="module")
def path(tiny_tokenizer_dirs: tuple[Path, Path], tiny_model_dir: Callable[..., Path]) -> Path:
    directory = tiny_model_dir(tiny_tokenizer_dirs[1], seed=6, tied=False)
    model = AutoModelForCausalLM.from_pretrained(directory)
    model.get_output_embeddings().weight.data *= 20  # preferences worth comparing
    model.save_pretrained(directory)
    return directory


def _subject(path: Path) -> Subject:
    return Subject("teacher", path, ByteView.from_tokenizer(path), None, load_model(path))


def _section(**options: float) -> Invariance:
    context = SectionContext({}, {}, (), "init", None, {}, [], 512, None)
    defaults = {"excerpts": 3, "excerpt_bytes": 200, "segmentations": 3, "proportion": 0.5}
    (section,) = sections(InvarianceOptions.model_validate(defaults | options), DOCUMENTS, context)
    return section


def _report(section: Invariance, **paths: Path) -> SectionReport:
    found = {row: section.score(_subject(path), ignore) for row, path in paths.items()}
    return section.report(json.loads(json.dumps(found, allow_nan=False)))


def test_words_end_where_no_letter_or_digit_follows():
    text = "naïve 3rd, end"
    ends = np.array([2, 6, 7, 10, 11, 12, 15])  # "na", "ïve", " ", "3rd", ",", " ", "end"
    assert word_ends(text, ends).tolist() == [False, True, False, True, False, False, True]


def test_places_are_the_ends_of_words_with_a_split_token():
    # Words of tokens (0 1) (2) (3 4 5) and a last token that ends no word; tokens 0, 2 and 6 were split.
    is_end = np.array([False, True, True, False, False, True, False])
    origin = np.array([0, 0, 1, 2, 2, 3, 4, 5, 6, 6])
    assert split_words(is_end, Expansion(np.zeros(10, np.int32), origin)).tolist() == [1, 2]
    assert split_words(is_end, Expansion(np.zeros(7, np.int32), np.arange(7))).tolist() == []


def test_a_comparison_is_that_of_a_walk_in_float64(path):
    view = ByteView.from_tokenizer(path)
    ids = view.encode(TEXT).ids
    (expansion,) = random_segmentations(SplitTable.from_view(view), ids, 0.6, [(0, 1)])
    assert len(expansion.ids) > len(ids)
    places = split_words(word_ends(TEXT, view.encode(TEXT).byte_ends), expansion)
    reader = Reader(load_model(path), view, ids.tolist())
    found = compare(reader, reader.read(ids, 1), expansion, places)

    model = AutoModelForCausalLM.from_pretrained(path).double()
    sides = {}
    for name, tokens in (("own", ids), ("random", expansion.ids)):
        with torch.no_grad():
            out = model(torch.tensor(np.array([tokens])).long(), output_hidden_states=True)
        sides[name] = (out.logits[0].softmax(-1).numpy(), [layer[0].numpy() for layer in out.hidden_states])
    last = [max(place for place, token in enumerate(expansion.origin) if token == own) for own in range(len(ids))]
    probabilities, states = sides["random"]
    scored = range(last[0] + 1, len(expansion.ids))
    assert found.nats == pytest.approx(
        -sum(math.log(probabilities[place - 1, expansion.ids[place]]) for place in scored), abs=1e-3
    )
    assert found.places == len(places) > 5
    for number, place in enumerate(places.tolist()):
        ours, theirs = (
            _by_first_byte(view, side[where])
            for side, where in ((sides["own"][0], place), (probabilities, last[place]))
        )
        kl = sum(p * math.log(p / q) for p, q in zip(ours, theirs, strict=True) if p > 0)
        assert found.kl_nats[number] == pytest.approx(kl, abs=1e-4)
        assert found.same_byte[number] == (np.argmax(ours) == np.argmax(theirs))
        for layer in range(3):
            left, right = sides["own"][1][layer][place], states[layer][last[place]]
            cosine = left @ right / np.linalg.norm(left) / np.linalg.norm(right)
            assert found.distance[layer, number] == pytest.approx(1 - cosine, abs=1e-5)


def _by_first_byte(view: ByteView, probabilities: np.ndarray) -> np.ndarray:
    found = np.zeros(257)
    for token, probability in enumerate(probabilities):
        data = view.token_bytes(token)
        found[data[0] if data else 256] += probability
    assert found.sum() == pytest.approx(1.0)
    return found


def test_a_uniform_model_pays_for_the_tokens_that_come_in_addition(path, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(path)
    torch.nn.init.zeros_(model.lm_head.weight)
    model.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.save_pretrained(tmp_path)
    section = _section()
    excerpts = section.score(_subject(tmp_path), ignore)
    bits = math.log2(len(tokenizer))
    for found in excerpts:
        assert found["nats"] / math.log(2) == pytest.approx(bits * (found["tokens"] - 1), rel=1e-5)
        assert all(growth > found["tokens"] for growth in found["random_tokens"])
    cells = {name: cell.value for name, cell in section.report({"teacher": excerpts}).tables[0].rows["teacher"].items()}
    assert cells["same byte"] == 100
    assert cells["KL"] == pytest.approx(0, abs=1e-6)
    assert cells["cost"] > 0.3
    assert cells["distance"] > 0.001


def test_segmentations_are_a_function_of_seed_and_excerpt(path):
    first, again, other = (_section(seed=seed).score(_subject(path), ignore) for seed in (0, 0, 1))
    assert first == again
    assert [found["random_nats"] for found in first] != [found["random_nats"] for found in other]
    assert all(len(set(found["random_nats"])) > 1 for found in first)


def test_every_model_is_compared_with_itself_and_with_the_others(path):
    report = _report(_section(), teacher=path, init=path)
    table = report.tables[0]
    assert table.rows["init"] == table.rows["teacher"]
    assert set(table.differences) == {"teacher"}
    assert all(cell.value == 0 for cell in table.differences["teacher"]["init"].values())
    lines = report.curves[0].lines
    assert [layer for layer, _ in lines["init"]] == [0, 1, 2]
    assert lines["init"][-1][1] == pytest.approx(table.rows["init"]["distance"].value)
    assert report.metrics["init.same_byte"] == table.rows["init"]["same byte"].value


def test_an_excerpt_that_is_not_spelled_counts_for_no_model(path):
    section = _section()
    found = section.score(_subject(path), ignore)
    report = section.report({"teacher": found, "init": [None, *found[1:]]})
    assert report.facts["excerpts read"] == 2
    assert [(entry.model, entry.what) for entry in report.skipped] == [("init", f"excerpt {section._excerpts[0].id}")]


def test_excerpts_that_are_too_long_for_a_model_are_refused(path):
    context = SectionContext({}, {}, (), None, None, {}, [], 512, None)
    options = InvarianceOptions(excerpts=2, excerpt_bytes=2000)
    (section,) = sections(options, [Document("long", "long", TEXT * 30)], context)
    with pytest.raises(StageError, match="the model has 512 positions; lower excerpt_bytes"):
        section.score(_subject(path), ignore)


def test_no_plain_text_and_ensembles_are_refused():
    context = SectionContext({}, {}, (), None, None, {}, [], 512, None)
    with pytest.raises(StageError, match="no plain text"):
        sections(InvarianceOptions(), [], context)
    with pytest.raises(StageError, match="ensemble"):
        _section().score(Subject("both", None, None, None, None), ignore)


@pytest.mark.parametrize(
    ("name", "value"), [("proportion", 0), ("segmentations", 1), ("excerpts", 1), ("excerpt_bytes", 8), ("seed", -1)]
)
def test_options_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        InvarianceOptions.model_validate({name: value})
