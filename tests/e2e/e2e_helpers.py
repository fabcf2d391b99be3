"""A workplace for the command line: the shipped quickstart recipe with tiny models in place of the real ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[2]
QUICKSTART = REPOSITORY / "recipes" / "quickstart.yaml"

TINY_STEPS = {
    "stages.distill.steps": 6,
    "stages.distill.warmup_steps": 1,
    "stages.distill.checkpoint_every": 2,
    "stages.distill.window_tokens": 64,
    "stages.stochastok.steps": 3,
    "stages.stochastok.warmup_steps": 1,
    "stages.evaluate.max_documents": 1,
    "stages.evaluate.window_bytes": 300,
}


def quickstart_until_distill(directory: Path, **sections: object) -> Path:
    """The quickstart as a file in ``directory`` that ends with ``distill``; ``sections`` replace the recipe's own."""
    document = yaml.safe_load(QUICKSTART.read_text(encoding="utf-8")) | sections
    document["stages"] = {name: document["stages"][name] for name in ("align", "init", "distill")}
    del document["data"]["eval"]
    for documents in document["data"]["train"]:
        documents["path"] = str(REPOSITORY / "recipes" / documents["path"])
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


@dataclass
class Workplace:
    """A directory to run the command in, and the overrides that make the quickstart tiny."""

    directory: Path
    overrides: dict[str, object]

    def keep(self, *prefixes: str) -> None:
        """Forget the overrides of what a shorter recipe does not have."""
        self.overrides = {name: value for name, value in self.overrides.items() if name.startswith(prefixes)}

    def arguments(self, command: str, recipe: Path | str = QUICKSTART, *options: str, **changes: object) -> list[str]:
        """The command line; ``changes`` are further overrides, with ``__`` for a dot."""
        values = self.overrides | {name.replace("__", "."): value for name, value in changes.items()}
        line = [sys.executable, "-m", "pipeline", command, str(recipe), *options]
        for name, value in values.items():
            line += ["--set", f"{name}={value}"]
        return line

    def start(self, line: list[str]) -> subprocess.Popen[str]:
        """Start a command line in its own session, so that a test may kill all of it."""
        environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
        return subprocess.Popen(
            line, cwd=self.directory, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def run(self, *line: object, **changes: object) -> tuple[int, str]:
        """Run a command to its end: (exit code, everything it printed)."""
        process = self.start(self.arguments(*line, **changes))
        output, _ = process.communicate(timeout=600)
        return process.returncode, output


def stages_that_ran(output: str) -> set[str]:
    """Names of the stages for which an attempt was started."""
    return set(re.findall(r"^([\w/-]+): attempt \d+", output, flags=re.MULTILINE))
