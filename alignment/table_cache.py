"""Tables that take seconds to build and depend on tokenizers alone, kept on disk by fingerprint."""

from __future__ import annotations

import uuid
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

Arrays = Mapping[str, np.ndarray]


def cached_arrays(directory: Path | None, kind: str, fingerprint: str, build: Callable[[], Arrays]) -> Arrays:
    """The arrays that ``build`` makes, read from ``directory`` if they were made before.

    A file that cannot be read is made again. Several processes may ask at once: a file appears whole or not at all.

    Args:
        directory: where the files lie; None keeps nothing.
        kind: what the table is, with a version to raise when ``build`` changes: ``bpm-1``.
        fingerprint: hex digest of everything that ``build`` reads.
        build: name -> array, without object arrays.
    """
    if directory is None:
        return build()
    path = directory / f"{kind}-{fingerprint[:16]}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        arrays = build()
    directory.mkdir(parents=True, exist_ok=True)
    # Not by the process's number, which containers on two machines may share.
    partial = path.with_name(f"{path.stem}.partial-{uuid.uuid4().hex}.npz")
    np.savez(partial, **arrays)
    partial.replace(path)
    return arrays
