"""What a run would do, and why; ``plan`` and ``run`` share it (runner specification, R1, R2, R10 and R12)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import provenance, result_links
from pipeline.errors import RecipeError
from pipeline.executing.locks import describe_holder
from pipeline.keys import cache_key, key_ingredients
from pipeline.plan import Action, Plan, PlannedStage, State
from pipeline.reading.loading import fill_section
from pipeline.reading.pinning import Pinned, pin
from pipeline.reasons import input_changes, key_changes
from pipeline.recipe import Recipe, StageSpec
from pipeline.request import OnCodeChange, Request, check_names, selected
from pipeline.store import Done, Entry, Store
from stages import load_stage


class Verdict(NamedTuple):
    """What the store says about one stage, what to do with it, and why."""

    state: State
    action: Action
    reason: str


MISSING = Verdict(State.MISSING, Action.RUN, "missing")

ALL = Request()

NOT_SELECTED = "not selected; "

NOT_A_TRIGGER = "not a trigger"

_CODE_DIGITS = 5

_PENDING = {
    Action.RUN: "upstream {} re-runs",
    Action.RESUME: "upstream {} re-runs",
    Action.LEAVE: "upstream {} is not up to date",
}


def make_plan(
    recipe: Recipe, runs: Path, request: Request = ALL, *, pinned: Mapping[str, Pinned] | None = None
) -> Plan:
    """Compare the recipe with what the store holds. Writes nothing but a memo of file digests.

    Args:
        recipe: what is wanted.
        runs: the directory of all runs and of their store.
        request: which stages, and which of them even if they are up to date.
        pinned: what the recipe's references stand for, for who plans again and again; None follows them.

    Raises:
        RecipeError: ``request`` names no stage, or selects one that needs what is not there and not selected; or
            references lead nowhere. All problems are named.
        StoreError: the store is damaged.
    """
    reads = {name: spec.upstream for name, spec in recipe.stages.items()}
    check_names(request, reads)  # before files are read, which may take long
    pinned = pinned or pin(recipe, runs / "fingerprints.json")
    ingredients, keys = _all_keys(recipe, pinned)
    chosen = selected(request, reads, keys)
    forced_keys = {keys[name] for name in (chosen if request.force_all else request.force)}
    restarted_keys = {keys[name] for name in request.restart}
    store = Store(runs / "store")
    results: dict[str, Done | None] = {}
    planned: dict[str, PlannedStage] = {}
    for name, spec in recipe.stages.items():
        entry = store.entry(spec.uses, keys[name])
        upstream = {other: planned[other] for other in spec.upstream}
        pending = [
            _PENDING[stage.action].format(other) for other, stage in upstream.items() if stage.action in _PENDING
        ]
        verdict = judge(entry, {other: results[other] for other in upstream}, pending, recipe.name)
        if verdict == MISSING:
            previous = Entry(result_links.latest(runs / recipe.name, name), keys[name]).ingredients()
            verdict = verdict._replace(reason=_why_missing(spec, previous, ingredients[name], upstream))
        verdict = _code_judged(verdict, entry.done(), request.on_code_change, name in chosen)
        if keys[name] in forced_keys:
            verdict = _forced(verdict, _going_on(entry, {other: results[other] for other in upstream}, pending))
        if keys[name] in restarted_keys:
            verdict = _restarted(verdict)
        if name not in chosen and verdict.action is not Action.SKIP:
            verdict = verdict._replace(action=Action.LEAVE, reason=NOT_SELECTED + verdict.reason)
        results[name] = entry.done()
        planned[name] = PlannedStage(
            name=name,
            uses=spec.uses,
            config=pinned[name].config,
            inputs=spec.inputs,
            key=keys[name],
            ingredients=ingredients[name],
            resources=spec.resources,
            forced=keys[name] in forced_keys,
            restarted=keys[name] in restarted_keys,
            **verdict._asdict(),
        )
    _check_needs(planned)
    _check_code(planned, request)
    return Plan(_pinned_recipe(recipe, pinned), runs, tuple(planned.values()))


def judge(entry: Entry, upstream: Mapping[str, Done | None], pending: Sequence[str], run: str) -> Verdict:
    """Decide about one stage, force aside.

    Args:
        entry: its place in the store.
        upstream: the results that it would read now, by stage name.
        pending: what is to be said of those upstream stages that are not up to date.
        run: the name of the run, to tell its own results from those of others.
    """
    done = entry.done()
    if done is not None:
        verdict = _judge_result(done, upstream, pending, run)
        return verdict if verdict.action is Action.SKIP else _gone_on_with(verdict, _going_on(entry, upstream, pending))
    if entry.is_locked():
        return Verdict(State.RUNNING, Action.RUN, f"being made by {describe_holder(entry.lock_path)}")
    going_on = _going_on(entry, upstream, pending)
    if problem := entry.problem():
        return _gone_on_with(Verdict(State.MISSING, Action.RUN, f"result damaged: {problem}"), going_on)
    attempt = entry.last_attempt()
    if attempt is None:
        return MISSING if going_on is None else _gone_on_with(MISSING, going_on)
    if attempt.state == "failed":
        return _gone_on_with(Verdict(State.FAILED, Action.RUN, f"failed (attempt {attempt.number})"), going_on)
    if attempt.state == "finished":
        return _gone_on_with(Verdict(State.MISSING, Action.RUN, "result gone: DONE.json is missing"), going_on)
    point = entry.resume_point()
    if point is None:
        return Verdict(State.INTERRUPTED, Action.RUN, "interrupted before its first checkpoint")
    if going_on is None:
        anew = f"interrupted at {point}; begun anew, as its inputs are others now"
        return Verdict(State.INTERRUPTED, Action.RUN, anew)
    return Verdict(State.INTERRUPTED, Action.RESUME, f"interrupted at {point}{going_on.replace(f' at {point}', '')}")


def _going_on(entry: Entry, upstream: Mapping[str, Done | None], pending: Sequence[str]) -> str | None:
    """From where the next attempt goes on, in words to append; None if it begins anew.

    As ``publish.begin_attempt`` does, it goes on only with the inputs that the earlier one had. Those that are still to
    be made have the same bytes again if nothing but time has passed, which cannot be known before.
    """
    point = entry.resume_point()
    if point is None:
        return None
    if pending:
        return f" → resume at {point} if its inputs come out as before"
    used = sorted(done.result_id for done in upstream.values() if done is not None)
    return f" → resume at {point}" if entry.begun_with() == used else None


def _gone_on_with(verdict: Verdict, going_on: str | None) -> Verdict:
    if going_on is None:
        return verdict
    return verdict._replace(action=Action.RESUME, reason=verdict.reason + going_on)


def _judge_result(done: Done, upstream: Mapping[str, Done | None], pending: Sequence[str], run: str) -> Verdict:
    if pending:
        return Verdict(State.STALE, Action.RUN, ", ".join(pending))
    used = set(done.upstream.values())
    # Compared without names: another recipe may have made this result from stages that it calls differently.
    renewed = [name for name, result in upstream.items() if result is None or result.result_id not in used]
    if renewed:
        return Verdict(State.STALE, Action.RUN, ", ".join(f"upstream {name} was made anew" for name in renewed))
    return Verdict(State.FRESH, Action.SKIP, "fresh" if done.run == run else f"fresh (made by run {done.run})")


def _check_needs(planned: Mapping[str, PlannedStage]) -> None:
    """Refuse to run what needs something that is neither there nor selected: it would have to run unasked."""
    problems = [
        f"{name} needs {other}, which is neither selected nor up to date "
        f"({planned[other].reason.removeprefix(NOT_SELECTED)}); make it first with --until {other}, or select it too"
        for name, stage in planned.items()
        if stage.action in (Action.RUN, Action.RESUME)
        for other in stage.upstream
        if planned[other].action is Action.LEAVE
    ]
    if problems:
        raise RecipeError(problems)


def _all_keys(recipe: Recipe, pinned: Mapping[str, Pinned]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Stage name -> what is hashed, and stage name -> key."""
    ingredients: dict[str, dict[str, Any]] = {}
    keys: dict[str, str] = {}
    for name, spec in recipe.stages.items():
        stage = load_stage(spec.uses)
        inputs = {
            input_name: [(other, keys[other]) if stage.inputs[input_name].many else keys[other] for other in others]
            for input_name, others in spec.inputs.items()
        }
        ingredients[name] = key_ingredients(spec.uses, stage.VERSION, pinned[name].params, inputs)
        keys[name] = cache_key(ingredients[name])
    return ingredients, keys


def _code_judged(verdict: Verdict, done: Done | None, policy: OnCodeChange, chosen: bool) -> Verdict:
    """Say of a fresh result that other code made it, and make it anew if that is wanted (R5)."""
    now = provenance.code_digest()
    if verdict.action is not Action.SKIP or done is None or done.code in (None, now):
        return verdict
    change = f"code changed {done.code[:_CODE_DIGITS]} → {now[:_CODE_DIGITS]}"
    if policy == "rerun" and chosen:
        return Verdict(State.STALE, Action.RUN, change)
    return verdict._replace(reason=f"{verdict.reason}; {change}, {NOT_A_TRIGGER}")


def _check_code(planned: Mapping[str, PlannedStage], request: Request) -> None:
    changed = [name for name, stage in planned.items() if stage.reason.endswith(NOT_A_TRIGGER)]
    if changed and request.on_code_change == "error":
        raise RecipeError(
            f"--on-code-change error: other code than this made {', '.join(changed)}; make them anew with "
            "--on-code-change rerun"
        )


def _forced(verdict: Verdict, going_on: str | None) -> Verdict:
    """Run it whatever is there; what was begun is still gone on with."""
    if verdict.action is Action.SKIP:
        return _gone_on_with(verdict._replace(action=Action.RUN, reason="forced"), going_on)
    return verdict._replace(reason=f"forced; {verdict.reason}")


def _restarted(verdict: Verdict) -> Verdict:
    """Begin anew what would be gone on with."""
    if verdict.action is Action.RESUME:
        return verdict._replace(action=Action.RUN, reason=f"{verdict.reason.split(' → ')[0]}; begun anew")
    return verdict


def _why_missing(
    spec: StageSpec,
    previous: Mapping[str, Any] | None,
    ingredients: Mapping[str, Any],
    upstream: Mapping[str, PlannedStage],
) -> str:
    """What changed since this run last had a result for the stage."""
    if previous is None or previous == ingredients:
        return MISSING.reason
    changes = key_changes(spec, previous, ingredients)
    for name in input_changes(spec, previous, {name: stage.key for name, stage in upstream.items()}):
        changes.append(f"upstream {name} {'changed' if upstream[name].action is Action.SKIP else 're-runs'}")
    return "; ".join(changes) or "other stages are needed"


def _pinned_recipe(recipe: Recipe, pinned: Mapping[str, Pinned]) -> Recipe:
    """The recipe with its references spelled so that the kept copy means the same wherever it lies."""
    values = copy.deepcopy(dict(recipe.resolved))
    for name, spec in recipe.stages.items():
        fill_section(values, spec.section, spec.option, pinned[name].config)
    return replace(recipe, resolved=values)
