from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.keys import keyed_params
from stages.document_source import DocumentsSource
from stages.stage import StageContext, StageError, StageInterrupted

HELLO = [{"role": "user", "content": "Héllo?"}, {"role": "assistant", "content": "Hi."}]
CALL = [{"role": "assistant", "tool_calls": [{"function": {"name": "now", "arguments": {}}}]}]


def run(tmp_path: Path, **options: Any) -> Path:
    """Run the stage and verify what it wrote as the runner would."""
    out = tmp_path / "out"
    out.mkdir()
    config = DocumentsSource.Config(**options)
    DocumentsSource().run(StageContext(config=config, inputs={}, work=tmp_path, out=out))
    DocumentsSource.output.verify(out)
    return out


def test_documents_are_written_with_stable_ids_and_counted(tmp_path: Path) -> None:
    (tmp_path / "train.v1.jsonl").write_text('{"text": "one"}\n{"text": "çedilla\\n"}\n{"text": "left out"}\n')
    (tmp_path / "novel").mkdir()
    (tmp_path / "novel" / "a.txt").write_text("x" * 100)
    out = run(
        tmp_path,
        documents=[
            {"path": str(tmp_path / "train.v1.jsonl"), "max_documents": 2},
            {"path": str(tmp_path / "novel"), "name": "book", "weight": 0.5, "document_bytes": 64},
        ],
    )
    lines = (out / "documents.jsonl").read_bytes().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"id": "train.v1/0", "domain": "train.v1", "weight": 1.0, "text": "one"},
        {"id": "train.v1/1", "domain": "train.v1", "weight": 1.0, "text": "çedilla\n"},
        {"id": "book/0", "domain": "book", "weight": 0.5, "text": "x" * 64},
        {"id": "book/1", "domain": "book", "weight": 0.5, "text": "x" * 36},
    ]
    assert json.loads((out / "manifest.json").read_text()) == {
        "documents": 4,
        "bytes": 3 + 9 + 100,
        "domains": {
            "train.v1": {"documents": 2, "bytes": 12, "weight": 1.0},
            "book": {"documents": 2, "bytes": 100, "weight": 0.5},
        },
        "sha256": hashlib.sha256((out / "documents.jsonl").read_bytes()).hexdigest(),
    }


def test_sets_without_documents_or_under_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(StageError, match="empty: holds no documents"):
        run(tmp_path, documents=[{"path": str(tmp_path / "empty")}])
    with pytest.raises(ValidationError, match="several sets are called x; give each its own 'name'"):
        DocumentsSource.Config(documents=[{"path": "a/x.txt"}, {"path": "b/x.jsonl"}])


def test_reading_documents_stops_when_asked(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("text")
    config = DocumentsSource.Config(documents=[{"path": str(tmp_path / "x.txt")}])
    ctx = StageContext(config=config, inputs={}, work=tmp_path, out=tmp_path, should_stop=lambda: True)
    with pytest.raises(StageInterrupted):
        DocumentsSource().run(ctx)


def test_conversations_keep_their_messages_and_tools(tmp_path: Path) -> None:
    lines = [{"chat": HELLO}, {"chat": CALL, "tools": [{"type": "function"}], "source": "left out"}]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = DocumentsSource.Config(documents=[{"path": str(tmp_path / "chat.jsonl"), "messages": "chat"}])
    out = run(tmp_path, **config.model_dump(mode="json"))  # as the runner hands it on
    records = [json.loads(line) for line in (out / "documents.jsonl").read_text(encoding="utf-8").splitlines()]
    assert records == [
        {"id": "chat/0", "domain": "chat", "weight": 1.0, "messages": HELLO},
        {"id": "chat/1", "domain": "chat", "weight": 1.0, "messages": CALL, "tools": [{"type": "function"}]},
    ]
    assert json.loads((out / "manifest.json").read_text())["bytes"] == len("Héllo?Hi.".encode())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"text": "x"}, r"chat\.jsonl:1: no field 'chat'; the line holds 'text'"),
        ({"chat": []}, r"chat\.jsonl:1: field 'chat' must be a list of messages, found an empty list"),
        ({"chat": "hi"}, r"chat\.jsonl:1: field 'chat' must be a list of messages, found str"),
        ({"chat": ["hi"]}, r"chat\.jsonl:1: message 1: expected an object with a 'role'"),
        ({"chat": [*HELLO, {"content": "x"}]}, r"message 3: its 'role' must be a word such as .*, found None"),
        ({"chat": [{"role": "", "content": "x"}]}, r"message 1: its 'role' must be a word such as .*, found ''"),
        ({"chat": [{"role": "user", "content": [1]}]}, r"\(user\): 'content' must be text, found list; join its text"),
        ({"chat": [{"role": "assistant"}]}, r"message 1 \(assistant\): has no 'content'; only a message with"),
        (
            {"chat": [{"role": "user", "content": "a\ud800"}]},
            r"\(user\): its content has a lone surrogate",
        ),
    ],
)
def test_a_line_without_a_proper_conversation_is_named(tmp_path: Path, line: Any, message: str) -> None:
    (tmp_path / "chat.jsonl").write_text(json.dumps(line))
    with pytest.raises(StageError, match=message):
        run(tmp_path, documents=[{"path": str(tmp_path / "chat.jsonl"), "messages": "chat"}])


def test_conversations_are_json_lines_and_never_cut(tmp_path: Path) -> None:
    (tmp_path / "chat.txt").write_text("Hello")
    with pytest.raises(
        StageError, match=r"chat\.txt: conversations are read from \.jsonl files, one a line, or \.parq"
    ):
        run(tmp_path, documents=[{"path": str(tmp_path / "chat.txt"), "messages": "chat"}])
    with pytest.raises(ValidationError, match="conversations \\('messages'\\) stay whole"):
        DocumentsSource.Config(documents=[{"path": "x.jsonl", "messages": "chat", "document_bytes": 100}])
    with pytest.raises(ValidationError, match=r"either text .* or conversations"):
        DocumentsSource.Config(documents=[{"path": "x.jsonl", "messages": "chat", "text": "body"}])


def test_a_streamed_set_is_counted_and_sampled_but_not_copied(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for name, count in (("a.jsonl", 3), ("b.jsonl", 2), ("c.jsonl", 4)):
        (tmp_path / "shards" / name).write_text('{"text": "some words"}\n' * count)
    options = {"path": str(tmp_path / "shards"), "stream": True, "sample_documents": 2, "max_documents": 4}
    out = run(tmp_path, documents=[options])
    assert len((out / "documents.jsonl").read_bytes().splitlines()) == 2
    (stream,) = json.loads((out / "streams.json").read_text())
    assert stream["count"] == 4
    assert [(Path(file["path"]).name, file["documents"]) for file in stream["files"]] == [
        ("a.jsonl", 3),
        ("b.jsonl", 1),
    ]
    content = (tmp_path / "shards" / "b.jsonl").read_bytes()
    assert (stream["files"][1]["size"], stream["files"][1]["sha256"]) == (46, hashlib.sha256(content).hexdigest())


def test_every_document_of_a_streamed_set_is_checked_when_it_is_counted(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n' * 2000 + '{"txt": "b"}\n')
    with pytest.raises(StageError, match=r"x\.jsonl:2001: no field 'text'"):
        run(tmp_path, documents=[{"path": str(tmp_path / "x.jsonl"), "stream": True}])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_documents": 5}, "'sample_documents' is for a set that is streamed: add stream: true"),
        ({"split": "train"}, "'split' is for a set that is streamed"),
        ({"stream": False, "subset": "x"}, "'subset' is for a set that is streamed"),
        ({"prompt": "question", "messages": "chat"}, "'prompt' comes before 'text'; of conversations"),
        ({"prompt": "question", "document_bytes": 100}, "'document_bytes' would cut texts from their prompts"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DocumentsSource.Config(documents=[{"path": "x.jsonl", **options}])


def test_splits_and_prompts_are_refused_where_there_are_none(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("text")
    with pytest.raises(StageError, match="'subset' and 'split' are for data sets of the hub"):
        run(tmp_path, documents=[{"path": str(tmp_path / "x.txt"), "stream": True, "split": "train"}])


def test_a_prompt_is_a_field_of_text(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("text")
    with pytest.raises(StageError, match=r"x\.txt: 'prompt' names a field, and only \.jsonl and \.parquet files"):
        run(tmp_path, documents=[{"path": str(tmp_path / "x.txt"), "prompt": "question"}])


def test_a_prompt_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "a", "question": 5}')
    with pytest.raises(StageError, match=r"x\.jsonl:1: field 'question' holds no text"):
        run(tmp_path, documents=[{"path": str(tmp_path / "x.jsonl"), "prompt": "question"}])


def test_saying_that_a_set_is_not_streamed_changes_no_key() -> None:
    said, unsaid = ({"path": "x.jsonl", **options} for options in ({"stream": False}, {}))
    keys = [keyed_params(DocumentsSource.Config(documents=[each]), lambda place, text: text) for each in (said, unsaid)]
    assert keys[0] == keys[1]
    assert set(keys[0]["documents"][0]) == {"path", "name", "weight", "text"}
