"""DeepSpeed's launcher, on this node or on the machines of a hostfile.

A hostfile has a line ``host slots=N`` for each machine, as in MPI; ``#`` starts a comment.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from socket import getfqdn, gethostname

from pipeline.launchers.torchrun import meeting_point
from pipeline.launchers.worker import MODULE, free_port
from pipeline.recipe import Resources

SSH_SECONDS = 10
"""How long a machine may take to answer before the launch."""

NO_HOSTFILE = "/dev/null"
"""Given explicitly: without one, DeepSpeed takes /job/hostfile if it happens to exist."""


def parse_hostfile(text: str, name: str) -> dict[str, int]:
    """Host -> slots, in the order of the file.

    Args:
        text: content of the file.
        name: what messages call the file.

    Raises:
        ValueError: a line is malformed, a host is named twice, or there is none; all problems are in the message.
    """
    hosts: dict[str, int] = {}
    lines: dict[str, int] = {}
    wrong: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        entry = line.split("#")[0].strip()
        if not entry:
            continue
        match = re.fullmatch(r"(\S+)\s+slots=(\d+)", entry)
        if match is None or int(match.group(2)) == 0:
            wrong.append(f"{name}:{number}: {entry!r} is not 'host slots=N' with N processes")
        elif match.group(1) in hosts:
            wrong.append(f"{name}:{number}: {match.group(1)} stands in line {lines[match.group(1)]} already")
        else:
            hosts[match.group(1)], lines[match.group(1)] = int(match.group(2)), number
    if not hosts and not wrong:
        wrong.append(f"{name} names no host; write 'host slots=N', a line for each machine")
    if wrong:
        raise ValueError("; ".join(wrong))
    return hosts


def read_hostfile(path: str) -> dict[str, int]:
    """The machines of a hostfile.

    Raises:
        ValueError: the file cannot be read or is wrong.
    """
    try:
        return parse_hostfile(Path(path).read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the hostfile cannot be read: {error}") from None


def settled(resources: Resources) -> Resources:
    """The same with ``nodes`` and ``processes`` from the hostfile where the recipe leaves them open.

    Raises:
        ValueError: the hostfile is wrong, or has less than the recipe asks for.
    """
    if resources.hostfile is None:
        return resources
    hosts = read_hostfile(resources.hostfile)
    nodes = resources.nodes or len(hosts)
    if nodes > len(hosts):
        raise ValueError(f"nodes: {nodes}, but {resources.hostfile} has {len(hosts)}; add hosts, or lower nodes")
    slots = dict(list(hosts.items())[:nodes])
    if resources.processes is None and len(set(slots.values())) > 1:
        raise ValueError(
            f"the hosts of {resources.hostfile} have different numbers of slots ({sorted(set(slots.values()))}): say "
            "how many to use on each, with processes"
        )
    processes = resources.processes or next(iter(slots.values()))
    if short := [f"{host} has {count}" for host, count in slots.items() if count < processes]:
        raise ValueError(
            f"{processes} processes per node, but in {resources.hostfile} {', '.join(short)}; lower processes, or add "
            "slots"
        )
    return resources.model_copy(update={"nodes": nodes, "processes": processes})


def command(job: str, resources: Resources) -> tuple[str, ...]:
    """The argument vector."""
    processes = ("--num_gpus", str(resources.processes or 1))
    where: tuple[str, ...] = ("--hostfile", NO_HOSTFILE, *processes, "--master_addr", "127.0.0.1")
    if uses_ssh(resources):
        host = ("--master_addr", meeting_point(resources)[0]) if resources.rendezvous else ()
        # Unless it is forced, DeepSpeed takes a hostfile with one host for this machine, whatever its name is.
        machines = ("--hostfile", str(resources.hostfile), "--num_nodes", str(resources.nodes))
        where = (*machines, *processes, "--force_multi", "--no_ssh_check", *host)
    port = meeting_point(resources)[1] if resources.rendezvous else str(free_port())
    return (sys.executable, "-m", "deepspeed.launcher.runner", *where, "--master_port", port, "--module", MODULE, job)


def uses_ssh(resources: Resources) -> bool:
    """Whether ranks are started through ssh, as they are unless this machine is the only one."""
    if resources.hostfile is None:
        return False
    hosts = _hosts(resources)
    return len(hosts) > 1 or not _is_here(hosts[0])


def problems(resources: Resources) -> Iterator[str]:
    """What stands in the way of starting, in words: missing programs and machines that do not answer."""
    if not uses_ssh(resources):
        return
    if shutil.which("pdsh") is None:
        yield "DeepSpeed starts processes on other machines through pdsh, which is not installed here"
    others = [host for host in _hosts(resources) if not _is_here(host)]
    with ThreadPoolExecutor(max_workers=32) as pool:
        for host, problem in zip(others, pool.map(_unreachable, others), strict=True):
            if problem:
                yield (
                    f"host {host} of {resources.hostfile} cannot be reached: {problem}. `ssh {host} true` must work "
                    "without a question; correct the file, or set up a key"
                )


def _hosts(resources: Resources) -> list[str]:
    return list(read_hostfile(str(resources.hostfile)))[: resources.nodes]


def _is_here(host: str) -> bool:
    return host in ("localhost", "127.0.0.1", gethostname(), getfqdn())


def _unreachable(host: str) -> str | None:
    """Why ``ssh`` does not get to ``host`` without a question; None if it does."""
    command = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={SSH_SECONDS}", host, "true"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=2 * SSH_SECONDS, check=False)
    except FileNotFoundError:
        return "there is no ssh on this machine"
    except subprocess.TimeoutExpired:
        return f"it did not answer within {2 * SSH_SECONDS} s"
    if done.returncode == 0:
        return None
    return next(reversed(done.stderr.strip().splitlines()), f"ssh ended with {done.returncode}")


def environment_file(variables: Mapping[str, str]) -> str:
    """What DeepSpeed exports on other machines besides its own choice: one ``NAME=value`` a line."""
    return "".join(f"{name}={value}\n" for name, value in sorted(variables.items()))
