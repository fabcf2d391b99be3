"""The subcommands of ``pipeline``: one module each, all of the same shape.

A module has ``SUMMARY``, one line for the list of commands; ``configure(parser)``, which adds its arguments; and
``execute(arguments)``, which does it and returns the exit code. ``EPILOG``, if it has one, ends its help. What takes
time to import is imported inside ``execute``, so that ``pipeline --help`` answers at once.
"""

COMMANDS: dict[str, str] = {
    "demo": "pipeline.commands.demo",
    "init": "pipeline.commands.init",
    "run": "pipeline.commands.run",
    "resume": "pipeline.commands.resume",
    "plan": "pipeline.commands.plan",
    "sweep": "pipeline.commands.sweep",
    "audit": "pipeline.commands.audit",
    "card": "pipeline.commands.card",
    "mixture": "pipeline.commands.mixture",
    "status": "pipeline.commands.status",
    "compare": "pipeline.commands.compare",
    "logs": "pipeline.commands.logs",
    "graph": "pipeline.commands.graph",
    "validate": "pipeline.commands.validate",
    "slurm": "pipeline.commands.slurm",
    "track": "pipeline.commands.track",
    "show": "pipeline.commands.show",
    "ls": "pipeline.commands.ls",
    "export": "pipeline.commands.export",
    "clean": "pipeline.commands.clean",
    "verify": "pipeline.commands.verify",
    "unlock": "pipeline.commands.unlock",
    "env": "pipeline.commands.env",
    "ui": "pipeline.commands.ui",
    "completion": "pipeline.commands.completion",
}
"""Command -> module, in the order of the list that ``pipeline --help`` shows."""
