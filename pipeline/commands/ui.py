"""``pipeline ui``."""

from __future__ import annotations

import argparse
import os
import shlex
import sys

from pipeline.errors import EXIT_OK, PipelineError

_STORE = "MLFLOW_BACKEND_STORE_URI"

SUMMARY = "start MLflow's pages on the metrics of these runs"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``ui``."""
    parser.add_argument("--port", type=int, default=5000, help="port on this machine's own address (5000)")
    parser.add_argument("--print", action="store_true", help="only print the command")


def execute(arguments: argparse.Namespace) -> int:
    """Become the server, or say where the one is that keeps the metrics."""
    from pipeline.tracking_place import tracking_uri
    from pipeline.urls import without_credentials

    uri = tracking_uri()
    if uri.startswith(("http://", "https://")):
        print(f"the metrics are on a server; open {without_credentials(uri)}")
        return EXIT_OK
    # Loopback only: whoever reaches the port can read and delete every run.
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(arguments.port)]
    # Without the first the server starts seven more processes for jobs that we do not have. The second is no argument
    # because everyone on the machine sees arguments, and the address of a database may hold a password.
    variables = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", _STORE: uri}
    if arguments.print:
        shown = {name: shlex.quote(value) for name, value in variables.items()}
        if without_credentials(uri) != uri:
            shown[_STORE] = '"$MLFLOW_TRACKING_URI"'
        print(*(f"{name}={value}" for name, value in shown.items()), shlex.join(command))
        return EXIT_OK
    database = uri.removeprefix("sqlite:///")
    if uri.startswith("sqlite:///") and not os.path.exists(database):
        raise PipelineError(f"nothing has been tracked yet: there is no {database}; run a recipe first")
    os.execve(command[0], command, {**os.environ, **variables})
