"""Where metrics go: a database below the current directory, or what ``MLFLOW_TRACKING_URI`` names."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pipeline.programs import program
from pipeline.urls import without_credentials

DEFAULT_URI = "sqlite:///mlruns/mlflow.db"


def tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI``, or a database below the current directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def ui_command(uri: str) -> str:
    """What a person types to look at the runs in ``uri``."""
    if uri.startswith(("http://", "https://")):
        return f"open {without_credentials(uri)}"
    return f"{program('pipeline')} ui"


def database_file(uri: str) -> Path | None:
    """The file behind an sqlite URI; None for a server, which decides itself where artifacts go."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(uri.removeprefix("sqlite:///").partition("?")[0])


def artifact_directory(uri: str, experiment: str) -> Path | None:
    """Where the files of an experiment go: beside the database, whatever it is called; None where a server decides."""
    database = database_file(uri)
    if database is None:
        return None
    return database.parent / "artifacts" / (re.sub(r"[^\w.-]+", "_", experiment).lstrip(".") or "_")
