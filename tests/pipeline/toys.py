"""Small stages and plans for the tests of the runner; imported by tests and by the processes that they start.

``python toys.py RUNS CONFIG [RESOURCES]`` (JSON objects) executes a plan of one ``count`` stage and exits as the
command line does.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stages import STAGES, load_stage
from stages.artifacts import Artifact, EvaluationArtifact, ReportArtifact
from stages.stage import Input, StageConfig, StageContext, StageError, StageInterrupted, StageUnavailable, not_keyed

if TYPE_CHECKING:  # a stage's process imports this module too, and must not wait for the pipeline
    from pipeline.plan import Plan, PlannedStage
    from pipeline.recipe import Resources
    from pipeline.store import Store


class TextArtifact(Artifact):
    kind = "text"
    required = ("text.txt",)


class Say:
    VERSION = 1
    inputs: Mapping[str, Input] = {}
    output = TextArtifact

    class Config(StageConfig):
        text: str

    def run(self, ctx: StageContext) -> None:
        ctx.progress(f"saying {ctx.config.text}")
        (ctx.out / "text.txt").write_text(ctx.config.text)
        (ctx.out / "metrics.json").write_text(json.dumps({"length": len(ctx.config.text)}))


class Join:
    VERSION = 1
    inputs: Mapping[str, Input] = {"parts": Input(TextArtifact, many=True)}
    output = TextArtifact

    class Config(StageConfig):
        separator: str = " "

    def run(self, ctx: StageContext) -> None:
        parts = [(path / "text.txt").read_text() for path in ctx.inputs["parts"].values()]
        (ctx.out / "text.txt").write_text(ctx.config.separator.join(parts))


class Count:
    """Sums 1..steps with a checkpoint a step; stops when asked unless it is stubborn.

    If it is ``unready``, the first rank finds something wrong before it meets the others, who wait for it.
    """

    VERSION = 1
    inputs: Mapping[str, Input] = {}
    output = TextArtifact

    class Config(StageConfig):
        steps: int
        seconds: float = not_keyed(0.0)
        stubborn: bool = False
        unready: bool = False

        def check_processes(self, count: int) -> None:
            """Any number may count."""

    def run(self, ctx: StageContext) -> None:
        if ctx.config.unready:
            self._meet(ctx)
        step, total = 0, 0
        for marker in ctx.work.glob("ckpt/step-*/COMPLETE.json"):
            saved = json.loads(marker.read_text())
            if saved["step"] > step:
                step, total = saved["step"], saved["total"]
        while step < ctx.config.steps:
            step, total = step + 1, total + step + 1
            time.sleep(ctx.config.seconds)
            ctx.metrics.log(step, total=total)
            ctx.progress(f"step {step}/{ctx.config.steps}")
            checkpoint = ctx.work / "ckpt" / f"step-{step}"
            checkpoint.mkdir(parents=True, exist_ok=True)
            (checkpoint / "COMPLETE.json").write_text(json.dumps({"step": step, "total": total}))
            if ctx.should_stop() and not ctx.config.stubborn:
                raise StageInterrupted(f"saved step {step}")
        (ctx.out / "text.txt").write_text(str(total))
        if ctx.rank == 0:
            (ctx.out / "environment.json").write_text(json.dumps(dict(os.environ)))

    def _meet(self, ctx: StageContext) -> None:
        import torch

        from stages.training.backends import process_group

        if ctx.rank == 0:
            raise StageError("rank 0 has no tokenizer; copy it there")
        process_group.join(ctx, torch.device("cpu"))


class Misbehave:
    VERSION = 1
    inputs: Mapping[str, Input] = {}
    output = TextArtifact

    class Config(StageConfig):
        how: Literal["stage error", "exception", "no output", "kill"]

    def run(self, ctx: StageContext) -> None:
        for number in range(30):
            print(f"chatter {number}", flush=True)
        if ctx.config.how == "stage error":
            atexit.register(print, "the last words of a library")
            raise StageError("the tokenizer has 3 ids too many; use another")
        if ctx.config.how == "exception":
            raise ZeroDivisionError("a bug")
        if ctx.config.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)


class Flaky:
    """Saves a step and fails, ``failures`` times; then gives the number of times it was begun."""

    VERSION = 1
    inputs: Mapping[str, Input] = {}
    output = TextArtifact

    class Config(StageConfig):
        failures: int
        how: Literal["unavailable", "stage error", "exception", "no output", "kill"] = "unavailable"

    def run(self, ctx: StageContext) -> None:
        begun = len(list(ctx.work.glob("ckpt/step-*"))) + 1
        checkpoint = ctx.work / "ckpt" / f"step-{begun}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "COMPLETE.json").write_text(json.dumps({"step": begun}))
        if begun > ctx.config.failures:
            (ctx.out / "text.txt").write_text(str(begun))
        elif ctx.config.how == "unavailable":
            raise StageUnavailable("the hub does not answer")
        elif ctx.config.how == "stage error":
            raise StageError("data.train holds no documents")
        elif ctx.config.how == "exception":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        elif ctx.config.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)


class Table:
    VERSION = 1
    inputs: Mapping[str, Input] = {"text": Input(TextArtifact)}
    output = ReportArtifact

    class Config(StageConfig):
        title: str = "lengths"

    def run(self, ctx: StageContext) -> None:
        length = len((ctx.input("text") / "text.txt").read_text())
        (ctx.out / "report.json").write_text(json.dumps({"length": length}))
        (ctx.out / "metrics.json").write_text(json.dumps({"length": length}))
        (ctx.out / "table.txt").write_text(f"{ctx.config.title}: {length}\n")
        (ctx.out / "report.html").write_text(f"<title>{ctx.config.title}: {length}</title>")


class Evaluation:
    """Measures the length of a text, and says so in the form of an evaluation's report."""

    VERSION = 1
    inputs: Mapping[str, Input] = {"texts": Input(TextArtifact, many=True)}
    output = EvaluationArtifact

    class Config(StageConfig):
        pass

    def run(self, ctx: StageContext) -> None:
        lengths = {name: len((path / "text.txt").read_text()) for name, path in ctx.inputs["texts"].items()}
        columns = [{"name": "bytes", "unit": "", "better": "lower", "digits": 0, "note": ""}]
        rows = {
            name: {"bytes": {"value": float(length), "low": None, "high": None}} for name, length in lengths.items()
        }
        table = {"title": "lengths", "columns": columns, "rows": rows, "differences": {}}
        empty = {"bars": [], "curves": [], "items": [], "samples": [], "skipped": [], "warnings": []}
        section = {"name": "lengths", "title": "Lengths", "about": "How long.", "tables": [table], **empty}
        section |= {"facts": {}, "metrics": {}, "data": {}}
        report = {"schema_version": 2, "title": "t", "sections": [section], "curves": {}, "settings": {}}
        report |= {"preflight": {name: {} for name in lengths}, "versions": {}}
        (ctx.out / "report.json").write_text(json.dumps(report))
        (ctx.out / "metrics.json").write_text(json.dumps({f"lengths.{name}": value for name, value in lengths.items()}))
        for name in ("report.html", "table.txt"):
            (ctx.out / name).write_text("lengths")


NAMES = ("say", "join", "count", "misbehave", "flaky", "table", "evaluation")
STAGES.update({name: f"toys:{name.capitalize()}" for name in NAMES})


def planned(
    store: Store,
    name: str,
    uses: str,
    config: Mapping[str, Any],
    upstream: Sequence[PlannedStage] = (),
    *,
    forced: bool = False,
    resources: Resources | None = None,
) -> PlannedStage:
    """One stage of a plan, with an honest key and the state that the store has for it."""
    from pipeline.plan import Action, PlannedStage, State
    from pipeline.recipe import Resources

    stage = load_stage(uses)
    (input_name,) = stage.inputs or ("",)
    ingredients = {"uses": uses, "params": dict(config), "inputs": [made.key for made in upstream]}
    key = hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()
    fresh = store.entry(uses, key).done() is not None and not any(made.action is Action.RUN for made in upstream)
    return PlannedStage(
        name=name,
        uses=uses,
        config=stage.Config(**config),
        inputs={input_name: tuple(made.name for made in upstream)} if upstream else {},
        key=key,
        ingredients=ingredients,
        resources=resources or Resources(grace_seconds=20),
        state=State.FRESH if fresh else State.MISSING,
        action=Action.SKIP if fresh and not forced else Action.RUN,
        reason="",
        forced=forced,
    )


def plan_of(runs: Path, *stages: PlannedStage, name: str = "toy") -> Plan:
    """A plan of these stages under a recipe called ``name``."""
    from pipeline.plan import Plan
    from pipeline.recipe import Recipe

    recipe = Recipe(
        name=name,
        experiment=name,
        seed=0,
        path=Path("toy.yaml"),
        text=f"name: {name}\n",
        resolved={"name": name},
        stages={},
        origins={},
        unused=(),
    )
    return Plan(recipe, runs, stages)


def main() -> int:
    from pipeline.errors import PipelineError
    from pipeline.recipe import Resources
    from pipeline.runner import execute
    from pipeline.store import Store

    runs, config = Path(sys.argv[1]), json.loads(sys.argv[2])
    resources = Resources(**json.loads(sys.argv[3]) if len(sys.argv) > 3 else {"grace_seconds": 20})
    stage = planned(Store(runs / "store"), "count", "count", config, resources=resources)
    try:
        execute(plan_of(runs, stage), out=lambda line: print(line, flush=True))
    except PipelineError as error:
        print(error, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
