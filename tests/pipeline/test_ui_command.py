from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.tracking.place import artifact_directory, database_file
from pipeline.tracking.session import connect


def test_the_pages_are_for_this_machine_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ui", "--print", "--port", "5001"]) == 0
    assert "mlflow ui --host 127.0.0.1 --port 5001" in capsys.readouterr().out


def test_a_password_of_the_database_is_not_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for uri in ("postgresql://me:abracadabra@host/db", "postgresql://host/db?user=me&password=abracadabra"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert main(["ui", "--print"]) == 0
        assert 'MLFLOW_BACKEND_STORE_URI="$MLFLOW_TRACKING_URI"' in (shown := capsys.readouterr().out)
        assert main(["env"]) == 0
        assert "abracadabra" not in shown + capsys.readouterr().out
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://[::1")
    assert main(["ui", "--print"]) == 0


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http"])
def test_a_port_that_is_none_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["ui", "--port", port])
    assert refused.value.code == 2
    assert "argument --port:" in capsys.readouterr().err


def test_a_port_that_is_taken_is_said_before_the_server_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mlflow.db").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db?timeout=5")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["ui", "--port", str(port)]) == 1
    assert f"port {port} cannot be used (Address already in use); choose another" in capsys.readouterr().err


def test_the_pages_of_trainings_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow shows an experiment that is opened without ``workflowType`` as one of agents, which looks empty."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = connect(uri)
    ids = [client.create_experiment(name) for name in ("older", "newer")]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execve", lambda program, command, environment: started.append(command))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    main(["ui", "--port", port])
    assert capsys.readouterr().out.splitlines() == [
        f"{name}: http://127.0.0.1:{port}/#/experiments/{number}/runs?workflowType=machine_learning"
        for name, number in (("newer", ids[1]), ("older", ids[0]))
    ]
    assert started[0][-2:] == ["--port", port]


def test_nothing_tracked_yet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/no.db?timeout=5")
    assert main(["ui"]) == 1
    assert f"nothing has been tracked yet: there is no {tmp_path}/no.db; run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("uri", "file"),
    [
        ("sqlite:///mlruns/mlflow.db", "mlruns/mlflow.db"),
        ("sqlite:////data/a.db?timeout=5", "/data/a.db"),
        ("http://host", None),
        ("file:./mlruns", None),
    ],
)
def test_the_file_of_a_database(uri: str, file: str | None) -> None:
    assert database_file(uri) == (None if file is None else Path(file))


@pytest.mark.parametrize(
    ("experiment", "name"),
    [("plain-1.5", "plain-1.5"), ("../../x", "_.._x"), ("/Users/me/x", "_Users_me_x"), ("..", "_"), ("a b", "a_b")],
)
def test_no_experiment_keeps_its_files_elsewhere_than_beside_the_database(experiment: str, name: str) -> None:
    assert artifact_directory("sqlite:///mlruns/mlflow.db", experiment) == Path("mlruns/artifacts") / name
    assert artifact_directory("http://host", experiment) is None
