"""``pipeline ui``."""

from __future__ import annotations

import argparse
import os
import shlex
import socket
import sys

from pipeline.errors import EXIT_OK, PipelineError

_STORE = "MLFLOW_BACKEND_STORE_URI"
_HOST = "127.0.0.1"
"""Loopback only: whoever reaches the port can read and delete every run."""

_PAGES = 5
"""How many experiments are named; MLflow's first page has all."""

SUMMARY = "start MLflow's pages on the metrics of these runs"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``ui``."""
    parser.add_argument("--port", type=port, default=5000, help="port on this machine's own address (5000)")
    parser.add_argument("--print", action="store_true", help="only print the command")


def execute(arguments: argparse.Namespace) -> int:
    """Become the server, or say where the one is that keeps the metrics."""
    from pipeline.tracking.place import database_file, tracking_uri
    from pipeline.urls import without_credentials

    uri = tracking_uri()
    if uri.startswith(("http://", "https://")):
        print(f"the metrics are on a server; open {without_credentials(uri)}")
        return EXIT_OK
    command = [sys.executable, "-m", "mlflow", "ui", "--host", _HOST, "--port", str(arguments.port)]
    # Without the first the server starts seven more processes for jobs that we do not have. The second is no argument
    # because everyone on the machine sees arguments, and the address of a database may hold a password.
    variables = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", _STORE: uri}
    if arguments.print:
        shown = {name: shlex.quote(value) for name, value in variables.items()}
        if without_credentials(uri) != uri:
            shown[_STORE] = '"$MLFLOW_TRACKING_URI"'
        print(*(f"{name}={value}" for name, value in shown.items()), shlex.join(command))
        return EXIT_OK
    database = database_file(uri)
    if database is not None and not database.exists():
        raise PipelineError(f"nothing has been tracked yet: there is no {database}; run a recipe first")
    _check_free(arguments.port)
    for name, page in _pages(uri, arguments.port):
        print(f"{name}: {page}", flush=True)
    os.execve(command[0], command, {**os.environ, **variables})


def _pages(uri: str, port: int) -> list[tuple[str, str]]:
    """The experiments that changed last, with the addresses of their tables of runs.

    Unless an address says otherwise, MLflow 3 opens an experiment as one of agents, where one of trainings looks empty.
    """
    from pipeline.tracking.session import connect

    try:
        found = connect(uri).search_experiments(max_results=_PAGES, order_by=["last_update_time DESC"])
    except Exception:  # of MLflow or a database driver: the server meets it next, and is the one to explain it
        return []
    address = f"http://{_HOST}:{port}/#/experiments"
    return [
        (each.name, f"{address}/{each.experiment_id}/runs?workflowType=machine_learning")
        for each in found
        if each.name != "Default"
    ]


def port(text: str) -> int:
    value = int(text)
    if not 0 < value < 1 << 16:
        raise argparse.ArgumentTypeError(f"1 to 65535, not {value}")
    return value


def _check_free(port: int) -> None:
    """Say it if somebody listens there already: the server would say so at the end of a long traceback.

    Raises:
        PipelineError: the port cannot be had.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: one that has ended does not count
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise PipelineError(f"port {port} cannot be used ({error.strerror}); choose another with --port") from None
