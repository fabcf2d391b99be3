"""Tables on disk: read back as they were, made again when damaged, kept apart by kind and fingerprint."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from alignment.table_cache import cached_arrays


class Builder:
    """Makes a table and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.calls += 1
        return {"ids": np.arange(5, dtype=np.int32), "empty": np.zeros((0, 3))}


def test_a_table_is_built_once_and_read_back_as_it_was(tmp_path: Path) -> None:
    build = Builder()
    first, second = (cached_arrays(tmp_path / "tables", "kind-1", "ab" * 32, build) for _ in range(2))
    assert build.calls == 1
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
        assert first[name].dtype == second[name].dtype


@pytest.mark.parametrize(("kind", "fingerprint"), [("kind-2", "ab" * 32), ("kind-1", "cd" * 32)])
def test_another_kind_or_pair_has_a_table_of_its_own(tmp_path: Path, kind: str, fingerprint: str) -> None:
    build = Builder()
    cached_arrays(tmp_path, "kind-1", "ab" * 32, build)
    cached_arrays(tmp_path, kind, fingerprint, build)
    assert build.calls == 2


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not an archive"])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: bytes) -> None:
    build = Builder()
    cached_arrays(tmp_path, "kind-1", "ab" * 32, build)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage)
    np.testing.assert_array_equal(cached_arrays(tmp_path, "kind-1", "ab" * 32, build)["ids"], np.arange(5))
    assert build.calls == 2
    cached_arrays(tmp_path, "kind-1", "ab" * 32, build)
    assert build.calls == 2


def test_all_who_ask_at_once_get_the_whole_table(tmp_path: Path) -> None:
    # Threads share a process number, as processes in containers on two machines may.
    askers, values = 8, np.arange(200_000)
    start = threading.Barrier(askers)

    def build() -> dict[str, np.ndarray]:
        start.wait()
        return {"values": values}

    with ThreadPoolExecutor(askers) as pool:
        found = [pool.submit(cached_arrays, tmp_path, "kind-1", "ab" * 32, build) for _ in range(askers)]
    for each in found:
        np.testing.assert_array_equal(each.result()["values"], values)
    assert len(list(tmp_path.iterdir())) == 1


def test_without_a_directory_nothing_is_kept() -> None:
    build = Builder()
    for _ in range(2):
        cached_arrays(None, "kind-1", "ab" * 32, build)
    assert build.calls == 2
