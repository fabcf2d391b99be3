"""The check of a written model in a fresh process, without five seconds of imports for each of many tiny models.

Every check still has a process of its own: it is forked from one that has imported what the check needs, and that has
never seen a model. Run as a script it is that process: a JSON object a line asks for a check.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
IMPORTED = (
    "transformers.generation.utils",
    "transformers.models.llama.modeling_llama",
    "stages.initialisation.probe",
    "stages.model_loading",
    "stages.reload_check",
)


class WarmChecks:
    """Makes checks, each in a process of its own; ``close`` ends the one that they come from.

    Args:
        answers: an empty directory.
    """

    def __init__(self, answers: Path) -> None:
        self._answers = answers
        self._asked = 0
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )

    def __call__(
        self,
        directory: Path,
        *,
        new_rows: Path | None = None,
        documents: Path | None = None,
        beside: Path | None = None,
    ) -> dict[str, Any]:
        """See ``stages.reload_check.inspect_in_fresh_process``."""
        self._asked += 1
        answer = self._answers / f"{self._asked}.json"
        paths = {"directory": directory, "new_rows": new_rows, "documents": documents, "beside": beside}
        job = {name: str(path) for name, path in paths.items() if path is not None} | {"answer": str(answer)}
        self._server.stdin.write(f"{json.dumps(job)}\n")
        self._server.stdin.flush()
        while (said := self._server.stdout.readline()) != f"{answer}\n":
            assert said, "the process that checks are forked from has ended"
        found = json.loads(answer.read_text(encoding="utf-8"))
        if "error" in found:
            raise subprocess.CalledProcessError(1, self._server.args, stderr=found["error"])
        return found

    def close(self) -> None:
        """Let no process behind."""
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait()


def serve() -> None:
    """Fork a process for every line of the input, and say so when it has answered."""
    for module in IMPORTED:
        importlib.import_module(module)
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            _answer(**job)
            os._exit(0)
        os.waitpid(child, 0)
        print(job["answer"], flush=True)


def _answer(
    directory: str, answer: str, new_rows: str | None = None, documents: str | None = None, beside: str | None = None
) -> None:
    from stages.reload_check import inspect

    passages = Path(documents) if documents else None
    try:
        found = inspect(Path(directory), new_rows=Path(new_rows) if new_rows else None, documents=passages)
        if beside:
            found["beside"] = inspect(Path(beside), documents=passages)
    except Exception:
        found = {"error": traceback.format_exc()}
    Path(answer).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    serve()
