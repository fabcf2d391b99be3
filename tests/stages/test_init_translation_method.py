"""The method trans_tok: its files, its options and its rows."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from init_world import make_task, make_transplant
from pydantic import ValidationError

from alignment.byte_view import ByteView
from stages.initialisation.methods.translation import TransTok
from stages.initializers.translation import TransTokOptions
from stages.stage import StageError, StageInterrupted

SENTENCES = [
    ("The quick dog sleeps.", "Ein Wald steht im façade."),
    ("The dog jumps over the fox.", "Ein Wald spans die 東京."),
    ("the lazy fox sleeps", "die façade steht"),
]


@pytest.fixture(scope="module")
def views(tiny_tokenizer_dirs):
    return tuple(ByteView.from_tokenizer(directory) for directory in tiny_tokenizer_dirs)


def _fitted(task, **options):
    method = TransTok(TransTokOptions(method="trans_tok", **options), task)
    method.fit()
    return method


def _tsv(path, lines):
    path.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def _jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def test_counts_of_a_file_are_the_weights(tmp_path):
    task = make_task()
    # The target's " ab" and "abcd" are ids 4 and 3; the source's "ab", "cd" and " a" are 9, 10 and 12.
    lines = [("ab", " ab", 60), ("cd", " ab", 30), (" a", " ab", 10), ("cd", "abcd", 10), ("ab", "abcd", 9.5)]
    block = _fitted(task, counts=_tsv(tmp_path / "counts.tsv", lines)).rows(torch.tensor([4, 3, 12]))
    assert block.made.tolist() == [True, True, False]
    expected = torch.stack([0.6 * task.rows[9] + 0.3 * task.rows[10] + 0.1 * task.rows[12], task.rows[10]])
    torch.testing.assert_close(block.values(task.rows)[:2], expected, atol=1e-6, rtol=0)


def test_json_lines_may_name_ids_and_special_tokens(tmp_path):
    task = make_task()
    special = next(iter(task.transplant.source.special_tokens.values()))
    path = _jsonl(
        tmp_path / "counts.jsonl",
        [{"source": 9, "target": 4, "count": 30}, {"source": special, "target": " ab", "count": 10}],
    )
    block = _fitted(task, counts=path).rows(torch.tensor([4]))
    expected = 0.75 * task.rows[9] + 0.25 * task.rows[15]
    torch.testing.assert_close(block.values(task.rows)[0], expected, atol=1e-6, rtol=0)


def test_tokens_of_words_that_translate_each_other(tmp_path, views):
    task = make_task(make_transplant(views=views))
    path = _tsv(tmp_path / "pairs.tsv", [*SENTENCES, ("dog", "Wald"), ("dog", "Wald")] * 10)
    block = _fitted(task, parallel=path, min_count=2).rows(torch.arange(views[1].vocab_size))
    words = [view.encode(word).ids.tolist() for view, word in zip(views, ("dog", "Wald"), strict=True)]
    for token in words[1]:
        assert block.made[token]
        row = dict(zip(block.rows.indices[token].tolist(), block.rows.weights[token].tolist(), strict=True))
        assert sum(row.get(old, 0) for old in words[0]) > 0.3
    assert not block.made.all()


def test_rows_do_not_depend_on_the_block_and_are_made_again_from_the_cache(tmp_path, views):
    path = _jsonl(tmp_path / "pairs.jsonl", [{"source": old, "target": new} for old, new in SENTENCES * 10])
    task = make_task(make_transplant(views=views, cache=tmp_path / "cache"), dtype=torch.bfloat16)
    ids = torch.arange(views[1].vocab_size)
    method = _fitted(task, parallel=path, min_count=2)
    whole = method.rows(ids).values(task.rows)
    apart = torch.cat([method.rows(block).values(task.rows) for block in ids.split(37)])
    torch.testing.assert_close(apart, whole, atol=1e-6, rtol=0)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    again = _fitted(task, parallel=path, min_count=2).rows(ids)
    assert torch.equal(again.values(task.rows), whole)
    low, high = task.rows.float().min(dim=0).values, task.rows.float().max(dim=0).values
    made = whole[again.made]
    assert ((made >= low - 1e-5) & (made <= high + 1e-5)).all()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.tsv", "ab\t ab\n", r"c\.tsv:1: expected 3 fields"),
        ("c.tsv", "ab\t ab\tmany\n", r"c\.tsv:1: a count is a number from 0, found \"many\""),
        ("c.tsv", "ab\t ab\t-1\n", "a count is a number from 0"),
        ("c.tsv", "ab\t ab\tnan\n", "a count is a number from 0"),
        ("c.tsv", "\nab\tnothing\t5\n", r"c\.tsv:2: .*has no token 'nothing'"),
        ("c.tsv", "\n", "holds no counts"),
        ("c.jsonl", '{"source": "ab", "target": 4}\n', "no field 'count'"),
        ("c.jsonl", '{"source": 999, "target": 4, "count": 1}\n', "no token with the id 999"),
        ("c.jsonl", '{"source": true, "target": 4, "count": 1}\n', "a token is a text or an id"),
        ("c.tsv", "ab\t ab\t5\n", "no two tokens translate each other 10 times.*highest count is 5"),
    ],
)
def test_what_is_wrong_with_counts_is_said_with_its_place(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(StageError, match=message):
        _fitted(make_task(), counts=str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.tsv", b"one sentence\n", r"p\.tsv:1: expected 2 fields \(source, target\)"),
        ("p.tsv", b"\xff\ta\n", "not UTF-8: byte 0"),
        ("p.tsv", b"", "holds no sentence pairs"),
        ("p.jsonl", b'{"source": 5, "target": "a"}\n', "the source is no text: 5"),
        ("p.jsonl", b'{"source": "a", "target": "\\ud800"}\n', "lone surrogate"),
    ],
)
def test_what_is_wrong_with_sentences_is_said_with_its_place(tmp_path, views, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StageError, match=message):
        _fitted(make_task(make_transplant(views=views)), parallel=str(tmp_path / name))


def test_a_file_that_is_not_there_is_refused_before_anything_is_done(tmp_path):
    for path in (tmp_path / "none.tsv", tmp_path):
        with pytest.raises(StageError, match=r"none\.tsv|a directory"):
            TransTok(TransTokOptions(method="trans_tok", counts=str(path)), make_task())


def test_one_kind_of_file_is_named():
    for given in ({}, {"parallel": "a.tsv", "counts": "b.tsv"}, {"counts": "b.tsv", "iterations": 3}):
        with pytest.raises(ValidationError, match="'parallel'"):
            TransTokOptions(method="trans_tok", **given)


def test_it_stops_when_asked(tmp_path, views):
    path = _tsv(tmp_path / "pairs.tsv", SENTENCES)
    transplant = replace(make_transplant(views=views), should_stop=lambda: True)
    with pytest.raises(StageInterrupted):
        _fitted(make_task(transplant), parallel=path)
