"""What a launch is refused for before anything is started: batches, hosts, GPUs, allocations, contradictions."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import toys
from toys import plan_of, planned

from pipeline import launch
from pipeline.cli import main
from pipeline.errors import RecipeError
from pipeline.executing import devices
from pipeline.launchers.deepspeed import parse_hostfile
from pipeline.reading.launch_checks import check_machine, check_recipe
from pipeline.reading.loading import load_recipe
from pipeline.recipe import Resources
from pipeline.store import Store
from stages.batch_split import split_batch

RECIPE = """\
name: toy
models:
  teacher: {model: ./teacher}
  student: {model: ./student, tokenizer: ./tokenizer}
data:
  train: [{path: ./a.txt}]
stages:
  align: {uses: align}
  init: {uses: init, needs: [align]}
  distill: {uses: distill, needs: [init], losses: [cross_entropy], steps: 2, batch_windows: 8, dtype: bf16}
resources:
  distill: RESOURCES
"""


@pytest.fixture
def problems(tmp_path: Path) -> Callable[..., list[str]]:
    """The problems of a recipe whose stage ``distill`` is launched so, without the path in front of the line."""

    def problems(*overrides: str, **resources: object) -> list[str]:
        path = tmp_path / "recipe.yaml"
        path.write_text(RECIPE.replace("RESOURCES", json.dumps(resources)))
        try:
            check_recipe(load_recipe(path, overrides))
        except RecipeError as error:
            return [problem.removeprefix(f"{path}:12: resources.distill: ") for problem in error.problems]
        return []

    return problems


@pytest.fixture
def machine_problems(tmp_path: Path) -> Callable[..., str]:
    """What this machine says to a ``count`` stage that is launched so."""

    def problems(**resources: object) -> str:
        stage = planned(Store(tmp_path / "store"), "count", "count", {"steps": 1}, resources=Resources(**resources))
        try:
            check_machine(plan_of(tmp_path, stage))
        except RecipeError as error:
            return str(error)
        return ""

    return problems


@pytest.mark.parametrize("micro", [None, 1, 2, 3, 4, 6])
def test_a_batch_is_split_evenly_or_refused_with_numbers_that_fit(micro: int | None) -> None:
    for batch in range(1, 25):
        for processes in range(1, 9):
            try:
                size, passes = split_batch(batch, micro, processes)
                assert size * passes * processes == batch
                assert micro in (None, size)
            except ValueError as error:
                assert all(processes * (micro or 1) * passes != batch for passes in range(1, batch + 1))
                for name, values in _numbers_that_fit(str(error)).items():
                    for value in values:
                        changed = {"batch": batch, "micro_batch": micro, "processes": processes} | {name: value}
                        split_batch(**changed)


def _numbers_that_fit(message: str) -> dict[str, list[int]]:
    names = {"batch_windows": "batch", "micro_batch_windows": "micro_batch"}
    found: dict[str, list[int]] = {}
    for way in message.split("what would fit: ")[1].split(", or "):
        name, _, values = way.rpartition(": ")
        numbers = [int(word) for word in values.split() if word.isdecimal()]
        assert numbers
        found[names.get(name, "processes")] = numbers
    return found


def test_a_batch_that_does_not_divide_is_refused_where_the_launch_is_described(problems) -> None:
    assert problems(launcher="torchrun", processes=2) == []
    assert problems(launcher="slurm", nodes=3, gpus=1) == [
        "batch_windows (8) must be processes (3) × a whole number of forward passes; what would fit: batch_windows: 6 "
        "or 9, or 2 processes"
    ]
    assert problems("stages.distill.micro_batch_windows=3", launcher="torchrun", processes=2) == [
        "batch_windows (8) must be processes (2) × micro_batch_windows (3) × a whole number of forward passes; what "
        "would fit: batch_windows: 6 or 12, or micro_batch_windows: 2"
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file or directory"),
        ("{'zero_optimization': {}}", "is no JSON: "),
        ("[]", "must be a JSON object"),
    ],
)
def test_a_deepspeed_configuration_that_cannot_be_read_is_found_where_it_is_named(
    tmp_path: Path, problems, content: str | None, said: str
) -> None:
    if content is not None:
        (tmp_path / "ds.json").write_text(content)
    resources = {"launcher": "torchrun", "processes": 2, "zero": {"student": 2}}
    (problem,) = problems(**resources, deepspeed="ds.json")
    place, _, message = problem.partition(": resources.distill.deepspeed: ")
    assert place == f"{tmp_path / 'recipe.yaml'}:12"
    assert message.startswith(f"the DeepSpeed configuration {tmp_path / 'ds.json'} {said}")
    assert problems(**resources, deepspeed={"steps_per_print": 10}) == []


@pytest.mark.parametrize("command", ["validate", "plan", "run", "slurm"])
def test_every_command_that_leads_to_a_run_makes_these_checks(tmp_path, problems, capsys, command) -> None:
    assert problems(launcher="torchrun", processes=3)
    assert main([command, str(tmp_path / "recipe.yaml"), "--runs", str(tmp_path / "runs")]) == 2
    assert "recipe.yaml:12: resources.distill: batch_windows (8) must be processes (3)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a slots=2\nb slots=2\na slots=4\n", "hosts:3: a stands in line 1 already"),
        ("a slots=two\n", "hosts:1: 'a slots=two' is not 'host slots=N'"),
        ("a slots=0\n", "hosts:1: 'a slots=0' is not 'host slots=N'"),
        ("a\n", "hosts:1: 'a' is not 'host slots=N'"),
        ("a slots=2 b slots=2\n", "hosts:1: "),
        ("# nobody\n\n", "hosts names no host"),
    ],
)
def test_a_wrong_hostfile(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        parse_hostfile(text, "hosts")


def test_all_that_is_wrong_with_a_hostfile_is_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"hosts:1: .*; hosts:3: b stands in line 2 already"):
        parse_hostfile("a\nb slots=1\nb slots=1\n", "hosts")


def test_a_hostfile_says_how_many_processes_there_are(tmp_path: Path, problems) -> None:
    (tmp_path / "hosts").write_text("# two machines\nleft slots=4   # the head\n\nright slots=4\n")
    assert problems(launcher="deepspeed", hostfile="hosts") == []
    assert "must be processes (6)" in problems(launcher="deepspeed", hostfile="./hosts", processes=3)[0]
    given = {"launcher": "deepspeed", "hostfile": "hosts"}
    assert "nodes: 3, but" in problems(**given, nodes=3)[0]
    assert "left has 4, right has 4; lower processes" in problems(**given, processes=5)[0]
    (tmp_path / "hosts").write_text("left slots=4\nright slots=2\n")
    assert "different numbers of slots ([2, 4])" in problems(**given)[0]
    assert problems(**given, processes=2) == []
    assert problems(**given, nodes=1) == []
    (tmp_path / "hosts").unlink()
    assert "the hostfile cannot be read" in problems(**given)[0]


def test_paths_are_relative_to_the_recipe_and_kept_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("RESOURCES", "{launcher: deepspeed, hostfile: sub/../hosts}"))
    monkeypatch.chdir("/")
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.stages["distill"].resources.hostfile == str(tmp_path / "hosts")
    assert recipe.resolved["resources"]["distill"]["hostfile"] == str(tmp_path / "hosts")
    kept = Resources(**recipe.resolved["resources"]["distill"])
    assert kept == recipe.stages["distill"].resources, "what a hostfile leaves open stays open"


ACCELERATE = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU", "num_processes": 4,
              "num_machines": 1, "machine_rank": 0, "mixed_precision": "bf16"}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "resources", "said"),
    [
        ({}, {}, None),
        ({}, {"processes": 4}, None),
        ({}, {"processes": 2}, "num_processes is 4 on all machines, but the recipe says 2 on each"),
        ({"num_machines": 2, "main_process_ip": "a", "main_process_port": 1}, {"processes": 2, "nodes": 2}, None),
        ({"num_machines": 2, "main_process_ip": "a", "main_process_port": 1}, {"nodes": 1}, "num_machines is 2, but"),
        ({"num_machines": 2}, {}, "several machines need main_process_ip and main_process_port"),
        ({"num_machines": 3, "main_process_ip": "a", "main_process_port": 1}, {}, "num_processes (4) must divide"),
        ({"num_machines": 2, "machine_rank": 1, "main_process_ip": "a", "main_process_port": 1}, {}, "machine_rank"),
        ({"num_processes": 3}, {}, "batch_windows (8) must be processes (3)"),
        ({"num_processes": -1}, {}, "must be numbers from 1"),
        ({"distributed_type": "MULTI_CPU"}, {}, "distributed_type: MULTI_CPU does not start 4 of our processes"),
        ({"distributed_type": "FSDP"}, {}, "distributed_type: FSDP does not start"),
        ({"distributed_type": "NO", "num_processes": 1}, {}, None),
        ({"compute_environment": "AMAZON_SAGEMAKER"}, {}, "compute_environment: AMAZON_SAGEMAKER"),
        ({"use_cpu": True}, {"device": "gpu"}, "use_cpu is true, but the recipe asks for GPUs"),
        ({"mixed_precision": "no"}, {}, "mixed_precision: no means dtype: fp32, but the stage has dtype: bf16"),
        ({"mixed_precision": "fp16"}, {}, "mixed_precision: fp16 has no counterpart here"),
        ({"deepspeed_config": {"zero_stage": 2}}, {}, "zero_stage is 2, but the recipe says zero.student: 0"),
        ({"deepspeed_config": {"zero_stage": 2}}, {"zero": {"student": 2}}, None),
        ({"deepspeed_config": {"gradient_clipping": 0.5}}, {}, "gradient_clipping is 0.5, but the stage has clip_norm"),
        ({"deepspeed_config": {"gradient_clipping": 1}}, {}, None),
        ({"deepspeed_config": {"gradient_accumulation_steps": 4}}, {}, "are 1 forward passes each"),
        ({"deepspeed_config": {"gradient_accumulation_steps": 1}}, {}, None),
        ({"deepspeed_config": {"gradient_accumulation_steps": "auto", "gradient_clipping": "auto"}}, {}, None),
    ],
)  # fmt: skip
def test_an_accelerate_configuration_must_fit_the_recipe(
    tmp_path: Path, problems, config: dict, resources: dict, said: str | None
) -> None:
    (tmp_path / "accelerate.yaml").write_text(json.dumps(ACCELERATE | config))
    found = problems(launcher="accelerate", accelerate_config="accelerate.yaml", **resources)
    if said is None:
        assert found == []
    else:
        assert len(found) == 1
        assert said in found[0]


def test_an_accelerate_configuration_that_cannot_be_read(tmp_path: Path, problems) -> None:
    given = {"launcher": "accelerate", "accelerate_config": "accelerate.yaml"}
    assert "cannot be read" in problems(**given)[0]
    (tmp_path / "accelerate.yaml").write_text("- a list")
    assert "is no mapping" in problems(**given)[0]
    (tmp_path / "accelerate.yaml").write_text(f'{json.dumps(ACCELERATE)[:-1]}, "mixed_precision": no}}')
    assert "means dtype: fp32" in problems(**given)[0], "YAML reads an unquoted no as false"


@pytest.mark.parametrize(
    ("config", "by_hand"),
    [
        ({"distributed_type": "MULTI_GPU"}, 1),
        ({"distributed_type": "DEEPSPEED"}, 0),
        ({"distributed_type": "DEEPSPEED", "deepspeed_config": {"deepspeed_multinode_launcher": "standard"}}, 1),
    ],
)
def test_other_machines_of_accelerate_are_named_where_a_person_must_start_them(
    tmp_path: Path, config: dict, by_hand: int
) -> None:
    machines = {"num_machines": 2, "main_process_ip": "head", "main_process_port": 29500}
    (tmp_path / "accelerate.yaml").write_text(json.dumps(ACCELERATE | machines | config))
    given = Resources(launcher="accelerate", accelerate_config=str(tmp_path / "accelerate.yaml"))
    built = launch.build(tmp_path / "JOB.json", launch.settled(given))
    assert ["--machine_rank 1 --module stages.worker" in line for line in built.elsewhere] == [True] * by_hand
    assert "--machine_rank" not in built.command


def test_gpus_that_are_not_there(machine_problems, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.glob, "glob", lambda pattern: [])
    assert "resources.count: it asks for GPUs, but there are none here" in machine_problems(device="gpu")
    assert machine_problems() == ""
    assert machine_problems(device="cpu") == ""
    monkeypatch.setattr(devices.glob, "glob", lambda pattern: ["/dev/nvidia0", "/dev/nvidia1"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert "4 processes want a GPU each, but 1 can be seen here" in machine_problems(launcher="torchrun", gpus=4)
    assert machine_problems(gpus=1) == ""


def test_hosts_that_do_not_answer(tmp_path: Path, cluster: Path, machine_problems) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("localhost slots=1\ndown-1 slots=1\nup slots=1\ndown-2 slots=1\n")
    said = machine_problems(launcher="deepspeed", hostfile=str(hosts))
    for host in ("down-1", "down-2"):
        assert f"host {host} of {hosts} cannot be reached: ssh: connect to host {host} port 22: No route" in said
    assert "host up" not in said
    assert machine_problems(launcher="deepspeed", hostfile=str(hosts), nodes=1) == ""
    (cluster / "pdsh").unlink()
    assert "pdsh, which is not installed here" in machine_problems(launcher="deepspeed", hostfile=str(hosts))


def test_a_hostfile_of_this_machine_alone_needs_neither_ssh_nor_pdsh(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    resources = launch.settled(Resources(launcher="deepspeed", hostfile=str(tmp_path / "hosts")))
    monkeypatch.setenv("PATH", "")
    assert list(launch.problems(resources)) == []
    assert "--num_gpus 2 --master_addr 127.0.0.1" in " ".join(launch.build(tmp_path / "JOB.json", resources).command)


def test_a_single_other_machine_is_not_taken_for_this_one(tmp_path: Path) -> None:
    """DeepSpeed itself starts the processes here when a hostfile has one line, whatever the line says."""
    (tmp_path / "hosts").write_text("elsewhere slots=2\n")
    resources = launch.settled(Resources(launcher="deepspeed", hostfile=str(tmp_path / "hosts")))
    assert "--force_multi" in launch.build(tmp_path / "JOB.json", resources).command


def test_slurm_outside_an_allocation_says_how_to_get_one(machine_problems, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    said = machine_problems(launcher="slurm", processes=2)
    assert "`pipeline slurm RECIPE > job.sbatch` and `sbatch job.sbatch`, or with salloc" in said


def test_slurm_with_fewer_nodes_than_asked_for(allocation: Path, machine_problems) -> None:
    assert machine_problems(launcher="slurm", nodes=2) == ""
    assert "3 nodes are asked for, but this allocation has 2: localhost, 127.0.0.1" in machine_problems(
        launcher="slurm", nodes=3
    )
    (allocation / "scontrol").unlink()
    assert "does not name the nodes of this allocation" in machine_problems(launcher="slurm")


def test_the_srun_command_names_nodes_tasks_and_devices(allocation: Path) -> None:
    resources = launch.settled(Resources(launcher="slurm", nodes=2, gpus=4, threads=6))
    built = launch.build(Path("/attempt/JOB.json"), resources)
    assert built.command[:6] == (
        "srun", "--nodes=2", "--ntasks=8", "--ntasks-per-node=4", "--nodelist=localhost,127.0.0.1", "--overlap",
    )  # fmt: skip
    assert {"--cpus-per-task=6", "--gpus-per-node=4", "--gpu-bind=none", "--kill-on-bad-exit=1"} <= set(built.command)
    assert built.command[-4:] == (sys.executable, "-m", "stages.worker", "/attempt/JOB.json")
    assert built.environment["MASTER_ADDR"] == "localhost"
    assert built.environment["MASTER_PORT"] == "14711"


def test_torchrun_nodes_need_a_place_to_meet(machine_problems, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert "set rendezvous: host:port" in machine_problems(launcher="torchrun", nodes=2)
    assert machine_problems(launcher="torchrun", nodes=2, rendezvous="a:1") == ""
    monkeypatch.setenv("MASTER_ADDR", "head")
    monkeypatch.setenv("MASTER_PORT", "1234")
    assert machine_problems(launcher="torchrun", nodes=2) == ""


@pytest.mark.slow
def test_deepspeed_starts_the_hosts_of_a_hostfile(tmp_path: Path, cluster: Path, rank_run) -> None:
    (tmp_path / "hosts").write_text("localhost slots=1\nother slots=1\n")
    resources = {"launcher": "deepspeed", "hostfile": str(tmp_path / "hosts"), "rendezvous": "127.0.0.1:29611"}
    run = rank_run(resources | {"processes": 1}, steps=3)
    code, output = run.finish()
    assert code == 0, output
    environment = json.loads((run.entry.out / "environment.json").read_text())
    assert (environment["WORLD_SIZE"], environment["MASTER_PORT"]) == ("2", "29611")
    assert environment["DISABLE_MLFLOW_INTEGRATION"] == "TRUE", "our variables reach the other machines too"
    assert sorted(path.name for path in run.attempt.glob("ranks/*.json")) == ["0.json", "1.json"]
    assert os.path.dirname(toys.__file__) in environment["PYTHONPATH"]
