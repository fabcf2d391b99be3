from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from stages import digests
from stages.digests import content_digest, list_files


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an hour later than when the test writes its files."""
    now = time.time
    monkeypatch.setattr(digests.time, "time", lambda: now() + 3600)


def _age(path: Path, mtime_ns: int) -> None:
    os.utime(path, ns=(mtime_ns, mtime_ns))


def test_a_file_digest_is_plain_sha256(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert content_digest(path) == hashlib.sha256(b"abc").hexdigest()


def test_files_are_listed_in_one_order_and_hidden_ones_left_out(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a.txt", ".git/x", "a/__pycache__/y", "a/.hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in list_files(tmp_path)] == ["a/z.txt", "a.txt", "b.txt"]


def test_the_memo_is_used_only_while_size_times_and_inode_are_the_same(later: None, tmp_path: Path) -> None:
    path, memo = tmp_path / "x", tmp_path / "memo" / "digests.json"
    path.write_bytes(b"abc")
    _age(path, 10**18)
    assert content_digest(path, memo) == hashlib.sha256(b"abc").hexdigest()
    remembered = json.loads(memo.read_text())
    assert remembered[str(path.resolve())][-1] == hashlib.sha256(b"abc").hexdigest()
    memo.write_text(json.dumps({name: [*state[:-1], "as noted"] for name, state in remembered.items()}))
    assert content_digest(path, memo) == "as noted", "the memo answers"

    with path.open("r+b") as file:  # same inode, same size
        file.write(b"xyz")
    assert content_digest(path, memo) == hashlib.sha256(b"xyz").hexdigest(), "another time is another file"

    replacement = tmp_path / "y"
    replacement.write_bytes(b"123")
    replacement.replace(path)
    assert content_digest(path, memo) == hashlib.sha256(b"123").hexdigest(), "another inode is another file"


def test_a_change_that_keeps_size_inode_and_date_is_seen(later: None, tmp_path: Path) -> None:
    """As a program leaves it that copies a file over another with its date, or a clock that was set back."""
    path, memo = tmp_path / "x", tmp_path / "digests.json"
    path.write_bytes(b"abc")
    _age(path, 10**18)
    content_digest(path, memo)
    inode = path.stat().st_ino
    time.sleep(0.02)  # more than a tick of any clock that Linux stamps files by
    path.write_bytes(b"xyz")
    _age(path, 10**18)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (inode, 10**18)
    assert content_digest(path, memo) == hashlib.sha256(b"xyz").hexdigest()


def test_changes_within_one_tick_of_the_clock_are_all_seen(tmp_path: Path) -> None:
    path, memo = tmp_path / "x", tmp_path / "digests.json"
    for number in range(300):
        path.write_bytes(b"%03d" % number)
        assert content_digest(path, memo) == hashlib.sha256(b"%03d" % number).hexdigest()
    assert not memo.exists()


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    later: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, memo = tmp_path / "x", tmp_path / "digests.json"
    path.write_bytes(b"abc")
    file_digest = hashlib.file_digest

    def slowly(file: BinaryIO, name: str) -> object:
        digest = file_digest(file, name)
        time.sleep(0.02)
        path.write_bytes(b"xyz")
        return digest

    monkeypatch.setattr(hashlib, "file_digest", slowly)
    content_digest(path, memo)
    monkeypatch.undo()
    assert not memo.exists()
    assert content_digest(path, memo) == hashlib.sha256(b"xyz").hexdigest()


@pytest.mark.parametrize("hours", [-48, -1, 1, 48])
def test_a_clock_that_is_set_makes_no_memo_answer_wrongly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    path, memo = tmp_path / "x", tmp_path / "digests.json"
    now = time.time()
    path.write_bytes(b"abc")
    monkeypatch.setattr(digests.time, "time", lambda: now + 3600 * hours)
    assert content_digest(path, memo) == hashlib.sha256(b"abc").hexdigest()
    assert memo.exists() == (hours > 0), "a file from the future is read every time"
    time.sleep(0.02)
    path.write_bytes(b"xyz")
    assert content_digest(path, memo) == hashlib.sha256(b"xyz").hexdigest()


def test_a_file_written_just_now_is_not_remembered(tmp_path: Path) -> None:
    path, memo = tmp_path / "x", tmp_path / "digests.json"
    path.write_bytes(b"abc")
    content_digest(path, memo)
    assert not memo.exists()


def test_a_damaged_memo_costs_hashing_and_nothing_else(later: None, tmp_path: Path) -> None:
    path, memo = tmp_path / "x", tmp_path / "digests.json"
    path.write_bytes(b"abc")
    memo.write_text("{")
    assert content_digest(path, memo) == hashlib.sha256(b"abc").hexdigest()
    assert len(json.loads(memo.read_text())) == 1
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith("tmp")] == []


def test_with_patterns_only_matching_files_of_the_directory_itself_count(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "sub/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("one")
    digest = content_digest(tmp_path, patterns=("*.json", "*.txt"))
    for name in ("model.safetensors", "sub/config.json"):
        (tmp_path / name).write_text("two")
    assert content_digest(tmp_path, patterns=("*.json", "*.txt")) == digest
    (tmp_path / "config.json").rename(tmp_path / "other.json")
    assert content_digest(tmp_path, patterns=("*.json", "*.txt")) != digest
