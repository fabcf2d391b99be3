"""A Hugging Face hub on this machine whose server can be ill, and a process that reads data sets from it.

``python hub_world.py DIRECTORY PATIENCE COUNTS`` reads, as a training does, and prints what came of it as JSON. It is a
process of its own because the libraries learn where the hub is from the environment in which they are imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any

COMMIT = "c0ffee" * 6 + "cafe"

Fault = Callable[[str, int], int | None]
"""(file, first byte asked for) -> status of the answer; None answers as asked."""


@dataclass
class Repository:
    """A data set of the hub.

    Attributes:
        files: path -> content.
        fault: what is wrong with the server, asked once for every request for content.
    """

    files: Mapping[str, bytes]
    fault: Fault = lambda file, start: None


@contextmanager
def serving(repositories: Mapping[str, Repository]) -> Iterator[str]:
    """The address of a hub with these repositories, by name."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        server.repositories = repositories
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        """Nothing of it belongs into the tests' output."""

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _answer(self, asked: bytes) -> None:
        url = urllib.parse.urlsplit(self.path)
        for name, repository in self.server.repositories.items():
            api, content = f"/api/datasets/{name}", f"/datasets/{name}/resolve/{COMMIT}/"
            if url.path.startswith(content):
                return self._content(repository, urllib.parse.unquote(url.path.removeprefix(content)))
            if url.path in (api, f"{api}/revision/{COMMIT}"):
                siblings = [{"rfilename": file} for file in repository.files]
                return self._json({"id": name, "sha": COMMIT, "private": False, "siblings": siblings})
            if url.path.startswith(f"{api}/tree/{COMMIT}"):
                folder = url.path.removeprefix(f"{api}/tree/{COMMIT}").strip("/")
                entries = [entry for path, entry in _entries(repository) if str(path.parent) == (folder or ".")]
                return self._json(entries) if entries else self._send(404)
            if url.path.startswith(f"{api}/paths-info/{COMMIT}"):
                wanted = (
                    json.loads(asked)["paths"] if asked[:1] == b"{" else urllib.parse.parse_qs(asked.decode())["paths"]
                )
                return self._json([entry for path, entry in _entries(repository) if str(path) in wanted])
        return self._send(404)

    def _content(self, repository: Repository, file: str) -> None:
        start, _, end = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        status = repository.fault(file, int(start))
        if status is not None or file not in repository.files:
            return self._send(status or 404)
        data = repository.files[file]
        part = data[int(start) : int(end) + 1 if end else None]
        facts = {"ETag": '"tag"', "X-Repo-Commit": COMMIT}
        if "Range" in self.headers:
            facts["Content-Range"] = f"bytes {start}-{int(start) + len(part) - 1}/{len(data)}"
        return self._send(206 if "Range" in self.headers else 200, part, facts)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        reason = {"X-Error-Code": "EntryNotFound"} if status == 404 else {}
        for name, value in {**(headers or {}), **reason, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _entries(repository: Repository) -> Iterator[tuple[PurePosixPath, dict[str, Any]]]:
    """Every file and folder, as the hub's listing describes it."""
    files = {PurePosixPath(file): content for file, content in repository.files.items()}
    for folder in {parent for file in files for parent in file.parents if parent.name}:
        yield folder, {"type": "directory", "path": str(folder), "oid": COMMIT}
    for file, content in files.items():
        yield file, {"type": "file", "path": str(file), "size": len(content), "oid": COMMIT}


@dataclass(frozen=True)
class Outcome:
    """What came of reading a data set.

    Attributes:
        said: the lines of progress.
        error: message of the StageError that ended it; empty for none.
        transient: whether that error says that it may pass.
        numbers: of the documents that were read, in order, as their text says.
        seconds: that reading took.
    """

    said: list[str]
    error: str
    transient: bool
    numbers: list[int]
    seconds: float


def read_all(address: str, directory: Path, counts: Mapping[str, int], patience: float) -> dict[str, Outcome]:
    """Read so many documents of each repository, in one other process that waits ``patience`` seconds for the hub."""
    done = subprocess.run(
        [sys.executable, __file__, str(directory), str(patience), json.dumps(counts)],
        env=os.environ
        | {
            "HF_ENDPOINT": address,
            "HF_HOME": str(directory / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: Outcome(**outcome) for name, outcome in json.loads(done.stdout.splitlines()[-1]).items()}


def _read(name: str, count: int, directory: Path) -> dict[str, Any]:
    from stages.document_source import DocumentsSource
    from stages.stage import StageContext, StageError, StageUnavailable
    from stages.training.data.documents import TrainingDocuments

    said: list[str] = []
    numbers: list[int] = []
    error, transient = "", False
    documents = {"path": f"hub:datasets/{name}@{COMMIT}", "stream": True, "max_documents": count, "sample_documents": 2}
    config = DocumentsSource.Config(documents=[documents])
    out = directory / name
    out.mkdir(parents=True)
    began = time.monotonic()
    try:
        DocumentsSource().run(StageContext(config=config, inputs={}, work=out, out=out, progress=said.append))
        for document in TrainingDocuments(out, report=said.append):
            numbers.append(int(document.text.split()[0]))
    except StageError as problem:
        error, transient = str(problem), isinstance(problem, StageUnavailable)
    seconds = time.monotonic() - began
    return {"said": said, "error": error, "transient": transient, "numbers": numbers, "seconds": seconds}


if __name__ == "__main__":
    from stages import hub_rows

    hub_rows.PATIENCE_SECONDS = float(sys.argv[2])
    hub_rows._FIRST_WAIT_SECONDS = 0.02
    print(json.dumps({name: _read(name, count, Path(sys.argv[1])) for name, count in json.loads(sys.argv[3]).items()}))
