"""A command works whatever its input and output were when it was started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "pipeline"]


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_closed_stream_is_as_if_nobody_looked(closed: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "status"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.close(closed),
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == ("" if closed == 1 else "there are no runs in runs\n")


def test_characters_that_the_encoding_lacks_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "é.yaml").write_text("[]")
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([*COMMAND, "plan", "é.yaml"], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stderr == "?.yaml: a recipe is a mapping with name, models, data and stages\n"
