from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from stages.digests import content_digest, list_files


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


def test_the_memo_is_used_only_while_size_time_and_inode_are_the_same(tmp_path: Path) -> None:
    path, memo = tmp_path / "x", tmp_path / "memo" / "digests.json"
    path.write_bytes(b"abc")
    _age(path, 10**18)
    first = content_digest(path, memo)
    with path.open("r+b") as file:  # same inode, same size
        file.write(b"xyz")
    _age(path, 10**18)
    assert content_digest(path, memo) == first, "the memo answers"
    assert content_digest(path) == hashlib.sha256(b"xyz").hexdigest()

    _age(path, 10**18 + 1)
    assert content_digest(path, memo) == hashlib.sha256(b"xyz").hexdigest(), "another time is another file"

    replacement = tmp_path / "y"
    replacement.write_bytes(b"123")
    _age(replacement, 10**18 + 1)
    replacement.replace(path)
    assert content_digest(path, memo) == hashlib.sha256(b"123").hexdigest(), "another inode is another file"


def test_a_file_written_just_now_is_not_remembered(tmp_path: Path) -> None:
    path, memo = tmp_path / "x", tmp_path / "digests.json"
    path.write_bytes(b"abc")
    content_digest(path, memo)
    assert not memo.exists()


def test_a_damaged_memo_costs_hashing_and_nothing_else(tmp_path: Path) -> None:
    path, memo = tmp_path / "x", tmp_path / "digests.json"
    path.write_bytes(b"abc")
    _age(path, 10**18)
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
