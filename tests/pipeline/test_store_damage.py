"""Any file below ``runs`` may be cut off, garbled or gone: no damage wedges the tool or passes for a result."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import forked_stages
import pytest
import yaml
from forked_stages import recipe_of
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pipeline.cli import main
from pipeline.errors import EXIT_OK, EXIT_WORK_PENDING, Interrupted
from pipeline.plan import Plan
from pipeline.planner import make_plan
from pipeline.reading.loading import load_recipe
from pipeline.request import Request
from pipeline.runner import execute
from pipeline.store import Store

STAGES = {
    "first": {"text": "a"},
    "second": {"text": "b", "needs": ["first"]},
    "third": {"text": "c", "needs": ["first", "second"]},
}
TEXTS = {"first": "a()", "second": "b(a())", "third": "c(a(),b(a()))"}


@pytest.fixture(scope="module", autouse=True)
def _forked() -> Iterator[None]:
    with forked_stages.forked_stages():
        yield


def pipeline(*arguments: str) -> tuple[int, str]:
    """The command line in this process: exit code, and what it printed."""
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        code = main(arguments)
    return code, printed.getvalue()


def write_recipe(folder: Path, **options: str) -> list[str]:
    file = folder / "recipe.yaml"
    stages = {name: {**given, **(options if name == "third" else {})} for name, given in STAGES.items()}
    file.write_text(yaml.safe_dump(recipe_of(stages)))
    return [str(file), "--runs", str(folder / "runs")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and a run that has finished, and whose last stage is begun anew and interrupted."""
    folder = tmp_path_factory.mktemp("finished")
    write_recipe(folder)
    execute(plan_of(folder), out=lambda line: None)
    write_recipe(folder, fate="stop")
    with pytest.raises(Interrupted):
        execute(plan_of(folder, Request(force=("third",))), out=lambda line: None)
    write_recipe(folder)
    return folder


def plan_of(folder: Path, request: Request = Request()) -> Plan:  # noqa: B008 - frozen
    return make_plan(load_recipe(folder / "recipe.yaml"), folder / "runs", request)


def below(folder: Path) -> list[Path]:
    """Everything in ``runs``, in an order that is the same for every copy."""
    return sorted((folder / "runs").rglob("*"))


def harm(path: Path, how: str, where: float) -> None:
    """Damage one path: a directory or a link can only go."""
    if path.is_symlink() or how == "delete":
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    elif path.is_file():
        content = path.read_bytes()
        at = int(where * len(content))
        changed = {"truncate": content[:at], "garble": content[:at] + b"\xff\x00" + content[at:], "empty": b""}
        path.write_bytes(changed[how])


def planned_texts(folder: Path) -> dict[str, str]:
    """What stages that count as up to date hold."""
    plan = plan_of(folder)
    store = Store(folder / "runs" / "store")
    return {
        stage.name: (store.entry(stage.uses, stage.key).out / "text.txt").read_text()
        for stage in plan.stages
        if stage not in plan.pending
    }


def check_damage(folder: Path, damages: list[tuple[int, str, float]]) -> None:
    paths = below(folder)
    harmed = []
    for number, how, where in damages:
        path = paths[number % len(paths)]
        if path.exists() or path.is_symlink():
            harm(path, how, where)
            harmed.append(f"{how} {path.relative_to(folder)}")
    assert planned_texts(folder).items() <= TEXTS.items()
    recipe = [str(folder / "recipe.yaml"), "--runs", str(folder / "runs")]
    code, plan = pipeline("plan", *recipe, "--check")
    assert code in (EXIT_OK, EXIT_WORK_PENDING), (harmed, plan)
    for command in (["status", recipe[0]], ["status"], ["ls", "runs"]):
        code, said = pipeline(*command, *recipe[1:])
        assert "fault in tokenferry" not in said, (harmed, said)
    code, said = pipeline("run", *recipe)
    assert code == EXIT_OK, (harmed, said)
    begun = set(re.findall(r"^(\w+): attempt", said, re.M))
    assert (begun == set()) == ("everything is up to date" in plan), "it does what it said"
    assert planned_texts(folder) == TEXTS
    assert pipeline("status", *recipe[1:])[0] == EXIT_OK


DAMAGES = st.lists(
    st.tuples(st.integers(0, 10_000), st.sampled_from(["delete", "truncate", "garble", "empty"]), st.floats(0, 0.99)),
    min_size=1,
    max_size=3,
)
LIGHT = settings(
    max_examples=12, deadline=None, phases=[Phase.reuse, Phase.generate], suppress_health_check=list(HealthCheck)
)


def copied(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target, symlinks=True)
    return target


@LIGHT
@given(damages=DAMAGES)
def test_damage_is_noticed_said_and_mended(
    finished: Path, tmp_path_factory: pytest.TempPathFactory, damages: list[tuple[int, str, float]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "nowhere://x")
        check_damage(copied(finished, tmp_path_factory.mktemp("damaged") / "folder"), damages)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["delete", "truncate", "garble", "empty"])
def test_every_path_can_be_damaged(finished: Path, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://x")
    for number, path in enumerate(below(finished)):
        if how == "delete" or path.is_file():
            check_damage(copied(finished, tmp_path / str(number)), [(number, how, 0.5)])
