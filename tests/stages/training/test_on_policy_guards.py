"""Guards on constructed rollouts: what each measures, when it speaks, and that it remembers."""

from __future__ import annotations

import json
import random

import pytest

from stages.training.on_policy.guards import Guards, Writing, indented, measure, repeated, white_space
from stages.training.on_policy.options import GuardOptions

CODE = "def f(x):\n    if x:\n        return 1\n    return 2\n"
PROSE = "The fox runs over the field and sleeps."


def writing(text: str = PROSE, *, tokens: int | None = None, **facts) -> Writing:
    """A rollout of distinct tokens, as many as the text has characters."""
    facts = {
        "reference": PROSE,
        "cut_off": False,
        "end_mass": 0.01,
        "scored_bytes": len(text.encode()),
    } | facts
    return Writing(ids=range(len(text) if tokens is None else tokens), text=text, **facts)


def breaches(steps: list[list[Writing]], **options) -> list[tuple[int, str]]:
    """(step from 1, guard) of the first breach of every guard."""
    guards = Guards(GuardOptions(**{"reference_steps": 4, "recent_steps": 2} | options))
    found: dict[str, int] = {}
    for step, rollouts in enumerate(steps, start=1):
        for breach in guards.check(measure(rollouts)):
            found.setdefault(breach.guard, step)
    return [(step, guard) for guard, step in found.items()]


def test_what_is_measured_of_constructed_rollouts():
    values = measure(
        [
            Writing([1, 2, 3, 4, 1, 2, 3, 4], "ab cd\n\tx", "abc d", True, 0.1, 4),
            Writing([], "", "", False, 0.9, 0),
        ]
    )
    assert values == {
        "length_median": 4.0,
        "length_p95": pytest.approx(7.6),
        "cut_off": 0.5,
        "empty": 0.5,
        "end_mass": pytest.approx(0.5),
        "white_space": 3 / 8,
        "white_space_rise": pytest.approx(3 / 8 - 1 / 5),
        "indented": 1.0,
        "content": 0.5,
        "repeated": pytest.approx(1 / 5),
    }


def test_what_has_no_denominator_has_no_value():
    assert white_space([""]) is None
    assert indented(["one line", ""]) is None
    assert repeated([[1, 2, 3]]) is None
    assert set(measure([writing("", scored_bytes=0)])) == {
        "length_median", "length_p95", "cut_off", "empty", "end_mass",
    }  # fmt: skip


def test_indentation_counts_lines_with_text_after_the_first():
    assert indented(["    x\n  y\nz\n\n   \n\tw"]) == 2 / 3
    assert indented(["a\r\n b\r\nc"]) == 1 / 2


HEALTHY = [[writing(CODE, reference=CODE), writing()] for _ in range(6)]
COLLAPSES = {
    "length_growth": [writing("abc " * 60, tokens=400) for _ in range(2)],
    "cut_off_rise": [writing(cut_off=True), writing(cut_off=True)],
    "stop_mass": [writing("", scored_bytes=0), writing("", scored_bytes=0)],
    "white_space_rise": [writing(" " * 30 + "x"), writing("\n" * 30)],
    "indentation_loss": [writing("if x:\nreturn 1\nreturn 2\n", reference=CODE), writing()],
    "content_share": [writing(scored_bytes=2), writing(scored_bytes=0)],
    "repetition_rise": [
        Writing([7] * 40, PROSE, PROSE, False, 0.0, len(PROSE)),
        Writing([7, 8] * 20, PROSE, PROSE, False, 0.0, len(PROSE)),
    ],
}


@pytest.mark.parametrize("guard", COLLAPSES)
def test_each_guard_speaks_of_its_collapse_and_of_nothing_else(guard):
    assert breaches(HEALTHY) == []
    assert breaches([*HEALTHY, *[COLLAPSES[guard]] * 2]) in ([(7, guard)], [(8, guard)])
    assert breaches([*HEALTHY, *[COLLAPSES[guard]] * 6], **{guard: None}) == []


def test_mass_on_ending_at_once_speaks_before_rollouts_are_empty():
    assert breaches([[writing(end_mass=0.7)]] * 2) == [(2, "stop_mass")]


def test_one_odd_step_is_no_collapse():
    assert breaches([*HEALTHY, COLLAPSES["cut_off_rise"], *HEALTHY], cut_off_rise=0.5) == []


def test_text_without_indentation_has_none_to_lose():
    flat = [[writing("a\nb\nc", reference="a\nb\nc")]] * 6
    assert breaches([*flat, *[[writing("d\ne", reference="a\nb\nc")]] * 4]) == []


def test_prompts_without_a_text_behind_them_are_no_reason_for_a_breach():
    assert breaches([[writing("  a  b  ", reference="")]] * 8) == []


def test_a_restored_guard_goes_on_as_if_it_had_never_stopped():
    draw = random.Random(0)
    steps = [measure([writing(tokens=draw.randint(1, 30)), writing(PROSE[: draw.randint(1, 30)])]) for _ in range(12)]
    options = GuardOptions(reference_steps=5, recent_steps=3, length_growth=1.01, white_space_rise=0.01)
    whole, first = Guards(options), Guards(options)
    expected = [whole.check(values) for values in steps]
    assert any(expected)
    for stop in (2, 7):
        first = Guards(options)
        found = [first.check(values) for values in steps[:stop]]
        second = Guards(options)
        second.restore(json.loads(json.dumps(first.state())))
        assert found + [second.check(values) for values in steps[stop:]] == expected


@pytest.mark.parametrize(
    "options",
    [{"length_growth": 1.0}, {"stop_mass": 0}, {"content_share": 1}, {"reference_steps": 0}, {"on_breach": "ignore"}],
)
def test_limits_that_mean_nothing_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        GuardOptions(**options)
