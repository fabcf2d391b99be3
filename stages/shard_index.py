"""The index of a model with weights in several files: it came with the model, so its file names are not trusted."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath, PureWindowsPath

from stages.artifacts import ArtifactError, read_json


def is_plain_name(name: object) -> bool:
    """Whether ``name`` is that of a file in the directory itself, on every system: no path, and no ``..``."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and "\0" not in name
        and PurePosixPath(name).name == name
        and PureWindowsPath(name).name == name
    )


def shard_names(index: Path) -> list[str]:
    """The names of the weight files beside ``index`` that it lists, sorted.

    Raises:
        ArtifactError: it is no index, lists a file outside its directory, or one that is missing.
    """
    content = read_json(index)
    listed = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(listed, dict) or not listed:
        raise ArtifactError(f"{index} has no `weight_map`, so it does not say where the weights are")
    # Joined to a directory that is written to, a name such as ../../x would be written there.
    foreign = [name for name in listed.values() if not is_plain_name(name)]
    if foreign:
        raise ArtifactError(
            f"{index} names the weight file {json.dumps(foreign[0])}, which is not a file beside it: this model was "
            "damaged or made to do harm, and nothing of it was read"
        )
    names = sorted(set(listed.values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ArtifactError(f"{index}: names files that are missing: {', '.join(missing)}")
    return names
