"""FOCUS, WECHSEL and OFA at work on a tensor, and what the whole similarity family has in common."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from init_world import make_task, make_transplant
from pydantic import TypeAdapter, ValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from alignment.byte_view import ByteView
from alignment.token_codecs import byte_alphabet
from alignment.vocab import Match
from stages.initialisation.methods import build_method
from stages.initialisation.task import RowTask, Transplant
from stages.initializers import Chain
from stages.stage import StageError, StageInterrupted

CLP = ("clp", "clp_plus")
TEXTS = ["the cat sat on the mat. " * 30, "a hat that fat cat had. " * 30, "on the mat the hat sat. " * 30]
MERGES = [("t", "h"), ("th", "e"), ("a", "t"), ("Ġ", "the"), ("Ġ", "c"), ("Ġc", "at")]
SOURCE_MERGES, TARGET_MERGES = MERGES[:4], [*MERGES, ("m", "at"), ("Ġ", "mat"), ("h", "at"), ("Ġ", "hat"), ("z", "q")]


def options(method: str, **values):
    """The options as a recipe gives them."""
    (entry,) = TypeAdapter(Chain).validate_python([{"method": method, **values}])
    return entry


def build(task: RowTask, method: str, **values):
    """The fitted method."""
    built = build_method(options(method, **values), task)
    built.fit()
    return built


def tokenizer(merges: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """Byte-level BPE over all bytes and the given merges."""
    entries = [*sorted(byte_alphabet()), *(left + right for left, right in merges)]
    backend = Tokenizer(models.BPE({entry: index for index, entry in enumerate(entries)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.fixture(scope="module")
def views() -> tuple[ByteView, ByteView]:
    source, target = (ByteView.from_tokenizer(tokenizer(merges)) for merges in (SOURCE_MERGES, TARGET_MERGES))
    return source, target


def id_of(view: ByteView, token: bytes) -> int:
    return next(index for index in range(view.vocab_size) if view.token_bytes(index) == token)


def new_ids(task: RowTask) -> torch.Tensor:
    return torch.from_numpy(np.flatnonzero(task.alignment.match == Match.PIECES))


@pytest.fixture
def focus_world(views, tmp_path) -> Transplant:
    return make_transplant(views=views, texts=TEXTS, cache=tmp_path / "cache", directory=tmp_path)


@pytest.fixture
def word_files(tmp_path) -> dict[str, str]:
    """Vectors of a few words, the same with their axes exchanged, and the dictionary between the two."""
    words = {"the": (1, 0, 0), "cat": (0, 1, 0), "mat": (0, 0.9, 0.3), "hat": (0, 0.5, 0.5), "sat": (0.6, 0, 0.8)}
    turned = {word.upper(): (y, z, x) for word, (x, y, z) in words.items()}
    files = {}
    for name, vectors in (("target", words), ("source", turned)):
        lines = [f"{len(vectors)} 3", *(f"{word} {x} {y} {z}" for word, (x, y, z) in vectors.items())]
        files[name] = str(tmp_path / f"{name}.vec")
        (tmp_path / f"{name}.vec").write_text("\n".join(lines) + "\n")
    files["dictionary"] = str(tmp_path / "pairs.tsv")
    (tmp_path / "pairs.tsv").write_text("".join(f"{word.upper()}\t{word}\n" for word in words))
    return files


def test_focus_makes_rows_of_shared_tokens_that_have_vectors(focus_world):
    task = make_task(focus_world)
    method = build(task, "focus", dimensions=8, min_count=20)
    target = focus_world.target
    common, absent = (id_of(target, token) for token in (b" hat", b"zq"))
    block = method.rows(torch.tensor([common, absent]))
    assert block.made.tolist() == [True, False]
    used = block.rows.indices[block.rows.indices >= 0]
    spelled = {focus_world.source.token_bytes(token) for token in used.tolist()}
    assert spelled
    # Many more tokens are shared, but these texts have none of them.
    assert all(spelling in b" the cat sat on the mat. a hat that fat cat had." for spelling in spelled)
    rows = block.values(task.rows)[:1]
    anchors = task.rows[task.anchor_source]
    assert ((rows >= anchors.amin(dim=0)) & (rows <= anchors.amax(dim=0))).all()


def test_focus_trains_once_for_the_same_text_tokenizer_and_options(focus_world):
    said = []
    transplant = replace(focus_world, progress=said.append)
    first = build(make_task(transplant), "focus", dimensions=8)
    ids = new_ids(make_task(transplant))
    second = build(make_task(transplant, role="output"), "focus", dimensions=8)
    assert len(said) == 1
    assert torch.equal(first.rows(ids).rows.weights, second.rows(ids).rows.weights)
    build(make_task(transplant), "focus", dimensions=9)
    build(make_task(replace(transplant, texts=lambda: iter(TEXTS[:2]))), "focus", dimensions=8)
    build(make_task(replace(transplant, seed=18)), "focus", dimensions=8)
    assert len(said) == 4


def test_focus_without_a_cache_gives_the_same_bytes(focus_world):
    ids = new_ids(make_task(focus_world))
    cached, fresh = (
        build(make_task(transplant), "focus", dimensions=8).rows(ids).rows
        for transplant in (focus_world, replace(focus_world, cache=None))
    )
    assert torch.equal(cached.indices, fresh.indices)
    assert torch.equal(cached.weights, fresh.weights)


def test_focus_reads_vectors_of_the_vocabularys_own_entries(focus_world, tmp_path):
    tokenizer(TARGET_MERGES).save_pretrained(tmp_path)
    file = tmp_path / "tokens.vec"
    file.write_text("4 2\nĠhat 1 0\nat 0.9 0.1\nthe -1 0\nno-token 1 1\n")
    transplant = replace(focus_world, texts=None)
    task = make_task(transplant)
    chosen = options("focus", vectors=str(file))
    assert "documents" not in chosen.wanted_inputs
    block = build(task, "focus", vectors=str(file)).rows(torch.tensor([id_of(transplant.target, b" hat")]))
    used = block.rows.indices[0][block.rows.indices[0] >= 0].tolist()
    assert [transplant.source.token_bytes(token) for token in used] == [b"at"]
    file.write_text("1 2\nno-token 1 1\n")
    with pytest.raises(StageError, match=r"tokens.vec: none of its 1 words is a token"):
        build(task, "focus", vectors=str(file))
    file.write_text("1 2\nĠhat 1 1\n")
    with pytest.raises(StageError, match=r"none of the .* shared tokens has one"):
        build(task, "focus", vectors=str(file))


def test_focus_says_what_is_missing(focus_world, tmp_path):
    with pytest.raises(StageError, match=r"focus .*data\.train"):
        build(make_task(replace(focus_world, texts=None)), "focus")
    with pytest.raises(StageError, match=r"occurs 100000 times in the text: give more text or lower min_count"):
        build(make_task(focus_world), "focus", min_count=100_000)
    with pytest.raises(StageError, match=r"absent\.vec"):
        build(make_task(focus_world), "focus", vectors=str(tmp_path / "absent.vec"))
    with pytest.raises(StageError, match="cannot encode"):
        build(make_task(make_transplant(texts=TEXTS)), "focus")


@pytest.mark.parametrize("asked_before", [0, 2, 4])
def test_focus_stops_when_asked_and_keeps_nothing_half_done(focus_world, asked_before):
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > asked_before

    with pytest.raises(StageInterrupted):
        build(make_task(replace(focus_world, should_stop=should_stop)), "focus", dimensions=8)
    assert not list(focus_world.cache.glob("*"))


def test_word_vector_methods_stop_when_asked(focus_world, word_files):
    task = make_task(replace(focus_world, should_stop=lambda: True))
    with pytest.raises(StageInterrupted):
        build(task, "ofa", vectors=word_files["target"])
    with pytest.raises(StageInterrupted):
        build(task, "wechsel", source_vectors=word_files["source"], target_vectors=word_files["target"])


def test_wechsel_finds_source_tokens_through_the_dictionary(focus_world, word_files):
    """Source words are the target's in capitals, turned: only the dictionary brings them together."""
    source = ByteView.from_tokenizer(tokenizer([("Ġ", "C"), ("ĠC", "A"), ("ĠCA", "T"), ("H", "A"), ("HA", "T")]))
    transplant = make_transplant(views=(source, focus_world.target), cache=focus_world.cache)
    task = make_task(transplant)
    files = {"source_vectors": word_files["source"], "target_vectors": word_files["target"]}
    cat = torch.tensor([id_of(transplant.target, b" cat")])

    method = build(task, "wechsel", **files, dictionary=word_files["dictionary"], k=2)
    block = method.rows(cat)
    # No other source word has a C.
    assert {source.token_bytes(token) for token in block.rows.indices[0].tolist()} == {b" CAT", b"C"}
    assert block.rows.weights.sum().item() == pytest.approx(1)

    without = build(task, "wechsel", **files, k=2).rows(cat)
    assert not {source.token_bytes(token) for token in without.rows.indices[0].tolist()} & {b" CAT", b"C"}


def test_ofa_weights_the_nearest_source_tokens_by_softmax(focus_world, word_files):
    task = make_task(focus_world)
    block = build(task, "ofa", vectors=word_files["target"], k=3, temperature=0.2).rows(new_ids(task))
    assert block.made.any()
    assert not block.made.all()
    rows = block.values(task.rows)[block.made]
    assert ((rows >= task.rows.amin(dim=0)) & (rows <= task.rows.amax(dim=0))).all()
    assert (block.diagnostics["tokens_used"][block.made] == 3).all()


def test_ofa_factorised_makes_rows_of_the_best_approximation(focus_world, word_files):
    task = make_task(focus_world, width=6)
    ids = new_ids(task)
    plain = build(task, "ofa", vectors=word_files["target"]).rows(ids)
    left, values, right = torch.linalg.svd(task.rows.double(), full_matrices=False)
    for rank in (2, 6):
        approximation = (left[:, :rank] * values[:rank]) @ right[:rank]
        factorised = build(task, "ofa", vectors=word_files["target"], factorise=rank).rows(ids)
        assert torch.equal(factorised.made, plain.made)
        expected = plain.rows.combine(approximation)
        torch.testing.assert_close(factorised.values(task.rows).double(), expected, atol=1e-5, rtol=0)
    with pytest.raises(StageError, match="at most 6"):
        build(task, "ofa", vectors=word_files["target"], factorise=7)


def test_word_vectors_are_averaged_once_for_the_same_files(focus_world, word_files):
    task = make_task(focus_world)
    build(task, "ofa", vectors=word_files["target"])
    before = {path.name for path in focus_world.cache.glob("ofa-*")}
    build(make_task(focus_world, role="output"), "ofa", vectors=word_files["target"], k=2)
    assert {path.name for path in focus_world.cache.glob("ofa-*")} == before
    build(task, "ofa", vectors=word_files["target"], max_words=2)
    assert len(list(focus_world.cache.glob("ofa-*"))) == len(before) + 1 == 2


def test_word_vector_methods_say_what_is_wrong(focus_world, word_files, tmp_path):
    task = make_task(focus_world)
    short = tmp_path / "short.vec"
    short.write_text("1 2\nthe 1 0\n")
    with pytest.raises(StageError, match=r"wechsel: .*short.vec of 2: they are in no common space"):
        build(task, "wechsel", source_vectors=word_files["target"], target_vectors=str(short))
    pairs = tmp_path / "few.tsv"
    pairs.write_text("CAT\tcat\n")
    files = {"source_vectors": word_files["source"], "target_vectors": word_files["target"]}
    with pytest.raises(StageError, match="wechsel: only 1 pairs"):
        build(task, "wechsel", **files, dictionary=str(pairs))
    with pytest.raises(StageError, match=r"absent\.vec"):
        build(task, "ofa", vectors=str(tmp_path / "absent.vec"))
    with pytest.raises(StageError, match="a directory, expected a file"):
        build(task, "ofa", vectors=str(tmp_path))
    short.write_text("1 2\nthe 1 x\n")
    with pytest.raises(StageError, match=r"ofa: .*short.vec:2"):
        build(task, "ofa", vectors=str(short))


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("focus", {"min_count": 0}),
        ("focus", {"temperature": 0.1}),
        ("ofa", {}),
        ("ofa", {"vectors": "x.vec", "temperature": 0}),
        ("ofa", {"vectors": "x.vec", "k": 0}),
        ("wechsel", {"source_vectors": "x.vec"}),
        ("clp", {"k": 3}),
    ],
)
def test_impossible_options_are_refused(method, values):
    with pytest.raises(ValidationError):
        options(method, **values)


@pytest.mark.parametrize("method", ["focus", "ofa", *CLP])
def test_rows_depend_neither_on_the_block_nor_on_the_ids(method, focus_world, word_files):
    """Asked one by one, in another order, they are the same bytes."""
    values = {"vectors": word_files["target"]} if method == "ofa" else {}
    task = make_task(focus_world, donor_width=7)
    built = build(task, method, **values)
    ids = torch.arange(focus_world.target.vocab_size)
    whole = built.rows(ids)
    rows = whole.values(task.rows)
    for block in ids.flip(0).split(50):
        part = built.rows(block)
        assert torch.equal(part.made, whole.made[block])
        torch.testing.assert_close(part.values(task.rows)[part.made], rows[block][part.made], atol=1e-6, rtol=1e-6)


def test_estimates_grow_with_the_rows(focus_world, word_files):
    task = make_task(focus_world, donor_width=7)
    given = {"ofa": {"vectors": word_files["target"]}}
    for method in ("focus", "ofa", *CLP):
        built = build_method(options(method, **given.get(method, {})), task)
        few, many = built.estimate(10), built.estimate(1000)
        assert 0 < few.operations < many.operations
        assert many.memory_bytes >= few.memory_bytes > 0
