from __future__ import annotations

import graphlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.graph import Node, bind, find_cycle, in_order, passed_over
from stages.artifacts import Artifact, ModelArtifact, ReportArtifact, TokenizerArtifact
from stages.stage import Input

MODEL, MODELS = Input(ModelArtifact), Input(ModelArtifact, many=True)


def make_node(output: type[Artifact], *needs: str, **inputs: Input) -> Node:
    return Node(needs, inputs, output)


def messages(nodes) -> list[str]:
    return [message for _, message in bind(nodes)[1]]


def test_inputs_bind_by_the_kind_of_artifact_in_the_order_of_needs():
    nodes = {
        "first": make_node(ModelArtifact),
        "second": make_node(ModelArtifact),
        "words": make_node(TokenizerArtifact),
        "last": make_node(
            ReportArtifact, "second", "words", "first", models=MODELS, tokenizer=Input(TokenizerArtifact),
            data=Input(ModelArtifact, source="eval"),
        ),
    }  # fmt: skip
    bindings, problems = bind(nodes)
    assert problems == []
    assert bindings["last"].inputs == {"models": ("second", "first"), "tokenizer": ("words",)}
    assert bindings["last"].sources == {"data": "eval"}


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        ((), "nothing here fills input 'model': name a stage that makes a 'model' artifact (one or two)"),
        (("one", "two"), "input 'model' takes one 'model' artifact, but one and two make one each: keep one"),
        (("one", "words"), "'words' makes a 'tokenizer' artifact, which fills no input of 'last': remove it"),
        (("oen",), "no stage is called 'oen' (did you mean 'one'?)"),
        (("one", "one"), "'one' is listed twice"),
    ],
)
def test_a_wrong_need_is_explained_with_the_candidates(needs, expected):
    nodes = {
        "one": make_node(ModelArtifact),
        "two": make_node(ModelArtifact),
        "words": make_node(TokenizerArtifact),
        "last": make_node(ReportArtifact, *needs, model=MODEL),
    }
    assert messages(nodes) == [expected]


def test_an_input_of_many_needs_at_least_one():
    nodes = {"last": make_node(ReportArtifact, models=MODELS)}
    assert messages(nodes) == [
        "nothing here fills input 'models': this recipe has no stage that makes a 'model' artifact; add one and name "
        "it here"
    ]


def test_nothing_is_concluded_from_a_stage_that_is_wrong_in_itself():
    assert messages({"broken": None, "last": make_node(ReportArtifact, "broken", model=MODEL)}) == []


def test_a_stage_that_is_wrong_in_itself_may_be_what_takes_the_place_of_a_source():
    text, fixed = Input(TokenizerArtifact, source="train", replaceable=True), Input(ModelArtifact, source="teacher")
    nodes = {"broken": None, "last": make_node(ReportArtifact, "broken", text=text, teacher=fixed)}
    assert bind(nodes)[0]["last"].sources == {"teacher": "teacher"}


def test_a_stage_takes_the_place_of_a_replaceable_source_and_of_no_other():
    text, fixed = Input(TokenizerArtifact, source="train", replaceable=True), Input(ModelArtifact, source="teacher")
    nodes = {
        "words": make_node(TokenizerArtifact),
        "start": make_node(ModelArtifact),
        "plain": make_node(ModelArtifact, "start", model=MODEL, text=text, teacher=fixed),
        "other": make_node(ModelArtifact, "start", "words", model=MODEL, text=text, teacher=fixed),
    }
    bindings, problems = bind(nodes)
    assert problems == []
    assert bindings["plain"].inputs == {"model": ("start",)}
    assert bindings["plain"].sources == {"text": "train", "teacher": "teacher"}
    assert bindings["other"].inputs == {"model": ("start",), "text": ("words",)}
    assert bindings["other"].sources == {"teacher": "teacher"}


def test_another_kind_of_artifact_may_take_the_place_of_a_source():
    teacher = Input(ModelArtifact, source="teacher", replaceable=True, replacement=ReportArtifact)
    nodes = {
        "scores": make_node(ReportArtifact),
        "start": make_node(ModelArtifact),
        "scored": make_node(ModelArtifact, "start", "scores", model=MODEL, teacher=teacher),
        "plain": make_node(ModelArtifact, "start", model=MODEL, teacher=teacher),
    }
    bindings, problems = bind(nodes)
    assert problems == []
    assert bindings["scored"].inputs == {"model": ("start",), "teacher": ("scores",)}
    assert bindings["scored"].sources == {}
    assert bindings["plain"].inputs == {"model": ("start",)}
    assert bindings["plain"].sources == {"teacher": "teacher"}


def test_an_input_that_names_its_stages_takes_them_from_all_others():
    either = Input((ModelArtifact, ReportArtifact), many=True)
    makers = {"one": make_node(ModelArtifact), "two": make_node(ModelArtifact), "scores": make_node(ReportArtifact)}

    def last(*needs: str, named: tuple[str, ...]) -> dict[str, Node]:
        inputs = {"model": MODEL, "teachers": either}
        return makers | {"last": Node(needs, inputs, ModelArtifact, {"teachers": named})}

    bindings, problems = bind(last("two", "one", "scores", named=("scores", "two")))
    assert problems == []
    assert bindings["last"].inputs == {"model": ("one",), "teachers": ("two", "scores")}
    assert messages(last("one", "two", named=("scores",))) == [
        "input 'model' takes one 'model' artifact, but one and two make one each: keep one",
        "nothing here fills input 'teachers': name a stage that makes a 'model' or 'report' artifact (one or two or "
        "scores)",
    ]


def test_a_stage_that_could_take_the_place_of_a_source_and_does_not_is_named():
    text = Input(TokenizerArtifact, source="train", replaceable=True)
    words, end = make_node(TokenizerArtifact), make_node(ReportArtifact, text=text)
    named = make_node(ReportArtifact, "words", text=text)

    def passed(**nodes: Node) -> tuple[str, ...]:
        return passed_over(nodes, bind(nodes)[0])

    assert passed(words=words, end=end) == ("stages.words",)
    assert passed(words=words, end=named) == ()
    assert passed(words=words, end=end, control=named) == ()
    assert passed(words=words) == ()
    assert passed(model=make_node(ModelArtifact), end=end) == ()
    teacher = Input(ModelArtifact, source="teacher", replaceable=True)
    assert passed(trained=make_node(ModelArtifact), end=make_node(ReportArtifact, teacher=teacher)) == ()


def test_two_stages_cannot_both_take_the_place_of_a_source():
    nodes = {
        "one": make_node(TokenizerArtifact),
        "two": make_node(TokenizerArtifact),
        "last": make_node(
            ReportArtifact, "one", "two", text=Input(TokenizerArtifact, source="train", replaceable=True)
        ),
    }
    assert messages(nodes) == ["input 'text' takes one 'tokenizer' artifact, but one and two make one each: keep one"]


def test_order_is_that_of_the_recipe_where_the_graph_leaves_a_choice():
    edges = {"d": ["a"], "c": [], "b": ["c"], "a": []}
    assert in_order(edges) == ["c", "b", "a", "d"]
    assert in_order({"a": [], "b": ["a"], "c": ["b"]}) == ["a", "b", "c"]


@given(
    st.integers(1, 6).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)))))
)
def test_order_or_cycle_agrees_with_brute_force(case):
    n, pairs = case
    edges = {str(i): [str(j) for j in range(n) if (i, j) in pairs] for i in range(n)}
    valid = [
        order
        for order in itertools.permutations(range(n))
        if all(order.index(j) < order.index(i) for i, j in pairs if i < n and j < n)
    ]
    cycle = find_cycle(edges)
    if valid:
        assert cycle is None
        assert tuple(map(int, in_order(edges))) == min(valid), "first in recipe order among all that are possible"
    else:
        assert cycle[0] == cycle[-1]
        assert all(before in edges[after] for before, after in itertools.pairwise(cycle))
        with pytest.raises(graphlib.CycleError):
            in_order(edges)
