from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import documents
from stages.documents import DocumentProblem, read_documents, split_text


@given(text=st.text(alphabet="aé東🙂 \n\r", max_size=80), limit=st.integers(4, 20))
def test_pieces_fit_and_join_to_the_same_text(text: str, limit: int) -> None:
    pieces = list(split_text(text, limit))
    assert "".join(pieces) == text
    assert all(len(piece.encode()) <= limit for piece in pieces)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("one\n\ntwo\n\nthree", ["one\n\ntwo\n\n", "three"]),
        ("one\r\n\r\ntwo two two", ["one\r\n\r\n", "two two two"]),
        ("one two\nthree four", ["one two\n", "three four"]),
        ("one two three four", ["one two ", "three four"]),
        ("aaaaaaaaaaaébbbbb", ["aaaaaaaaaaa", "ébbbbb"]),
    ],
)
def test_a_piece_ends_at_the_best_boundary_that_fits(text: str, pieces: list[str]) -> None:
    assert list(split_text(text, 12)) == pieces


@given(text=st.text(alphabet="aé東🙂 \n", min_size=1, max_size=120), limit=st.integers(4, 20), block=st.integers(1, 9))
def test_reading_by_blocks_cuts_as_the_whole_text_is_cut(
    tmp_path_factory: pytest.TempPathFactory, text: str, limit: int, block: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "blocks.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "_READ_BYTES", block)
        assert list(read_documents(path, field="text", limit=limit)) == list(split_text(text, limit))


def test_a_text_file_is_one_document_to_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes("a\r\nb\n\n\nç".encode())
    assert list(read_documents(path, field="text", limit=None)) == ["a\r\nb\n\n\nç"]


def test_a_directory_gives_its_files_in_order_without_the_empty_ones(tmp_path: Path) -> None:
    (tmp_path / "b.py").write_text("print()")
    (tmp_path / "a.jsonl").write_text('{"body": "one"}\n\n{"body": "two"}\n')
    (tmp_path / "__init__.py").touch()
    assert list(read_documents(tmp_path, field="body", limit=None)) == ["one", "two", "print()"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"", r"x\.txt: the file is empty"),
        ("x.txt", b"good " * 30 + b"\xff", r"x\.txt: not UTF-8: byte 0xff at offset 150"),
        ("x.txt", b"\x80" * 200, r"x\.txt: not UTF-8: byte 0x80 at offset 0"),
        ("x.jsonl", b'{"text": "a"}\n{"txt": "b", "n": 1}', r"x\.jsonl:2: no field 'text'; the line holds 'txt', 'n'"),
        ("x.jsonl", b'{"text": "a"}\n\n["b"]', r"x\.jsonl:3: expected an object .*; the line holds a list"),
        ("x.jsonl", b'{"text": 1}', r"x\.jsonl:1: field 'text' holds no text"),
        ("x.jsonl", b'{"text": ""}', r"x\.jsonl:1: field 'text' holds no text"),
        ("x.jsonl", b'{"text": "a"', r"x\.jsonl:1: not JSON"),
        ("x.jsonl", b'{"text": "a\xff"}', r"x\.jsonl:1: not UTF-8: byte 11 of the line"),
        ("x.jsonl.gz", b'{"text": "a"}', r"x\.jsonl\.gz: cannot be decompressed: "),
        ("x.jsonl.zst", gzip.compress(b'{"text": "a"}', mtime=0), r"x\.jsonl\.zst: cannot be decompressed: "),
        ("x.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-9], r"x\.jsonl\.gz: cannot be decompressed: "),
        ("x.txt.gz", gzip.compress(b"good " * 30 + b"\xff", mtime=0), "not UTF-8: byte 0xff at offset 150"),
        ("x.jsonl.gz", gzip.compress(b'{"text": "a"}\n{"a": 1}', mtime=0), r"x\.jsonl\.gz:2: no field 'text'"),
        ("x.parquet", b"PAR1 and no more", r"x\.parquet: not a readable Parquet file: "),
        ("x.jsonl", rb'{"text": "ab\ud800"}', r"x\.jsonl:1: field 'text' has a lone surrogate at character 2"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DocumentProblem, match=message):
        list(read_documents(path, field="text", limit=64))


def test_rows_of_a_table_are_named_by_their_number(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    rows = [{"text": "a", "number": 1}] * 400 + [{"text": None, "number": 2}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    with pytest.raises(DocumentProblem, match=r"x\.parquet:401: no field 'text'; the line holds 'number'"):
        list(read_documents(path, field="text", limit=None))


def test_compressed_text_is_cut_like_any_other(tmp_path: Path) -> None:
    text = "One line of many.\n\n" * 50
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    pieces = [list(read_documents(tmp_path / name, field="text", limit=100)) for name in ("a.txt", "b.txt.gz")]
    assert pieces[0] == pieces[1]
    assert len(pieces[0]) > 5
