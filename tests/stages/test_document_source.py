from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

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
    with pytest.raises(StageError, match=r"chat\.txt: conversations are read from \.jsonl files"):
        run(tmp_path, documents=[{"path": str(tmp_path / "chat.txt"), "messages": "chat"}])
    with pytest.raises(ValidationError, match="conversations \\('messages'\\) stay whole"):
        DocumentsSource.Config(documents=[{"path": "x.jsonl", "messages": "chat", "document_bytes": 100}])
    with pytest.raises(ValidationError, match=r"either text .* or conversations"):
        DocumentsSource.Config(documents=[{"path": "x.jsonl", "messages": "chat", "text": "body"}])
