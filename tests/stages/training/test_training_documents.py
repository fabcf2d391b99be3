"""Documents are read where they lie, the same whether they were copied or are streamed."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from window_world import Numbered

from stages.document_source import DocumentsSource
from stages.stage import StageContext, StageError
from stages.training.data.documents import TrainingDocuments
from stages.training.data.order import ReadingOrder
from stages.training.data.prefetch import BlockSource
from stages.training.data.stream import WindowStream

TEXTS = [f"Text number {number}, é🙂.\r\nIts second line." for number in range(40)]
CHATS = [
    [{"role": "user", "content": f"Question {number}?"}, {"role": "assistant", "content": "Yes."}]
    for number in range(7)
]
CALL = [{"role": "assistant", "tool_calls": [{"function": {"name": "now"}}]}, {"role": "tool", "content": "12:00"}]


def _artifact(directory: Path, **documents: Any) -> Path:
    """The artifact of one set."""
    for name in ("out", "work"):
        (directory / name).mkdir(parents=True)
    config = DocumentsSource.Config(documents=[documents])
    out = directory / "out"
    DocumentsSource().run(StageContext(config=config, inputs={}, work=directory / "work", out=out))
    DocumentsSource.output.verify(out)
    return out


def _jsonl(path: Path, records: list[dict[str, Any]], codec: str | None = None) -> Path:
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    with pyarrow.output_stream(path, compression=codec) as file:
        file.write(data)
    return path


def _shards(directory: Path) -> Path:
    """The texts in files of every format, in the order of their names."""
    directory.mkdir()
    records = [{"text": text, "number": number} for number, text in enumerate(TEXTS)]
    _jsonl(directory / "a.jsonl", records[:9])
    _jsonl(directory / "b.jsonl.gz", records[9:20], "gzip")
    _jsonl(directory / "c.jsonl.zst", records[20:21], "zstd")
    (directory / "d-empty.jsonl").touch()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records[21:39]), directory / "e.parquet", row_group_size=5)
    with pyarrow.output_stream(directory / "f.txt.bz2", compression="bz2") as file:
        file.write(TEXTS[39].encode())
    return directory


def test_a_copied_set_is_found_by_number_in_any_order(tmp_path):
    out = _artifact(tmp_path / "copy", path=str(_shards(tmp_path / "shards")), weight=1.5)
    documents = TrainingDocuments(out)
    assert len(documents) == 40
    assert documents.weights.tolist() == [1.5] * 40
    for number in np.random.default_rng(0).permutation(40).tolist():
        found = documents[number]
        assert (found.id, found.text, found.weight, found.domain) == (f"shards/{number}", TEXTS[number], 1.5, "shards")
    with pytest.raises(IndexError):
        documents[40]


@pytest.mark.parametrize("options", [{}, {"max_documents": 33}, {"document_bytes": 64}])
def test_a_streamed_set_has_the_documents_of_a_copied_one(tmp_path, options):
    shards = str(_shards(tmp_path / "shards"))
    if "document_bytes" in options:
        (tmp_path / "shards" / "g.txt").write_text("A sentence of the text. " * 30)
    copied = TrainingDocuments(_artifact(tmp_path / "copy", path=shards, **options))
    out = _artifact(tmp_path / "stream", path=shards, stream=True, sample_documents=3, **options)
    streamed = TrainingDocuments(out)
    assert len(streamed.weights) == 0
    assert list(streamed) == list(copied)
    for number in (0, 25, 26, 32, 5, 19, 20, 5):
        assert streamed[number] == copied[number]
    # Stages that read the text once find the first documents of it, and nothing of the files' text beyond that.
    sample = [json.loads(line) for line in (out / "documents.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["text"] for record in sample] == [copied[number].text for number in range(3)]
    assert json.loads((out / "manifest.json").read_text())["domains"]["shards"]["documents"] == 3


def test_conversations_prompts_and_nulls_of_tables_are_read_alike(tmp_path):
    chats = [{"chat": chat} for chat in [*CHATS, CALL]]
    _jsonl(tmp_path / "chats.jsonl", chats)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(chats), tmp_path / "chats.parquet")
    copied = TrainingDocuments(_artifact(tmp_path / "a", path=str(tmp_path / "chats.jsonl"), messages="chat"))
    for name, path in (("b", "chats.jsonl"), ("c", "chats.parquet")):
        out = _artifact(tmp_path / name, path=str(tmp_path / path), messages="chat", stream=True)
        assert list(TrainingDocuments(out)) == list(copied)
    _jsonl(tmp_path / "tasks.jsonl", [{"q": "Wie viel? ", "text": "é2"}, {"q": "", "text": "nothing before"}])
    for name, stream in (("d", None), ("e", True)):
        out = _artifact(tmp_path / name, path=str(tmp_path / "tasks.jsonl"), prompt="q", stream=stream)
        first, second = TrainingDocuments(out)
        assert (first.text, first.context_bytes) == ("Wie viel? é2", 10)
        assert (second.text, second.context_bytes) == ("nothing before", 0)


def _stream(out: Path, workers: int = 0) -> tuple[WindowStream, BlockSource]:
    documents = TrainingDocuments(out)
    order = ReadingOrder(documents.weights, documents.streamed, 0, 9)
    blocks = BlockSource(documents, Numbered(), order, workers)
    return WindowStream(blocks), blocks


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mixture_of_copied_and_streamed_sets_goes_on_exactly(tmp_path, workers):
    shards = str(_shards(tmp_path / "shards"))
    sets = [
        {"path": shards, "stream": True, "name": "streamed", "weight": 0.5},
        {"path": str(_jsonl(tmp_path / "x.jsonl", [{"text": text} for text in TEXTS[:15]])), "name": "copied"},
    ]
    for name in ("out", "work"):
        (tmp_path / name).mkdir()
    ctx = StageContext(DocumentsSource.Config(documents=sets), {}, tmp_path / "work", tmp_path / "out")
    DocumentsSource().run(ctx)
    uninterrupted, _ = _stream(tmp_path / "out")
    expected = [[w.student.ids.tolist() for w in uninterrupted.take(10)] for _ in range(9)]
    before, first = _stream(tmp_path / "out", workers)
    for _ in range(4):
        before.take(10)
    after, second = _stream(tmp_path / "out", workers)
    after.restore(json.loads(json.dumps(before.state())))
    assert [[w.student.ids.tolist() for w in after.take(10)] for _ in range(5)] == expected[4:]
    assert after.account == uninterrupted.account
    drawn = after.account.drawn
    assert drawn["streamed"]["documents"] / drawn["copied"]["documents"] == pytest.approx(20 / 15, rel=0.1)
    for blocks in (first, second):
        blocks.close()


def test_a_streamed_file_that_changed_or_went_is_refused(tmp_path):
    path = _jsonl(tmp_path / "x.jsonl", [{"text": text} for text in TEXTS])
    out = _artifact(tmp_path / "a", path=str(path), stream=True)
    os.utime(path)  # touched, but the same
    assert len(TrainingDocuments(out)) == 40
    data = path.read_bytes()
    path.write_bytes(data.replace(b"Text number 3,", b"Text number 4,"))
    with pytest.raises(StageError, match=r"x\.jsonl: the file has changed since .* --force"):
        TrainingDocuments(out)
    path.write_bytes(data + b'{"text": "more"}\n')
    with pytest.raises(StageError, match=r"x\.jsonl: the file has changed since"):
        TrainingDocuments(out)
    path.unlink()
    with pytest.raises(StageError, match=r"x\.jsonl: the file is streamed from there and is gone"):
        TrainingDocuments(out)
    path.write_bytes(data)
    documents = TrainingDocuments(out)
    path.write_bytes(data[: len(data) // 2])  # under the feet of a running training
    with pytest.raises(StageError, match=r"x\.jsonl"):
        list(documents)


def test_memory_does_not_grow_with_the_text(tmp_path):
    path = tmp_path / "documents.jsonl"
    with path.open("w") as file:
        for number in range(3000):
            facts = {"id": f"d/{number}", "domain": "d", "weight": 1.0, "text": "x" * 20_000}
            file.write(json.dumps(facts) + "\n")
    (tmp_path / "manifest.json").write_text("{}")
    tracemalloc.start()
    documents = TrainingDocuments(tmp_path)
    assert sum(len(document.text) for document in documents) == 60_000_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_the_index_of_a_long_file_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.training.data.documents._WORTH_KEEPING", 10)
    out = _artifact(tmp_path / "a", path=str(_jsonl(tmp_path / "x.jsonl", [{"text": text} for text in TEXTS])))
    cache = tmp_path / "cache"
    first = list(TrainingDocuments(out, cache))
    (kept,) = cache.iterdir()
    stamp = kept.stat().st_mtime_ns
    assert list(TrainingDocuments(out, cache)) == first
    assert kept.stat().st_mtime_ns == stamp
    # The sample of a streamed set is no document of its own, though its lines are the same.
    streamed = _artifact(tmp_path / "b", path=str(tmp_path / "x.jsonl"), stream=True)
    documents = TrainingDocuments(streamed, cache)
    assert (len(documents), len(documents.weights)) == (40, 0)


def test_processes_of_one_number_on_two_machines_make_the_index_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.training.data.documents._WORTH_KEEPING", 10)
    out = _artifact(tmp_path / "a", path=str(_jsonl(tmp_path / "x.jsonl", [{"text": text} for text in TEXTS])))
    cache, save, others = tmp_path / "cache", np.save, []

    def save_while_another_is_at_the_same(path, index):
        save(path, index)
        monkeypatch.setattr(np, "save", save)
        others.append(list(TrainingDocuments(out, cache)))

    monkeypatch.setattr(np, "save", save_while_another_is_at_the_same)
    assert [list(TrainingDocuments(out, cache))] == others
    assert len(others[0]) == 40
    assert len(list(cache.iterdir())) == 1, "nothing half-made is left"


def test_a_data_set_of_the_hub_is_streamed(tmp_path):
    # The library reads a local directory laid out like a repository by the same path as one of the hub.
    from stages.document_sets import DocumentSet
    from stages.document_streams import count_hub
    from stages.references import HubReference

    (tmp_path / "data").mkdir()
    records = [{"text": text, "number": number} for number, text in enumerate(TEXTS)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records[:25]), tmp_path / "data" / "train-0.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records[25:]), tmp_path / "data" / "train-1.parquet")
    options = DocumentSet(path="hub:datasets/org/name", stream=True, max_documents=38)
    sample = []
    stream = count_hub(options, HubReference(str(tmp_path), None, "dataset"), 2, sample.append, pytest.fail)
    assert stream.count == 38
    assert [content["text"] for content in sample] == TEXTS[:2]
    for start in (0, 25):
        assert [content["text"] for content in stream.read(start, pytest.fail)] == TEXTS[start:38]
    pieces = DocumentSet(path="hub:datasets/org/name", stream=True, max_documents=50, document_bytes=64)
    cut = count_hub(pieces, HubReference(str(tmp_path), None, "dataset"), 0, sample.append, pytest.fail)
    assert [content["text"] for content in cut.read(30, pytest.fail)] == TEXTS[30:]
