"""What can go wrong, with the exit code the command line gives for it (runner rules R16 and R17)."""

from __future__ import annotations

EXIT_OK = 0
EXIT_STAGE_FAILED = 1
EXIT_USAGE = 2
EXIT_WORK_PENDING = 3
EXIT_LOCKED = 4
EXIT_INTERRUPTED = 75
EXIT_KILLED = 130


class PipelineError(Exception):
    """A problem the user can act on: printed as it is, without a traceback."""

    exit_code = EXIT_STAGE_FAILED


class RecipeError(PipelineError):
    """The recipe or the command line is wrong. ``problems`` holds every problem found, not only the first."""

    exit_code = EXIT_USAGE

    def __init__(self, problems: list[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class StageFailed(PipelineError):
    """A stage ended with an error; the message is the whole failure report."""

    exit_code = EXIT_STAGE_FAILED


class Locked(PipelineError):
    """Another process is at work on this run."""

    exit_code = EXIT_LOCKED


class Interrupted(PipelineError):
    """The run was asked to stop and saved what it had; the same command goes on from there."""

    exit_code = EXIT_INTERRUPTED


class Killed(PipelineError):
    """A second Ctrl-C ended the stage before it could save."""

    exit_code = EXIT_KILLED
