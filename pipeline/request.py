"""Which stages of a recipe a run is asked for, and which of them whatever is there (runner specification, R11)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import RecipeError
from pipeline.nearest import unknown_name

SOURCES = "sources/"
"""Stages whose name begins so bring in what the recipe's ``models`` and ``data`` name; they go with their readers."""


OnCodeChange = Literal["warn", "rerun", "error"]


@dataclass(frozen=True)
class Request:
    """What the command line asks for; without anything, all stages, each only if it is not up to date.

    Attributes:
        start: these stages and what follows them (``--from``).
        until: these stages and what they need (``--until``). With ``start``, what lies between the two.
        only: these stages alone.
        force: run these even if they are up to date.
        force_all: run all that were selected.
        restart: begin these anew: what an interrupted attempt left to go on from is discarded.
        on_code_change: what to do about a result that other code than this made. ``warn`` says so and keeps it: a
            stage's VERSION is what tells that results would differ (R5).
    """

    start: tuple[str, ...] = ()
    until: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    force: tuple[str, ...] = ()
    force_all: bool = False
    restart: tuple[str, ...] = ()
    on_code_change: OnCodeChange = "warn"

    def options(self) -> list[str]:
        """The same on a command line."""
        named = {"--from": self.start, "--until": self.until, "--only": self.only}
        named |= {"--force": self.force, "--restart": self.restart}
        words = [word for option, names in named.items() for name in names for word in (option, name)]
        words += ["--force-all"] if self.force_all else []
        return words + ([] if self.on_code_change == "warn" else ["--on-code-change", self.on_code_change])


def selected(
    request: Request, upstream: Mapping[str, Collection[str]], keys: Mapping[str, str] | None = None
) -> set[str]:
    """The stages that ``request`` selects.

    Args:
        upstream: every stage of the recipe in an order in which they can run -> the stages that it reads.
        keys: stage -> cache key. Twins, stages with one key, are one piece of work under several names: whoever selects
            one selects all. None: there are no twins.

    Raises:
        RecipeError: an option names no stage, or nothing is left; all problems at once.
    """
    check_names(request, upstream)
    chosen = set(upstream)
    if request.start:
        chosen &= _closure(request.start, _downstream(upstream), upstream)
    if request.until:
        chosen &= _closure(request.until, upstream, reversed(list(upstream)))
    if request.only:
        chosen &= set(request.only)
    if not chosen:
        raise RecipeError(f"{' '.join(request.options())}: no stage is in all of these; nothing would run")
    chosen |= {other for name in chosen for other in upstream[name] if other.startswith(SOURCES)}
    if keys is not None:
        wanted = {keys[name] for name in chosen}
        chosen |= {name for name in upstream if keys[name] in wanted}
    idle = [name for name in (*request.force, *request.restart) if name not in chosen]
    if idle:
        raise RecipeError(
            [f"{name} is to be forced or restarted, but it is not among the selected stages" for name in idle]
        )
    return chosen


def check_names(request: Request, upstream: Mapping[str, Collection[str]]) -> None:
    """Raise RecipeError if an option of ``request`` names no stage; all problems at once."""
    options = {"from": request.start, "until": request.until, "only": request.only}
    options |= {"force": request.force, "restart": request.restart}
    problems = [
        f"--{option} {name}: no stage is called {name!r}{unknown_name(name, list(upstream))}"
        for option, names in options.items()
        for name in names
        if name not in upstream
    ]
    if problems:
        raise RecipeError(problems)


def _downstream(upstream: Mapping[str, Collection[str]]) -> dict[str, list[str]]:
    following: dict[str, list[str]] = {name: [] for name in upstream}
    for name, others in upstream.items():
        for other in others:
            following[other].append(name)
    return following


def _closure(names: Iterable[str], neighbours: Mapping[str, Collection[str]], order: Iterable[str]) -> set[str]:
    """``names`` and all that is reached from them; ``order`` visits every stage before its neighbours."""
    reached = set(names)
    for name in order:
        if name in reached:
            reached.update(neighbours[name])
    return reached
