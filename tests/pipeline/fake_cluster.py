"""Stand-ins for the programs of a cluster, which start real processes on this machine.

``install`` puts ``srun``, ``scontrol``, ``ssh`` and ``pdsh`` into a directory for PATH. They understand what
tokenferry asks of them and refuse the rest, and they answer signals as the real ones do: SIGTERM to srun kills its
tasks at once, SIGUSR1 is passed on to them.
"""

from __future__ import annotations

import sys
from pathlib import Path

SRUN = """
import os, signal, subprocess, sys, time

options = {}
words = sys.argv[1:]
while words[0].startswith("--"):
    name, _, value = words.pop(0)[2:].partition("=")
    options[name] = value
known = {"nodes", "ntasks", "ntasks-per-node", "nodelist", "overlap", "cpu-bind", "cpus-per-task", "gpus-per-node",
         "gpu-bind", "kill-on-bad-exit"}
assert options.keys() <= known, options
nodes, per_node = int(options["nodes"]), int(options["ntasks-per-node"])
hosts = options["nodelist"].split(",")
assert len(hosts) == nodes and int(options["ntasks"]) == nodes * per_node
tasks = []

def kill_all(number=None, frame=None):
    if number is not None:
        print("srun: forcing job termination", file=sys.stderr, flush=True)
    for task in tasks:
        if task.poll() is None:
            task.send_signal(signal.SIGKILL if number is not None else signal.SIGTERM)

def pass_on(number, frame):
    for task in tasks:
        task.send_signal(number)

signal.signal(signal.SIGTERM, kill_all)
signal.signal(signal.SIGUSR1, pass_on)
for number in range(nodes * per_node):
    variables = {"SLURM_PROCID": number, "SLURM_LOCALID": number % per_node, "SLURM_NTASKS": nodes * per_node}
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    tasks.append(subprocess.Popen(words, env=environment, start_new_session=True))
ended = {}
while len(ended) < len(tasks):
    for number, task in enumerate(tasks):
        if number not in ended and task.poll() is not None:
            ended[number] = task.returncode
            if task.returncode:
                names = {-9: "Killed", -11: "Segmentation fault"}
                how = names.get(task.returncode, f"Exited with exit code {task.returncode}")
                print(f"srun: error: {hosts[number // per_node]}: task {number}: {how}", file=sys.stderr, flush=True)
                if options.get("kill-on-bad-exit") == "1":
                    kill_all()
    time.sleep(0.02)
sys.exit(max(code if code >= 0 else 128 - code for code in ended.values()))
"""

SCONTROL = """
import os, sys
from pathlib import Path

if sys.argv[1:3] == ["show", "hostnames"]:
    print("\\n".join(sys.argv[3].split(",")))
elif sys.argv[1] == "requeue":
    Path(os.environ["REQUEUED"]).write_text(sys.argv[2])
else:
    sys.exit(f"scontrol: unexpected {sys.argv[1:]}")
"""

SSH = """
import subprocess, sys

words = sys.argv[1:]
while words[0] == "-o":
    words = words[2:]
host, command = words[0], " ".join(words[1:])
if host.startswith("down"):
    print(f"ssh: connect to host {host} port 22: No route to host", file=sys.stderr)
    sys.exit(255)
sys.exit(subprocess.run(command, shell=True).returncode)
"""

PDSH = """
import subprocess, sys

words = sys.argv[1:]
assert words[:2] == ["-S", "-f"] and words[3] == "-w", words
hosts, command = words[4].split(","), " ".join(words[5:])
running = [subprocess.Popen(command.replace("%n", str(number)), shell=True) for number in range(len(hosts))]
sys.exit(max(process.wait() for process in running))
"""


def install(directory: Path) -> Path:
    """Write the programs into ``directory``, which is made, and return it."""
    directory.mkdir()
    for name, source in (("srun", SRUN), ("scontrol", SCONTROL), ("ssh", SSH), ("pdsh", PDSH)):
        path = directory / name
        path.write_text(f"#!{sys.executable}\n{source}")
        path.chmod(0o755)
    return directory
