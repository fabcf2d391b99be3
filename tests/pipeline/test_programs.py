"""A command that is printed for a person can be pasted, with the environment activated or not."""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.programs import program


def test_a_program_on_the_path_is_called_by_name(tmp_path, monkeypatch):
    (tmp_path / "pipeline").write_text("#!/bin/sh\n")
    (tmp_path / "pipeline").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program("pipeline") == "pipeline"


def test_otherwise_by_its_place_beside_the_interpreter(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    monkeypatch.chdir(tmp_path)
    assert program("pipeline") == ".venv/bin/pipeline"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert Path(program("pipeline")) == tmp_path / ".venv" / "bin" / "pipeline"
